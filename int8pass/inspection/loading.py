"""What the commands start with: a MODEL that is loaded and run once, or an exported file that is read."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from int8pass.config import Int8MixedConfig
from int8pass.errors import ConfigError
from int8pass.inspection.explain import explain
from int8pass.inspection.onnx_file import explain_file, is_onnx_file
from int8pass.inspection.onnx_report import explain_run
from int8pass.inspection.report import Report
from int8pass.models import LoadedModel, load_model


def loaded_model(spec: str) -> LoadedModel:
    """Load a MODEL, saying so on a terminal. Raises ModelError."""
    with Console(stderr=True).status(f"loading {escape(spec)}"):
        return load_model(spec)


def explain_model(
    spec: str,
    config: Int8MixedConfig,
    timings: bool = False,
    schemes: Sequence[str] = (),
    against: str | None = None,
) -> Report:
    """Explain a MODEL or an exported ONNX file, saying on a terminal what is going on.

    against: of a file, the MODEL that it was made from. A file is run if that or `timings` is given. Raises ModelError,
    CaptureError, ProfileError; OnnxFileError for a file, and ConfigError where options are given.
    """
    if not is_onnx_file(spec):
        require_no_against(spec, against)
        return explain_loaded(loaded_model(spec), config, timings, schemes)
    require_no_options(spec, config)
    if schemes:
        raise ConfigError(f"--schemes tries other schemes on a model, and {spec!r} is an ONNX file: name the model")
    loaded = None if against is None else loaded_model(against)
    running = loaded is not None or timings
    with Console(stderr=True).status(f"{'running' if running else 'reading'} {escape(spec)}"):
        return explain_run(Path(spec), loaded, against or "", timings) if running else explain_file(Path(spec))


def require_no_against(spec: str, against: str | None) -> None:
    """Raise ConfigError where `--against` is given for what is no ONNX file."""
    if against is not None:
        raise ConfigError(f"--against compares an exported ONNX file with its model, and {spec!r} is a model itself")


def explain_loaded(
    loaded: LoadedModel, config: Int8MixedConfig, timings: bool = False, schemes: Sequence[str] = ()
) -> Report:
    """Explain a loaded MODEL, saying so on a terminal. Raises CaptureError, ProfileError."""
    with Console(stderr=True).status("running the model in float, with each Linear's int8 form beside it"):
        return explain(loaded.model, loaded.args, loaded.kwargs, options=config, timings=timings, schemes=schemes)


def require_no_options(spec: str, config: Int8MixedConfig) -> None:
    """Raise ConfigError where options are given for an ONNX file, which has its own."""
    if config != Int8MixedConfig():
        raise ConfigError(f"{spec!r} is an ONNX file, whose options were chosen when it was exported: leave them out")
