"""Table 1 of LLM.int8() (Dettmers et al. 2022) in miniature: perplexity of each scheme as outlier features are planted.

Where the paper goes from 125M to 13B parameters, a small model gets more and larger outlier features step by step.
"""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from int8pass.experiments.amplification import amplify, largest_features
from int8pass.experiments.corpus import Corpus
from int8pass.experiments.language_model import LanguageModel
from int8pass.experiments.perplexity import evenly_spaced_batches, perplexity
from int8pass.experiments.training import QUICK as QUICK_TRAINING
from int8pass.experiments.training import TrainingSettings, product_dtype
from int8pass.quantization.calibrate import calibrate
from int8pass.quantization.scheme import DEFAULT, SCHEMES

SCHEMA = "int8pass-table1/1"
STATEMENT = (
    "The outlier features are planted, not learned: in each setting (k, s), k features of every LayerNorm that feeds "
    "Linears are made s times larger and the weight columns that read them s times smaller. In float32 the model stays "
    "what it was."
)


@dataclass(frozen=True)
class Row:
    """A row of the table. options: of the backend; None: float32, not rewritten. static: ranges of activations, and
    outlier columns, are those of training text.
    """

    name: str
    options: Mapping[str, Any] | None
    static: bool = False


FLOAT32 = Row("float32", None)
DEQUANTIZED = Row(f"{DEFAULT.name}, dequantized outlier weights", {"outlier_weights": "dequantized"})
ROWS = (FLOAT32, *(Row(name, {"scheme": name}) for name in SCHEMES), DEQUANTIZED)
STATIC_SUFFIX = ", static activations"
STATIC_ROWS = tuple(Row(name + STATIC_SUFFIX, {"scheme": name}, static=True) for name in SCHEMES)


@dataclass(frozen=True)
class Planting:
    """A column of the table: `features` outlier features, `scale` times larger."""

    features: int
    scale: float

    def __str__(self) -> str:
        return f"({self.features}, {self.scale:g})"


@dataclass(frozen=True)
class Table1Settings:
    """pieces: how many pieces of held-out text, each as long as the model's context, the perplexity is taken over."""

    training: TrainingSettings = field(default_factory=TrainingSettings)
    plantings: tuple[Planting, ...] = (
        Planting(0, 1), Planting(1, 16), Planting(6, 24), Planting(6, 60), Planting(20, 8)
    )  # fmt: skip
    pieces: int = 256
    batch: int = 16


QUICK = Table1Settings(QUICK_TRAINING, (Planting(0, 1), Planting(3, 60)), pieces=32)


@dataclass(frozen=True)
class Cell:
    """One perplexity, per byte. row: its name."""

    row: str
    planting: Planting
    perplexity: float


@dataclass(frozen=True)
class Table1:
    """What was found. corpus: its size and digest; machine: versions that the figures depend on."""

    settings: Table1Settings
    cells: tuple[Cell, ...]
    corpus: dict[str, Any]
    machine: dict[str, str]

    def perplexity(self, row: str, planting: Planting) -> float:
        return next(cell.perplexity for cell in self.cells if (cell.row, cell.planting) == (row, planting))

    def increase(self, row: str, planting: Planting) -> float:
        """Perplexity over that of float32, less 1."""
        return self.perplexity(row, planting) / self.perplexity(FLOAT32.name, planting) - 1

    @property
    def rows(self) -> list[str]:
        """Their names, in the order of the table."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    def to_json(self) -> str:
        """JSON with a schema name, the statement that the outliers are planted, settings and cells."""
        return json.dumps({"schema": SCHEMA, "statement": STATEMENT, **asdict(self)}, indent=1, allow_nan=False)


def run_table1(
    model: LanguageModel,
    corpus: Corpus,
    settings: Table1Settings,
    rows: Sequence[Row] = ROWS,
    progress: Callable[[str], None] = lambda text: None,
) -> Table1:
    """Perplexity of every row under every planting. `progress` is told what was done, once a cell."""
    size = settings.training.size
    batches = evenly_spaced_batches(corpus.validation, settings.pieces, size.context, settings.batch)
    trained_on = evenly_spaced_batches(corpus.train, settings.pieces, size.context, settings.batch)
    cells = []
    for planting in settings.plantings:
        features = largest_features(model, trained_on[0][:, :-1], planting.features)
        amplified = amplify(model, features, planting.scale)
        for row in rows:
            value = row_perplexity(amplified, row, batches, trained_on)
            cells.append(Cell(row.name, planting, value))
            progress(f"{planting} {row.name}: {value:.4f}")
    described = {"train": len(corpus.train), "validation": len(corpus.validation), "digest": corpus.digest}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    versions["products"] = str(product_dtype())
    return Table1(settings, tuple(cells), described, versions)


def row_perplexity(
    model: LanguageModel, row: Row, batches: Sequence[Tensor], trained_on: Sequence[Tensor] = ()
) -> float:
    """Perplexity with the model compiled under a row's options; the int8 products are integer products.

    trained_on: int64[B, S + 1] batches to calibrate a static row on. The eager lowering runs the ops as they are, so
    that no C++ compiler is needed.
    """
    if row.options is None:
        return perplexity(model, batches)
    options = {**row.options, "lowering": "eager"}
    if row.static:
        profile = calibrate(model, [batch[:, :-1] for batch in trained_on], options=options, progress=False)
        options |= {"activations": "static", "profile": profile}
    torch._dynamo.reset()
    return perplexity(torch.compile(model, backend="int8mixed", options=options), batches)
