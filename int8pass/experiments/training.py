"""Trains the language model on the corpus, once: the result is kept in the user's cache folder.

The weights depend on the settings alone (and, in the last bits, on the machine's float32 kernels).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from int8pass.errors import MissingDependencyError
from int8pass.experiments.corpus import Corpus
from int8pass.experiments.language_model import LanguageModel, ModelSize
from int8pass.files import cache_folder, write_bytes

Progress = Callable[[int, float], None]  # step, loss in nats

_WARMUP_SHARE = 0.05  # of the steps
_FINAL_SHARE = 0.1  # of the learning rate
_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that the weights depend on beside the corpus. batch: sequences a step."""

    size: ModelSize = field(default_factory=ModelSize)
    steps: int = 1200
    batch: int = 8
    learning_rate: float = 1.3e-3
    weight_decay: float = 0.1
    seed: int = 0
    corpus_limit: int | None = None


QUICK = TrainingSettings(
    ModelSize(width=64, depth=2, heads=2, context=64), steps=300, batch=8, learning_rate=4e-3, corpus_limit=1 << 20
)


def trained_model(
    settings: TrainingSettings,
    corpus: Corpus,
    folder: Path | None = None,
    retrain: bool = False,
    progress: Progress = lambda step, loss: None,
) -> LanguageModel:
    """The model of these settings from `folder`, or trained now and kept there. In eval mode, without gradients.

    folder: by default the user's cache folder, or $INT8PASS_CACHE_DIR. retrain: train again whatever is there. Raises
    MissingDependencyError.
    """
    try:
        from safetensors.torch import load_file, save
    except ImportError as error:
        raise MissingDependencyError(
            "trained weights are kept in safetensors: pip install 'int8pass[examples]'"
        ) from error
    path = cache_path(settings, corpus, folder)
    if retrain or not path.exists():
        trained = train(settings, corpus, progress)
        write_bytes(path, save(trained.state_dict()))
    model = LanguageModel(settings.size, settings.seed)
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


def cache_path(settings: TrainingSettings, corpus: Corpus, folder: Path | None = None) -> Path:
    """Where the weights of these settings are kept: its name is a hash of settings, corpus and torch's release."""
    release = ".".join(torch.__version__.split(".")[:2])
    key = json.dumps([dataclasses.asdict(settings), corpus.digest, release], sort_keys=True)
    return (folder or cache_folder()) / f"language-model-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def train(settings: TrainingSettings, corpus: Corpus, progress: Progress = lambda step, loss: None) -> LanguageModel:
    """Train from random weights by AdamW, with warmup and a cosine decay of the learning rate."""
    model = LanguageModel(settings.size, settings.seed).train()
    # biases, norms and embeddings do not decay
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    others = [parameter for parameter in model.parameters() if all(parameter is not each for each in decayed)]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), foreach=True)
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings.steps)
        sequences = windows(corpus.train, settings.batch, settings.size.context + 1, generator)
        loss = next_byte_loss(model, sequences)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
        optimizer.step()
        progress(step + 1, loss.item())
    return model


def schedule(step: int, steps: int) -> float:
    """The share of the learning rate at a step: a linear rise, then half a cosine down to a tenth."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return _FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


def windows(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """`count` random pieces of uint8[bytes]: int64[count, length]."""
    starts = torch.randint(len(text) - length + 1, (count,), generator=generator)
    return torch.stack([text[start : start + length] for start in starts.tolist()]).long()


def next_byte_loss(model: Callable[[Tensor], Tensor], sequences: Tensor) -> Tensor:
    """Mean cross-entropy, in nats a byte, of predicting each byte of int64[B, S + 1] from those before it."""
    logits = model(sequences[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), sequences[:, 1:].flatten())
