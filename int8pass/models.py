"""`load_model`: the MODEL argument of the command line, as a model with example inputs."""

import contextlib
import difflib
import importlib
import inspect
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from int8pass.errors import MissingDependencyError, ModelError

FORMS = """MODEL is one of
  MODULE:FACTORY  a Python function without arguments that returns (model, args, kwargs)
  FOLDER          a Hugging Face model folder: config.json and .safetensors weights
  FILE.pt2        a program that torch.export.save wrote"""
SENTENCE = "A quick brown fox jumps over the lazy dog while the sun goes down behind the hills."

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")
_TOKENS, _FRAMES, _SAMPLES, _IMAGE_SIZE = 16, 64, 16000, 224


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode whose parameters need no gradient, and the inputs that it is run on."""

    model: nn.Module | ExportedProgram
    args: tuple
    kwargs: dict[str, Any]


def load_model(spec: str) -> LoadedModel:
    """Load what a MODEL argument names: `MODULE:FACTORY`, a Hugging Face model folder, or a `.pt2` file.

    Nothing is downloaded, and no code that lies in a model folder runs; MODULE is imported, from the current directory
    too. Raises ModelError where nothing can be loaded, MissingDependencyError where transformers is needed.
    """
    path = Path(spec)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".pt2":
        return _from_program_file(path)
    if _is_function_spec(spec):
        return _from_factory(spec)
    if path.suffix == ".onnx":
        raise ModelError(
            f"{spec!r} is an ONNX file: report, dump, debug and diff read those that int8pass exported, check reads "
            "any; here name the model that it was made from"
        )
    raise ModelError(f"{spec!r} is no folder, no .pt2 file and no MODULE:FACTORY\n{FORMS}")


def _for_inference(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> LoadedModel:
    with contextlib.suppress(NotImplementedError):  # a module that torch.export made has no modes
        model.eval()
    return LoadedModel(model.requires_grad_(False), args, dict(kwargs))


# --- MODULE:FACTORY


def python_function(spec: str) -> Callable:
    """The function that MODULE:FUNCTION names; MODULE is imported. Raises ModelError."""
    if not _is_function_spec(spec):
        raise ModelError(f"{spec!r} is not of the form MODULE:FUNCTION")
    module_name, name = spec.split(":")
    return _find_factory(_import(module_name), name)


def _is_function_spec(spec: str) -> bool:
    return re.fullmatch(r"[\w.]+:[\w.]+", spec) is not None


def _from_factory(spec: str) -> LoadedModel:
    factory = python_function(spec)
    with torch.no_grad():
        result = factory()
    match result:
        case (nn.Module() as model, tuple() as args, Mapping() as kwargs):
            return _for_inference(model, args, kwargs)
    raise ModelError(f"{spec} must return (model, args, kwargs): an nn.Module, a tuple and a mapping")


def _import(name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another one
        raise ModelError(f"there is no Python module {name!r}, also not in the current directory") from error


def _find_factory(module: Any, name: str) -> Callable:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"module {module.__name__!r} has no {name!r}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(f"{module.__name__}:{name} is not a function: it is {type(found).__name__}")
    return found


# --- FILE.pt2


def _from_program_file(path: Path) -> LoadedModel:
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    if not _holds_program(path):
        raise ModelError(f"{str(path)!r} is not a program that torch.export.save wrote")
    try:
        exported = torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:  # a newer schema, or an op that is unknown
        raise ModelError(f"torch.export.load could not read {str(path)!r}: {error}") from error
    if exported.example_inputs is None:
        raise ModelError(f"{str(path)!r} carries no example inputs; write a MODULE:FACTORY that returns them")
    args, kwargs = exported.example_inputs
    return LoadedModel(exported, tuple(args), dict(kwargs))


def _holds_program(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(re.search(r"(^|/)models/[^/]+\.json$", name) for name in archive.namelist())


# --- FOLDER


def _from_folder(folder: Path) -> LoadedModel:
    _check_folder(folder)
    transformers = _transformers()
    unreadable = (OSError, ValueError, KeyError, ImportError, RuntimeError, *_safetensors_errors())
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = _model_class(transformers, config).from_pretrained(folder, local_files_only=True, use_safetensors=True)
        return _for_inference(model, (), _example_inputs(transformers, model, folder))
    except unreadable as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"transformers could not load the folder {str(folder)!r}: {error}") from error


def _check_folder(folder: Path) -> None:
    """Refuse, before anything is imported, what would run code of the folder or holds no weights."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {str(folder)!r} has no config.json\n{FORMS}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"config.json of {str(folder)!r} is not JSON: {error}") from error
    if not isinstance(config, dict) or "auto_map" in config:
        raise ModelError(
            f"the model in {str(folder)!r} needs code of its own (auto_map in config.json), which is not run"
        )
    suffixes = {file.suffix for file in folder.iterdir()}
    if ".safetensors" not in suffixes:
        pickles = sorted(suffixes.intersection(_PICKLE_SUFFIXES))
        found = (
            f"only pickled weights ({', '.join(pickles)}), which can run code while they load" if pickles else "none"
        )
        raise ModelError(f"the folder {str(folder)!r} must hold .safetensors weights and holds {found}")


