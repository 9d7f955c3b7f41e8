"""`RoundedWeights`: int8 weights that calibration made, found by the content of the float weight."""

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from int8pass.errors import MissingDependencyError, ProfileError
from int8pass.quantization.scheme import WeightQuantization

_FIELDS = ("codes", "scale", "input_factor")
_DIGITS = 32


@dataclass(frozen=True)
class RoundedWeight:
    """codes: int8[N, K] and scale: float32[N], of weight / input_factor; weight: dotted name of the parameter.

    input_factor: float32[K], which x is to be multiplied with before it is quantized, 1 at outlier columns; or None.
    """

    weight: str
    codes: Tensor
    scale: Tensor
    input_factor: Tensor | None = None


class RoundedWeights:
    """Int8 weights by `content_digest` of the float ones. It takes a WeightQuantization's place: how weights become
    int8. Two of the same content are equal, and one key of the weight cache.
    """

    def __init__(self, weights: Mapping[str, RoundedWeight]) -> None:
        self.weights = dict(weights)
        self.digest = self._digest()

    def of(self, weight: Tensor) -> RoundedWeight:
        """The int8 form of weight [N, K], on its device. Raises ProfileError where this holds none of its content."""
        found = self.weights.get(content_digest(weight))
        if found is None:
            raise ProfileError(
                f"the profile holds no rounded form of a weight of shape {list(weight.shape)}: its values or its dtype "
                "are not those that were calibrated; calibrate again, or take a profile with rounding='nearest'"
            )
        moved = {name: tensor.to(weight.device) for name, tensor in _tensors(found).items()}
        return RoundedWeight(found.weight, **moved)

    @property
    def scales_inputs(self) -> bool:
        """Whether some input has a factor."""
        return any(each.input_factor is not None for each in self.weights.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RoundedWeights) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def save(self, path: Path) -> None:
        """Write a safetensors file: tensors named WEIGHT/DIGEST/codes and so on. Raises MissingDependencyError."""
        require_safetensors()
        from safetensors.torch import save_file

        named = {
            f"{rounded.weight}/{digest}/{name}": tensor.contiguous()
            for digest, rounded in self.weights.items()
            for name, tensor in _tensors(rounded).items()
        }
        save_file(named, path)

    @classmethod
    def load(cls, path: Path) -> "RoundedWeights":
        """Read what `save` wrote. Raises ProfileError, MissingDependencyError."""
        require_safetensors()
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            named = load_file(path)
        except OSError as error:
            raise ProfileError(f"the profile's weights cannot be read from {str(path)!r}: {error}") from error
        except SafetensorError as error:
            raise ProfileError(f"{str(path)!r} is not a safetensors file: {error}") from error
        parts: dict[tuple[str, str], dict[str, Tensor]] = {}
        for key, tensor in named.items():
            weight, _, rest = key.rpartition("/")[0].rpartition("/")
            parts.setdefault((weight, rest), {})[key.rpartition("/")[2]] = tensor
        try:
            return cls({digest: RoundedWeight(weight, **fields) for (weight, digest), fields in parts.items()})
        except TypeError as error:
            raise ProfileError(f"{str(path)!r} does not hold the weights of a profile: {error}") from error

    def _digest(self) -> str:
        text = hashlib.sha256()
        for digest, rounded in sorted(self.weights.items()):
            text.update(digest.encode())
            for name, tensor in _tensors(rounded).items():
                text.update(f"{name} {content_digest(tensor)}".encode())
        return text.hexdigest()[:_DIGITS]


# how weights become int8: as calibration made them, or on the spot
WeightForm = WeightQuantization | RoundedWeights


def _tensors(rounded: RoundedWeight) -> dict[str, Tensor]:
    found = {name: getattr(rounded, name) for name in _FIELDS}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def content_digest(tensor: Tensor) -> str:
    """The first 32 digits of SHA-256 over dtype, shape and every element."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(content)
    return digest.hexdigest()[:_DIGITS]


def require_safetensors() -> None:
    if importlib.util.find_spec("safetensors") is None:
        raise MissingDependencyError(
            "a profile with rounded weights is kept in a safetensors file: pip install safetensors"
        )
