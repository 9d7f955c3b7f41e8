"""Options that the commands share, and what they all start with: a config, and a model that is run once."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from int8pass.config import Int8MixedConfig
from int8pass.inspection.explain import explain
from int8pass.inspection.report import Report
from int8pass.models import load_model

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="MODULE:FACTORY (a function that returns model, args, kwargs), a Hugging Face model folder "
        "(.safetensors), or a .pt2 file of torch.export.save.",
    ),
]
Threshold = Annotated[
    float, typer.Option(help="|x| at and above which a feature is an outlier; 0 means no outlier branch.")
]
Outliers = Annotated[
    str, typer.Option(help="'column': a feature is an outlier for the whole call; 'token': for each row on its own.")
]
OutlierWeights = Annotated[
    str | None,
    typer.Option(
        help="What the outlier branch multiplies with: the 'original' float columns, or columns 'dequantized' from "
        "int8. [default: original]"
    ),
]
SkipModules = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A module to leave in float, with all below it; `*` makes a glob, `re:` a regular expression. Repeatable.",
    ),
]
NoSkipModulesDefault = Annotated[
    bool,
    typer.Option(
        "--no-skip-modules-default", help="Do not skip `lm_head` and the weights tied to an embedding by default."
    ),
]


def config_from(
    threshold: float,
    outliers: str,
    outlier_weights: str | None,
    skip_modules: list[str] | None,
    no_skip_modules_default: bool,
) -> Int8MixedConfig:
    """The config that the options of a command ask for. Raises ConfigError."""
    return Int8MixedConfig(
        threshold=threshold,
        outliers=outliers,
        outlier_weights=outlier_weights,
        skip_modules=tuple(skip_modules or ()),
        skip_modules_default=not no_skip_modules_default,
    )


def explain_model(spec: str, config: Int8MixedConfig, timings: bool = False) -> Report:
    """Load a MODEL and explain it, saying on a terminal what is going on. Raises ModelError, CaptureError."""
    console = Console(stderr=True)
    with console.status(f"loading {escape(spec)}"):
        loaded = load_model(spec)
    with console.status("running the model in float, with each Linear's int8 form beside it"):
        return explain(loaded.model, loaded.args, loaded.kwargs, options=config, timings=timings)
