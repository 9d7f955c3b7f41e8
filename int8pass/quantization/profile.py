"""`Profile`: what `int8pass.calibrate` found about the input of each Linear, as a versioned JSON file."""

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from int8pass.errors import OutputError, ProfileError
from int8pass.files import require_writable, staged
from int8pass.freed_parameter import is_freed
from int8pass.quantization.rounded_weights import RoundedWeights

SCHEMA_VERSION = 2
_READABLE = (1, 2)  # version 1 has no ranges
_SAMPLES = 64  # elements of each weight that its fingerprint is made of


@dataclass(frozen=True)
class ProfiledLayer:
    """The inputs of the Linears that read one weight.

    weight: dotted name of the parameter; shape: (N, K); absmax: the largest |x| met, infinity and NaN left out;
    outlier_columns: features that are to be outliers, ascending; fingerprint: of the weight, `weight_fingerprint`.
    minimum, maximum: the range of x outside the outlier columns that int8 is to cover, as the profile's observer chose
    it; None in a profile of schema version 1, which has none.
    """

    weight: str
    shape: tuple[int, int]
    absmax: float
    outlier_columns: tuple[int, ...]
    fingerprint: str
    minimum: float | None = None
    maximum: float | None = None

    @property
    def range(self) -> tuple[float, float]:
        """minimum and maximum. Raises ProfileError where there are none."""
        if self.minimum is None or self.maximum is None:
            raise ProfileError(f"the profile has no range for {self.weight!r}: calibrate again to have one")
        return self.minimum, self.maximum


