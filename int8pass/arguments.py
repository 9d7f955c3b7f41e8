"""Arguments and options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

from int8pass.config import Int8MixedConfig
from int8pass.quantization.scheme import DEFAULT, SCHEMES

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="MODULE:FACTORY (a function that returns model, args, kwargs), a Hugging Face model folder "
        "(.safetensors), or a .pt2 file of torch.export.save.",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="MODEL",
        help="Of an ONNX file: the float model that it was made from, which gives its inputs and its errors.",
    ),
]
SchemeName = Annotated[str, typer.Option("--scheme", metavar="NAME", help=f"{', '.join(SCHEMES)}.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="|x| at and above which a feature is an outlier; 0 means no outlier branch. [default: 6.0, or 0 for a "
        "scheme without outlier branch]"
    ),
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
Profile = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="PATH",
        help="A profile of `int8pass calibrate`, which names the outlier columns.",
    ),
]

BreakEven = Annotated[
    str,
    typer.Option(
        "--break-even",
        metavar="CHOICE",
        help="'measured': also leave in float what int8 would make slower on this machine; 'off': do not look.",
    ),
]


Activations = Annotated[
    str,
    typer.Option(
        metavar="CHOICE",
        help="'dynamic': each call finds the ranges of activations; 'static': those of --profile, and what lies past "
        "them is clamped.",
    ),
]


def config_of(
    threshold: float | None,
    outliers: str,
    outlier_weights: str | None,
    skip_modules: list[str] | None,
    no_skip_modules_default: bool,
    dump_dir: str | None = None,
    profile: Path | None = None,
    activations: str = "dynamic",
    scheme: str = DEFAULT.name,
    break_even: str = "off",
) -> Int8MixedConfig:
    """The options that these arguments give. Raises ConfigError, ProfileError."""
    return Int8MixedConfig(
        scheme=scheme,
        threshold=threshold,
        outliers=outliers,
        outlier_weights=outlier_weights,
        skip_modules=tuple(skip_modules or ()),
        skip_modules_default=not no_skip_modules_default,
        dump_dir=dump_dir,
        profile=profile,
        activations=activations,
        break_even=break_even,
    )
