"""`Int8MixedConfig`: the one list of options, the same for every way into the pass."""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from int8pass.errors import ConfigError
from int8pass.quantization.profile import Profile
from int8pass.quantization.rounded_weights import WeightForm
from int8pass.quantization.scheme import DEFAULT, PER_CHANNEL, SCHEMES, Scheme, scheme_named

_CHOICES = {
    "activations": ("dynamic", "static"),
    "outliers": ("column", "token"),
    "outlier_weights": (None, "original", "dequantized"),
    "break_even": ("off", "measured"),
    "lowering": ("inductor", "eager", "tensorrt"),
    "mode": (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}


@dataclass(frozen=True)
class Int8MixedConfig:
    """Options of the int8mixed pass.

    scheme: how activations and weights become int8: a name of `quantization.SCHEMES`, or a Scheme. Kept as a Scheme.
    activations: "dynamic": each call finds the ranges of activations as the scheme says; "static": one range for each
        Linear, that of the profile. Values past it, outside of the profile's outlier columns, are clamped.
    threshold: |x| at and above which a feature is an outlier (LLM.int8(), section 3.2); 0.0 means no outlier branch.
        None resolves to 6.0, and to 0.0 for a scheme without outlier branch, for which any other is an error.
    outliers: "column" takes a feature as outlier for the whole call (the paper), "token" for each row on its own.
    outlier_weights: what the outlier branch multiplies with: "original" 16/32-bit columns, or columns "dequantized"
        from int8. None resolves to "original", and with free_weights to "dequantized".
    profile: a Profile of `int8pass.calibrate`, or the path of one: the outlier columns of each Linear are those that it
        names, whatever x holds, and their "original" weights count in 16 bits. Checked against the model: ProfileError
        names the first layer that differs.
    skip_modules: names relative to the compiled module; a dotted name means it and all below it, `*` makes a glob,
        `re:` a regular expression matched from the start of the name.
    skip_modules_default: also skip `lm_head` and every weight tied to an embedding.
    free_weights: release each float weight once it is quantized; reading it later raises FreedWeightError.
    break_even: "off", or "measured" to leave alone what int8 would make slower: each Linear is timed once, as it is
        lowered, at the rows of the call that is compiled for; times are kept in the user's cache folder.
    lowering: "inductor"; "eager" to run the ops as they are; "tensorrt" for engines through torch-tensorrt (not yet run
        on a GPU), with a plugin where outliers are found in each call.
    mode: Inductor's mode, since torch.compile takes either mode or options.
    inductor: options passed on to Inductor.
    tensorrt: settings passed on to torch-tensorrt, and `linear_form`: "auto", "native" for TensorRT's own layers, which
        find no outlier columns in a call, or "plugin" for int8pass's kernels.
    dump_dir: a folder for the text of the graph after every stage; unset, the environment variable INT8PASS_DUMP.
    """

    scheme: Scheme = DEFAULT
    activations: str = "dynamic"
    threshold: float | None = None
    outliers: str = "column"
    outlier_weights: str | None = None
    profile: Profile | None = None
    skip_modules: tuple[str, ...] = ()
    skip_modules_default: bool = True
    free_weights: bool = False
    break_even: str = "off"
    lowering: str = "inductor"
    mode: str | None = None
    inductor: Mapping[str, Any] = field(default_factory=dict)
    tensorrt: Mapping[str, Any] = field(default_factory=dict)
    dump_dir: str | None = None

    @classmethod
    def from_options(
        cls, options: "Mapping[str, Any] | Int8MixedConfig | None" = None, **overrides
    ) -> "Int8MixedConfig":
        """Build a config from a mapping. Raises ConfigError naming the nearest option for an unknown one."""
        given = {name: value for name, value in overrides.items() if value is not None}
        if isinstance(options, Int8MixedConfig):
            return dataclasses.replace(options, **given)
        if not isinstance(options, Mapping | None):
            raise ConfigError(f"options must be a mapping or an Int8MixedConfig, not {type(options).__name__}")
        return cls._checked({**(options or {}), **given})

    @classmethod
    def _checked(cls, given: Mapping[str, Any]) -> "Int8MixedConfig":
        known = [option.name for option in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"unknown option {name!r}; did you mean {nearest!r}? The options are: {', '.join(known)}. "
                    "Options of Inductor go into 'inductor', those of torch-tensorrt into 'tensorrt'."
                )
        return cls(**given)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")
        object.__setattr__(self, "scheme", scheme_named(self.scheme))
        self._check_threshold()
        self._check_outlier_branch()
        for name in ("skip_modules_default", "free_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        self._check_skip_modules()
        self._check_profile()
        for name, whose in (("inductor", "Inductor"), ("tensorrt", "torch-tensorrt")):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name} must be a mapping of {whose}'s options, not {getattr(self, name)!r}")
        self._check_tensorrt()
        if self.dump_dir is not None:
            if not isinstance(self.dump_dir, str | os.PathLike):
                raise ConfigError(f"dump_dir must be a path, not {self.dump_dir!r}")
            object.__setattr__(self, "dump_dir", str(self.dump_dir))
        if self.free_weights and self.outlier_weights == "original":
            raise ConfigError(
                "outlier_weights='original' needs the float weights that free_weights=True releases; "
                "leave outlier_weights unset, or free_weights False"
            )

    def _check_tensorrt(self) -> None:
        if self.lowering != "tensorrt":
            return
        if not self.scheme.has_default_form or self.activations == "static":
            names = ", ".join(repr(scheme.name) for scheme in SCHEMES.values() if scheme.has_default_form)
            raise ConfigError(
                f"lowering='tensorrt' takes schemes {names} with activations='dynamic': one symmetric scale for each "
                "row of activations, found in each call"
            )
        if self.break_even == "measured":
            raise ConfigError("break_even='measured' times Inductor's Linears, not TensorRT's: leave it 'off'")

    def _check_skip_modules(self) -> None:
        if isinstance(self.skip_modules, str):
            raise ConfigError(f"skip_modules must be a sequence of names: write ({self.skip_modules!r},)")
        names = tuple(self.skip_modules) if isinstance(self.skip_modules, Iterable) else (None,)
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(f"skip_modules must be a sequence of names, not {self.skip_modules!r}")
        for name in names:
            try:
                re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
            except re.error as error:
                raise ConfigError(f"skip_modules: {name!r} is not a regular expression: {error}") from error
        object.__setattr__(self, "skip_modules", names)

    def _check_profile(self) -> None:
        if isinstance(self.profile, str | os.PathLike):
            object.__setattr__(self, "profile", Profile.load(self.profile))
        if not isinstance(self.profile, Profile | None):
            raise ConfigError(f"profile must be a Profile or the path of one, not {type(self.profile).__name__}")
        if self.activations == "static" and self.profile is None:
            raise ConfigError(
                "activations='static' takes its ranges from a profile: make one with int8pass.calibrate and pass it as "
                "'profile'"
            )
        if self.activations == "static" and self.profile.has_outlier_columns and not self.threshold:
            raise ConfigError(
                f"the ranges of this profile leave its outlier columns out, and scheme {self.scheme.name!r} has no "
                "outlier branch at threshold 0: calibrate with options={'threshold': 0.0}"
            )
        if self.profile is not None and self.outliers == "token":
            raise ConfigError("a profile names whole columns: it goes with outliers='column', not with 'token'")
        if self.profile is not None and self.profile.rounded is not None:
            self._check_rounded(self.profile)

    def _check_rounded(self, profile: Profile) -> None:
        """A profile's rounded weights are made for one way to use them."""
        if self.scheme.weights != PER_CHANNEL:
            raise ConfigError(
                f"the profile holds weights rounded with a scale for each output channel, and scheme "
                f"{self.scheme.name!r} wants others: calibrate with rounding='nearest' for it"
            )
        if self.lowering == "tensorrt" and profile.rounded.scales_inputs:
            raise ConfigError(
                "lowering='tensorrt' does not scale inputs as this profile does: calibrate without migration, or "
                "export an ONNX file for target 'tensorrt'"
            )
        if self.activations == "static" and profile.rounded.scales_inputs:
            raise ConfigError(
                "this profile scales inputs, and its ranges are those of the inputs as they are: calibrate without "
                "migration for activations='static'"
            )
        if profile.outlier_weights == "original" and not self.keeps_original_weights:
            raise ConfigError(
                "the profile's rounded weights leave out the outlier columns, so these cannot be dequantized from "
                "them: calibrate with options={'outlier_weights': 'dequantized'}"
            )
        if profile.outlier_weights == "original" and profile.threshold and not self.threshold:
            raise ConfigError(
                "the profile's rounded weights leave out the outlier columns, and threshold 0.0 wants these in int8: "
                "calibrate with options={'threshold': 0.0}"
            )

    def _check_threshold(self) -> None:
        if self.threshold is None:
            object.__setattr__(self, "threshold", self.scheme.default_threshold)
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float) or not self.threshold >= 0:
            raise ConfigError(f"threshold must be a number >= 0 (0.0: no outlier branch), not {self.threshold!r}")
        object.__setattr__(self, "threshold", float(self.threshold))

    def _check_outlier_branch(self) -> None:
        """Options that only an outlier branch reads need a scheme that has one."""
        given = {"threshold": self.threshold, "outlier_weights": self.outlier_weights}
        given["outliers"] = None if self.outliers == "column" else self.outliers
        given["profile"] = self.profile if self.activations == "dynamic" else None
        useless = [name for name, value in given.items() if value]
        if useless and not self.scheme.decomposition:
            names = " or ".join(repr(scheme.name) for scheme in SCHEMES.values() if scheme.decomposition)
            raise ConfigError(
                f"scheme {self.scheme.name!r} has no outlier branch, which {' and '.join(useless)} would need: take "
                f"scheme {names}, or leave out {' and '.join(useless)}"
            )

    def with_scheme(self, scheme: str | Scheme, threshold: float | None = None) -> "Int8MixedConfig":
        """These options under another scheme. threshold: None keeps this one, or takes the scheme's own for 0.0.

        Where the scheme has no outlier branch, the options that only such a branch reads go back to their defaults, and
        so does `activations`, whose ranges leave outliers out.
        """
        chosen = scheme_named(scheme)
        if not chosen.decomposition:
            defaults = dict(
                threshold=None, outliers="column", outlier_weights=None, profile=None, activations="dynamic"
            )
            return dataclasses.replace(self, scheme=chosen, **defaults)
        kept = threshold if threshold is not None else self.threshold or None
        return dataclasses.replace(self, scheme=chosen, threshold=kept)

    def require_break_even_off(self, what: str) -> None:
        """Raise ConfigError for what cannot tell how fast its Linears will be."""
        if self.break_even != "off":
            raise ConfigError(
                f"break_even='measured' times Linears as torch.compile lowers them, and what {what} makes may run "
                "elsewhere: leave it 'off', and put what is slower into skip_modules (`int8pass report --break-even "
                "measured` names it)"
            )

    @property
    def weight_form(self) -> WeightForm:
        """How weights become int8: as the scheme says, or as the profile holds them."""
        rounded = None if self.profile is None else self.profile.rounded
        return self.scheme.weights if rounded is None else rounded

    @property
    def keeps_original_weights(self) -> bool:
        """Whether the outlier branch reads the float weight."""
        return (self.outlier_weights or ("dequantized" if self.free_weights else "original")) == "original"