def _transformers() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is first imported
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "a model folder is loaded with transformers: pip install 'int8pass[examples]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _safetensors_errors() -> tuple[type[Exception], ...]:
    import safetensors

    return (safetensors.SafetensorError,)


def _model_class(transformers: Any, config: Any) -> Any:
    """The class that config.architectures names; AutoModel where it names none."""
    if not config.architectures:
        return transformers.AutoModel
    name = config.architectures[0]
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ModelError(f"transformers {transformers.__version__} has no model class {name!r}")
    return found


def _example_inputs(transformers: Any, model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """One short input: a sentence where the folder has a tokenizer, else made from sizes in the config."""
    config, main = model.config, model.main_input_name
    if main not in _MAKERS:
        raise ModelError(f"{type(model).__name__} takes {main!r}; write a MODULE:FACTORY that makes its inputs")
    if main == "input_ids" and any((folder / name).is_file() for name in _TOKENIZER_FILES):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        accepted = inspect.signature(model.forward).parameters
        encoded = tokenizer(SENTENCE, return_tensors="pt")
        inputs = {name: tensor for name, tensor in encoded.items() if name in accepted}
    else:
        inputs = {main: _MAKERS[main](config)}
    if main == "input_ids" and hasattr(config, "vision_config") and not _has_image_tokens(config):
        inputs["pixel_values"] = _pixels(config)
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _token_ids(config)
    return {name: tensor.to(model.dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def _has_image_tokens(config: Any) -> bool:
    """Whether images stand in the text as tokens of their own, so that text alone is an input."""
    return hasattr(config, "image_token_id") or hasattr(config, "image_token_index")


def _token_ids(config: Any) -> Tensor:
    return torch.arange(1, _TOKENS + 1).unsqueeze(0) % config.get_text_config().vocab_size


def _pixels(config: Any) -> Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or _IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return _normal(getattr(vision, "num_channels", 3), height, width)


def _features(config: Any) -> Tensor:
    """[batch, frames, features]; Whisper takes [batch, mel bins, frames], two frames for each source position."""
    for name in ("input_feat_per_channel", "feature_projection_input_dim"):
        if hasattr(config, name):
            return _normal(_FRAMES, getattr(config, name))
    if not hasattr(config, "num_mel_bins") or not hasattr(config, "max_source_positions"):
        raise ModelError(f"no sizes of input_features in a {type(config).__name__}; write a MODULE:FACTORY")
    return _normal(config.num_mel_bins, 2 * config.max_source_positions)


def _waveform(config: Any) -> Tensor:
    return _normal(_SAMPLES)


def _normal(*shape: int) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


_MAKERS: dict[str, Callable[[Any], Tensor]] = {
    "input_ids": _token_ids,
    "pixel_values": _pixels,
    "input_features": _features,
    "input_values": _waveform,
}
