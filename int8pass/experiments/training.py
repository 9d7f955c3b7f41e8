"""Trains the language model on the corpus, once: the result is kept in the user's cache folder.

The weights depend on the settings, on whether the CPU has instructions for bfloat16, and, in the last bits, on the
kernels of the machine.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from int8pass.errors import MissingDependencyError
from int8pass.experiments.corpus import Corpus
from int8pass.experiments.language_model import LanguageModel, ModelSize
from int8pass.experiments.muon import Muon
from int8pass.files import cache_folder, write_bytes

Progress = Callable[[int, float], None]  # step, loss in nats

_WARMUP_SHARE = 0.05  # of the steps


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that the weights depend on beside corpus and machine. batch: sequences a step.

    learning_rate, weight_decay: of the Linears' weights, by Muon; other_learning_rate: of all else, by AdamW.
    """

    size: ModelSize = field(default_factory=ModelSize)
    steps: int = 1200
    batch: int = 8
    learning_rate: float = 0.02
    weight_decay: float = 0.1
    other_learning_rate: float = 4e-3
    seed: int = 0
    corpus_limit: int | None = None


QUICK = TrainingSettings(ModelSize(width=64, depth=2, heads=2, context=64), steps=300, batch=8, corpus_limit=1 << 20)


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
    """Where the weights of these settings are kept.

    Its name is a hash of settings, corpus, torch's release and the dtype of the products.
    """
    release = ".".join(torch.__version__.split(".")[:2])
    key = json.dumps([dataclasses.asdict(settings), corpus.digest, release, str(product_dtype())], sort_keys=True)
    return (folder or cache_folder()) / f"language-model-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def product_dtype() -> torch.dtype:
    """In which matrices are multiplied in training: bfloat16 where an x86 CPU has instructions for it, else float32."""
    found = torch.cpu.get_capabilities()
    return torch.bfloat16 if found.get("avx512_bf16") or found.get("amx_bf16") else torch.float32


def train(settings: TrainingSettings, corpus: Corpus, progress: Progress = lambda step, loss: None) -> LanguageModel:
    """Train from random weights; the learning rates rise at first, then fall to 0."""
    model = LanguageModel(settings.size, settings.seed).train()
    dtype = product_dtype()
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    others = [parameter for parameter in model.parameters() if all(parameter is not weight for weight in weights)]
    optimizers = (
        Muon(weights, settings.learning_rate, settings.weight_decay, dtype),
        torch.optim.AdamW(others, settings.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=True),
    )
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, partial(schedule, settings.steps)) for each in optimizers]
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        sequences = windows(corpus.train, settings.batch, settings.size.context + 1, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = next_byte_loss(model, sequences)
        model.zero_grad()
        loss.backward()
        for each in (*optimizers, *schedules):
            each.step()
        progress(step + 1, loss.item())
    return model


def schedule(steps: int, step: int) -> float:
    """The share of the learning rate at a step of so many: a linear rise, then a linear fall, at the end to 0."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))


def windows(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """`count` random pieces of uint8[bytes]: int64[count, length]."""
    starts = torch.randint(len(text) - length + 1, (count,), generator=generator)
    return torch.stack([text[start : start + length] for start in starts.tolist()]).long()


def next_byte_loss(model: Callable[[Tensor], Tensor], sequences: Tensor) -> Tensor:
    """Mean cross-entropy, in nats a byte, of predicting each byte of int64[B, S + 1] from those before it."""
    logits = model(sequences[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), sequences[:, 1:].flatten())
