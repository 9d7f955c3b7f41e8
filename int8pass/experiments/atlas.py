"""The outlier atlas: which features of a transformer are outliers, in what share of its layers and positions.

The definitions are those of LLM.int8() (Dettmers et al. 2022), section 4.1, Table 4 and Figure 3. A feature is one
dimension of the hidden state, followed through all layers at the inputs of the attention projections (q, k, v, output)
and of the first Linear of the feedforward block. It is an outlier feature if it reaches |x| >= 6 in at least 25 % of
the layers and at 6 % of the positions; a position is one of a sequence in one layer.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from int8pass.errors import ConfigError

SCHEMA = "int8pass-atlas/1"
MAGNITUDE = 6.0
LAYER_SHARE = 0.25
POSITION_SHARE = 0.06

Inputs = tuple[tuple, Mapping[str, Any]]  # args and kwargs of one call; "attention_mask" in kwargs marks the padding


@dataclass(frozen=True)
class Place:
    """An input that is looked at: of the Linear `module`, in a layer counted from 0. name: what stands there."""

    layer: int
    name: str
    module: str


@dataclass(frozen=True)
class Feature:
    """A feature with |x| >= 6 somewhere.

    layers: share of the layers in which it does, at one of their places; positions: share of the (layer, position)
    pairs at which it does. quartiles: first, second and third of the values, with their sign, that reach 6.
    one_sided: all of them have one sign. largest: the largest |x|.
    """

    index: int
    layers: float
    positions: float
    quartiles: tuple[float, float, float]
    one_sided: bool
    largest: float

    @property
    def is_outlier(self) -> bool:
        """Whether this is an outlier feature as the paper defines it."""
        return self.layers >= LAYER_SHARE and self.positions >= POSITION_SHARE


@dataclass(frozen=True)
class Atlas:
    """features: those that reach 6 anywhere, most frequent first; width: of the hidden state; peaks: float32[places,
    width], the largest |x|. layers_affected, positions_affected: shares in which an outlier feature occurs (Figure 3).
    """

    features: tuple[Feature, ...]
    places: tuple[Place, ...]
    width: int
    positions: int
    peaks: Tensor
    layers_affected: float
    positions_affected: float

    @property
    def outliers(self) -> tuple[Feature, ...]:
        """The outlier features of the paper's definition."""
        return tuple(feature for feature in self.features if feature.is_outlier)

    @property
    def largest_other(self) -> float:
        """The largest |x| of the features that are no outlier features."""
        others = torch.ones(self.width, dtype=torch.bool)
        others[[feature.index for feature in self.outliers]] = False
        return float(self.peaks[:, others].max())

    def to_json(self) -> str:
        """JSON with a schema name and the definition's three numbers."""
        definition = {"magnitude": MAGNITUDE, "layer_share": LAYER_SHARE, "position_share": POSITION_SHARE}
        features = [{**asdict(feature), "is_outlier": feature.is_outlier} for feature in self.features]
        rest = {name: getattr(self, name) for name in ("width", "positions", "layers_affected", "positions_affected")}
        places = [asdict(place) for place in self.places]
        document = {"schema": SCHEMA, "definition": definition, **rest, "features": features, "places": places}
        return json.dumps({**document, "peaks": self.peaks.tolist()}, indent=1, allow_nan=False)


def outlier_atlas(
    model: nn.Module,
    places: Sequence[Place],
    batches: Sequence[Inputs],
    progress: Callable[[str], None] = lambda text: None,
) -> Atlas:
    """Run the model on batches and look at its places, all of one width. `progress` is told each batch's size.

    Raises ConfigError without batches.
    """
    if not batches:
        raise ConfigError("there was no batch to run the model on")
    layers = max(place.layer for place in places) + 1
    present: list[Tensor] = []  # a batch each: bool[layers, positions, width]
    values: list[Tensor] = []  # those that reach 6
    owners: list[Tensor] = []  # and the features that they belong to
    peaks: Tensor | None = None
    with _watched(model, places) as seen, torch.no_grad():
        for args, kwargs in batches:
            model(*args, **kwargs)
            rows = [_kept_rows(seen[place], kwargs.get("attention_mask")) for place in places]
            over = [part.abs() >= MAGNITUDE for part in rows]
            found = torch.zeros((layers, *rows[0].shape), dtype=torch.bool)
            for place, part, outliers in zip(places, rows, over, strict=True):
                found[place.layer] |= outliers
                values.append(part[outliers])
                owners.append(outliers.nonzero()[:, 1])
            present.append(found)
            largest = torch.stack([part.abs().amax(0) for part in rows])
            peaks = largest if peaks is None else torch.maximum(peaks, largest)
            progress(f"{len(rows[0])} positions")
    everywhere = torch.cat(present, 1)
    features = _features(everywhere, torch.cat(values), torch.cat(owners))
    outliers = everywhere[:, :, [feature.index for feature in features if feature.is_outlier]].any(2)
    return Atlas(
        features,
        tuple(places),
        everywhere.shape[2],
        everywhere.shape[1],
        peaks,
        layers_affected=float(outliers.any(1).float().mean()),
        positions_affected=float(outliers.float().mean()),
    )


def _features(everywhere: Tensor, values: Tensor, owners: Tensor) -> tuple[Feature, ...]:
    """everywhere: bool[layers, positions, width]; values and the features that they belong to, in any order."""
    layers, positions = everywhere.any(1).double().mean(0), everywhere.double().mean((0, 1))
    found = []
    for index in owners.unique().tolist():
        own = values[owners == index].double()
        quartiles = tuple(own.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist())
        one_sided = bool((own > 0).all() or (own < 0).all())
        shares = float(layers[index]), float(positions[index])
        found.append(Feature(index, *shares, quartiles, one_sided, float(own.abs().max())))
    return tuple(sorted(found, key=lambda feature: (-feature.positions, feature.index)))


def _kept_rows(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """x [B, S, width] without the padding, as float32[positions, width]."""
    rows = x.flatten(0, -2).float()
    return rows if attention_mask is None else rows[attention_mask.flatten().bool()]


@contextlib.contextmanager
def _watched(model: nn.Module, places: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """What stood at each place in the last call."""
    seen: dict[Place, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for place in places:

            def keep(module: nn.Module, args: tuple, place: Place = place) -> None:
                seen[place] = args[0]

            hooks.callback(model.get_submodule(place.module).register_forward_pre_hook(keep).remove)
        yield seen


# --- where the places are


def bert_places(layers: int) -> list[Place]:
    """Of a transformers BertModel."""
    names = {
        "q, k, v": "attention.self.query", "attention output": "attention.output.dense", "FFN": "intermediate.dense"
    }  # fmt: skip
    return [
        Place(layer, name, f"encoder.layer.{layer}.{module}")
        for layer in range(layers)
        for name, module in names.items()
    ]


def language_model_places(layers: int) -> list[Place]:
    """Of int8pass.experiments.language_model."""
    names = {"q, k, v": "q", "attention output": "out", "FFN": "fc1"}
    return [Place(layer, name, f"layers.{layer}.{module}") for layer in range(layers) for name, module in names.items()]