@dataclass(frozen=True)
class Profile:
    """The outlier columns and input ranges of a model's Linears, for options={"profile": ...}.

    layers: one for each weight; threshold: |x| from which on a feature counted as an outlier; batches: how many were
    run; observer: what chose the ranges; rounded: int8 weights in place of those rounded to nearest, or None, made for
    outliers that are multiplied with `outlier_weights`: "original", and the columns' codes are of no use, or
    "dequantized".
    """

    layers: tuple[ProfiledLayer, ...]
    threshold: float
    batches: int
    observer: str = "absmax"
    rounded: RoundedWeights | None = None
    outlier_weights: str = "original"

    @property
    def has_outlier_columns(self) -> bool:
        """Whether any layer has."""
        return any(layer.outlier_columns for layer in self.layers)

    @property
    def fingerprint(self) -> str:
        """Of the model: SHA-256 over the names, shapes and fingerprints of the weights."""
        text = json.dumps([[layer.weight, layer.shape, layer.fingerprint] for layer in self.layers])
        return hashlib.sha256(text.encode()).hexdigest()

    def names(self, weight: str) -> bool:
        """Whether a parameter of this name is a layer of it."""
        return any(layer.weight == weight for layer in self.layers)

    def columns(self, weight: str, shape: tuple[int, int], tensor: Tensor) -> tuple[int, ...]:
        """The outlier columns of a Linear, see `layer`."""
        return self.layer(weight, shape, tensor).outlier_columns

    def layer(self, weight: str, shape: tuple[int, int], tensor: Tensor) -> ProfiledLayer:
        """What was found of the Linear of `shape` (N, K) that reads `tensor`, a parameter named `weight`.

        Raises ProfileError where this profile was made from another model.
        """
        layer = next((each for each in self.layers if each.weight == weight and each.shape[1] == shape[1]), None)
        if layer is None:
            named = [list(each.shape) for each in self.layers if each.weight == weight]
            found = f"has it with shape {named[0]}" if named else "has no such layer"
            raise ProfileError(f"the profile is of another model: {weight!r} is {list(shape)} here, and it {found}")
        if not is_freed(tensor) and layer.fingerprint != weight_fingerprint(tensor):
            raise ProfileError(
                f"the profile is of another model: the values or the dtype of {weight!r} differ; calibrate this one"
            )
        return layer

    def to_json(self, indent: int | None = 2) -> str:
        """JSON with the schema version and the model's fingerprint."""
        layers = [dataclasses.asdict(layer) for layer in self.layers]
        document = {"schema": SCHEMA_VERSION, "model": self.fingerprint, "threshold": self.threshold}
        document |= {"batches": self.batches, "observer": self.observer}
        document |= {"outlier_weights": self.outlier_weights, "layers": layers}
        document |= {"weights": None if self.rounded is None else self.rounded.digest}
        return json.dumps(document, indent=indent, allow_nan=False)

    def save(self, path: str | os.PathLike) -> None:
        """Write the JSON file, and rounded weights beside it, with .safetensors for its suffix: both or neither.

        Raises OutputError, MissingDependencyError.
        """
        path = Path(path)
        require_writable(path)
        if self.rounded is not None and _beside(path) == path:
            raise OutputError(f"{str(path)!r} is to hold the profile's JSON; its weights take the suffix {path.suffix}")
        with staged(path) as folder:
            (folder / path.name).write_text(self.to_json() + "\n", encoding="utf-8")
            if self.rounded is not None:
                self.rounded.save(_beside(folder / path.name))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Profile":
        """Read what `save` wrote. Raises ProfileError, MissingDependencyError."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ProfileError(f"there is no profile to read at {str(path)!r}: {error.strerror}") from error
        except ValueError as error:
            raise ProfileError(f"{str(path)!r} is not JSON: {error}") from error
        profile = cls.from_document(document, str(path))
        if not document.get("weights"):
            return profile
        rounded = RoundedWeights.load(_beside(Path(path)))
        if rounded.digest != document["weights"]:
            raise ProfileError(f"{str(_beside(Path(path)))!r} does not hold the weights that {str(path)!r} is about")
        return dataclasses.replace(profile, rounded=rounded)

    @classmethod
    def from_document(cls, document: object, source: str = "the profile") -> "Profile":
        """Of parsed JSON, without rounded weights; keys that are not known are left out. Raises ProfileError."""
        if not isinstance(document, dict) or "layers" not in document:
            raise ProfileError(f"{source} is not a profile that int8pass.calibrate wrote")
        if document.get("schema") not in _READABLE:
            raise ProfileError(
                f"{source} has schema version {document.get('schema')!r}, and this int8pass reads "
                f"{' and '.join(map(str, _READABLE))}: calibrate again"
            )
        try:
            layers = tuple(_layer(entry) for entry in document["layers"])
            observer = str(document.get("observer", "absmax"))
            profile = cls(layers, float(document["threshold"]), int(document["batches"]), observer)
            profile = dataclasses.replace(profile, outlier_weights=document.get("outlier_weights", "original"))
        except (KeyError, TypeError, ValueError) as error:
            raise ProfileError(f"{source} is not a whole profile: {type(error).__name__}: {error}") from error
        if document.get("model") != profile.fingerprint:
            raise ProfileError(f"{source} was changed by hand: its fingerprint is not that of its layers")
        return profile


def _beside(path: Path) -> Path:
    """Where the rounded weights of a profile at `path` are."""
    return path.with_suffix(".safetensors")


def _layer(entry: dict) -> ProfiledLayer:
    rows, features = map(int, entry["shape"])
    columns = tuple(sorted({int(column) for column in entry["outlier_columns"]}))
    absmax = float(entry["absmax"])
    if columns and not (0 <= columns[0] and columns[-1] < features):
        raise ValueError(f"outlier_columns of {entry['weight']!r} are not within 0 to {features - 1}")
    minimum, maximum = (None if entry.get(name) is None else float(entry[name]) for name in ("minimum", "maximum"))
    for name, value in (("absmax", absmax), ("minimum", minimum), ("maximum", maximum)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} of {entry['weight']!r} is {value}")
    if (minimum is None) != (maximum is None) or (minimum is not None and minimum > maximum):
        raise ValueError(f"the range of {entry['weight']!r} is {minimum} to {maximum}")
    fingerprint = str(entry["fingerprint"])
    return ProfiledLayer(str(entry["weight"]), (rows, features), absmax, columns, fingerprint, minimum, maximum)


def weight_fingerprint(tensor: Tensor) -> str:
    """The first 16 digits of SHA-256 over dtype, shape and 64 evenly spaced elements of a weight.

    It tells models apart, at each compile, in microseconds: training, casting or another checkpoint changes nearly all
    elements. A few edited ones may go unseen, and the profiled columns hold for them as well as they did before.
    """
    count = tensor.numel()
    positions = torch.linspace(0, max(0, count - 1), min(_SAMPLES, count), dtype=torch.float64).round().long()
    coordinates = torch.unravel_index(positions, tensor.shape)
    values = tensor.detach()[tuple(part.to(tensor.device) for part in coordinates)].float().cpu()
    text = f"{tensor.dtype} {tuple(tensor.shape)} {values.tolist()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
