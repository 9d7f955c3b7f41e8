"""What the commands start with: a MODEL that is loaded and run once."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from int8pass.config import Int8MixedConfig
from int8pass.inspection.explain import explain
from int8pass.inspection.report import Report
from int8pass.models import load_model


def explain_model(spec: str, config: Int8MixedConfig, timings: bool = False, schemes: Sequence[str] = ()) -> Report:
    """Load a MODEL and explain it, saying on a terminal what is going on. Raises ModelError, CaptureError."""
    console = Console(stderr=True)
    with console.status(f"loading {escape(spec)}"):
        loaded = load_model(spec)
    with console.status("running the model in float, with each Linear's int8 form beside it"):
        return explain(loaded.model, loaded.args, loaded.kwargs, options=config, timings=timings, schemes=schemes)
