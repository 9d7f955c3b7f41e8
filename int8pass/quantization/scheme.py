"""`Scheme`: how a Linear becomes int8, as data; `SCHEMES`: the named ones. README.md beside this file has the formulas.

The words are those of LLM.int8(), Dettmers et al. 2022 (arXiv 2208.07339), section 2 and Table 1: row-wise is a scale
for each token and one for the weight, vector-wise a scale for each token and for each output channel.
"""

import difflib
from dataclasses import dataclass

from torch import Tensor

from int8pass.errors import ConfigError
from int8pass.quantization.absmax import INT8_MAX
from int8pass.quantization.weight_ranges import ESTIMATORS

DEFAULT_THRESHOLD = 6.0  # LLM.int8(), section 3.2
GROUP_SIZES = (32, 64, 128)


def _check(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {choices}, not {value!r}")


@dataclass(frozen=True)
class ActivationQuantization:
    """How x [..., K] becomes int8.

    granularity: "per_token", a scale for each row, or "per_tensor", one for the call. symmetric: codes stand for
    multiples of max |x| / 127; without, a zero point is added, so that they span the range from min(x, 0) to max(x, 0).
    Raises ConfigError.
    """

    granularity: str = "per_token"
    symmetric: bool = True

    def __post_init__(self) -> None:
        _check("granularity of activations", self.granularity, ("per_token", "per_tensor"))
        _check("symmetric", self.symmetric, (True, False))

    @property
    def largest_difference(self) -> int:
        """The largest |code - zero point|."""
        return INT8_MAX if self.symmetric else 2 * INT8_MAX


PER_TOKEN = ActivationQuantization()


@dataclass(frozen=True)
class WeightQuantization:
    """How W [N, K] becomes int8, symmetric: codes stand for multiples of range / 127.

    granularity: "per_channel", a range for each of the N rows; "per_tensor", one for all; "per_group", one for each
    `group_size` (32, 64 or 128) neighbouring features of a row. estimator: of the range: "absmax", the largest |w|;
    "percentile", the magnitude that `percentile` % of them do not exceed; "mse", the one with the least squared error.
    Values past the range are clamped. Raises ConfigError.
    """

    granularity: str = "per_channel"
    estimator: str = "absmax"
    percentile: float = 99.99
    group_size: int | None = None

    def __post_init__(self) -> None:
        _check("granularity of weights", self.granularity, ("per_channel", "per_tensor", "per_group"))
        _check("group_size", self.group_size, GROUP_SIZES if self.granularity == "per_group" else (None,))
        _check("estimator", self.estimator, tuple(ESTIMATORS))
        if not isinstance(self.percentile, int | float) or not 0.0 < self.percentile <= 100.0:
            raise ConfigError(f"percentile must be above 0 and at most 100, not {self.percentile!r}")

    def scale(self, rows: Tensor) -> Tensor:
        """The scales of rows that share a range each. rows: [R, C] floating. Result: float32[R], NaN if not finite."""
        return ESTIMATORS[self.estimator](rows, self.percentile)

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Of the scales of a weight [rows, columns]."""
        return (rows,) if self.group_size is None else (rows, columns // self.group_size)


PER_CHANNEL = WeightQuantization()


@dataclass(frozen=True)
class Scheme:
    """A way to compute a Linear in int8, for options={"scheme": ...}.

    name: what reports call it. decomposition: features with |x| >= threshold are multiplied in floating point
    (LLM.int8(), section 3.2). Products are exact in int32, biases stay in floating point. Raises ConfigError.
    """

    name: str
    activations: ActivationQuantization = PER_TOKEN
    weights: WeightQuantization = PER_CHANNEL
    decomposition: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("activations", ActivationQuantization), ("weights", WeightQuantization), ("name", str)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} of a scheme must be a {kind.__name__}, not {getattr(self, name)!r}")
        _check("decomposition", self.decomposition, (True, False))

    @property
    def default_threshold(self) -> float:
        """|x| from which on a feature is an outlier where nobody says; 0.0: no outlier branch."""
        return DEFAULT_THRESHOLD if self.decomposition else 0.0

    @property
    def has_default_form(self) -> bool:
        """Whether its graphs are those of the default scheme, which fused kernels and files take."""
        return self.activations == PER_TOKEN and self.weights.group_size is None


_PER_TENSOR, _ZEROPOINT = ActivationQuantization("per_tensor"), ActivationQuantization("per_token", symmetric=False)
_ONE_WEIGHT_SCALE = WeightQuantization("per_tensor")

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("absmax", _PER_TENSOR, _ONE_WEIGHT_SCALE),
        Scheme("zeropoint", ActivationQuantization("per_tensor", symmetric=False), _ONE_WEIGHT_SCALE),
        Scheme("absmax-rowwise", weights=_ONE_WEIGHT_SCALE),
        Scheme("absmax-vectorwise"),
        Scheme("zeropoint-vectorwise", _ZEROPOINT),
        Scheme("llm.int8", decomposition=True),
        Scheme("llm.int8-zeropoint", _ZEROPOINT, decomposition=True),
    )
}
DEFAULT = SCHEMES["llm.int8"]


def scheme_named(scheme: str | Scheme) -> Scheme:
    """The scheme of a name; a Scheme is returned as it is. Raises ConfigError naming the nearest for an unknown one."""
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, str) and scheme in SCHEMES:
        return SCHEMES[scheme]
    nearest = difflib.get_close_matches(str(scheme), SCHEMES, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"unknown scheme {scheme!r}; did you mean {nearest!r}? The schemes are: {', '.join(SCHEMES)}; or pass a "
        "Scheme of your own"
    )
