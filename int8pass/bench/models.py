"""`int8pass bench models`: whole models, every contestant in one run.

gpt2 and opt: decoders of random weights, see `decoders`: prefill of one and of eight prompts of 128 tokens (logits of
the last position), one token with the prompt in the cache, and 32 tokens generated greedily from a prompt: prefill,
then token after token, as generate() does. A contestant compiled by torch.compile has three graphs, of static shapes.
minilm: the trained all-MiniLM-L6-v2 on sentences, in batches of 16, see `minilm`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from int8pass.bench import decoders, minilm
from int8pass.bench.decoders import LENGTH, NEW_TOKENS, Decoder
from int8pass.bench.measure import (
    LIMIT_SECONDS,
    Prepared,
    Progress,
    Unavailable,
    chosen,
    compiling,
    measure,
    quiet,
    relative_error,
    timed,
)
from int8pass.bench.model_peers import CONTESTANTS, INT8MIXED, ModelContestant
from int8pass.bench.results import BASELINE, Case

MODELS = ("gpt2", "opt", "minilm")
BATCH = 8
SENTENCES = 128
QUICK_BATCH = 2
QUICK_NEW_TOKENS = 4
QUICK_SENTENCES = 8
_SKIP_SECONDS = 30.0  # a call that would take longer is not made


@dataclass(frozen=True)
class ModelSettings:
    """models: of MODELS; peers: globs, none means all; quick: tiny models, int8mixed without Inductor."""

    models: Sequence[str] = MODELS
    rounds: int = 10
    threads: int = 1
    peers: Sequence[str] = ()
    quick: bool = False


@dataclass(frozen=True)
class Task:
    """One case of a decoder. ready: brings a decoder into the state that `run` starts from. share: of a prefill of one
    prompt, about how long `run` takes."""

    name: str
    unit: str
    run: Callable[[Decoder], Tensor]
    ready: Callable[[Decoder], object] = lambda decoder: None
    units: int = 1
    share: float = 1.0
    has_logits: bool = True


def run_models(settings: ModelSettings, progress: Progress = lambda message: None) -> tuple[Case, ...]:
    """Measure every model. Raises ConfigError for a glob without match, MissingDependencyError without transformers."""
    contestants = chosen(CONTESTANTS, settings.peers, always=[BASELINE])
    if settings.quick:
        contestants = [_without_inductor(contestant) for contestant in contestants]
    cases: list[Case] = []
    for name in settings.models:

        def at_model(text: str, name: str = name) -> None:
            progress(f"{name}: {text}")

        with compiling():
            run = _run_minilm if name == "minilm" else partial(_run_decoder, name)
            cases += run(contestants, settings, at_model)
    return tuple(cases)


def _without_inductor(contestant: ModelContestant) -> ModelContestant:
    if contestant.compile is None or contestant.compile.get("backend") != INT8MIXED["backend"]:
        return contestant
    options = {**contestant.compile.get("options", {}), "lowering": "eager"}
    return replace(contestant, compile={**contestant.compile, "options": options})


def _run_decoder(
    name: str, contestants: Sequence[ModelContestant], settings: ModelSettings, progress: Progress
) -> list[Case]:
    torch.manual_seed(0)
    with quiet():  # transformers imports torchao, which tells of each CUDA extension that it cannot load
        model = getattr(decoders, name)(settings.quick)
    batch = QUICK_BATCH if settings.quick else BATCH
    prompts = torch.randint(3, model.config.vocab_size, (batch, LENGTH))
    reference = CONTESTANTS[0].decoder(model, settings.threads, batch)
    loaded: dict[str, Decoder | Exception] = {}
    first: dict[str, float] = {}  # seconds of the first task, the prefill of one prompt
    cases = []
    for task in _tasks(prompts, QUICK_NEW_TOKENS if settings.quick else NEW_TOKENS):
        task.ready(reference)
        expected = task.run(reference)

        def prepare(contestant: ModelContestant, task: Task = task, expected: Tensor = expected) -> Prepared:
            decoder = _load(loaded, contestant, lambda: contestant.decoder(model, settings.threads, batch))
            return _prepare(decoder, task, expected, first, contestant.name)

        found = measure(contestants, prepare, settings.rounds, lambda text, at=task.name: progress(f"{at}: {text}"))
        facts = {
            "model": name,
            "task": task.name,
            "unit": task.unit,
            "error": "logits error" if task.has_logits else "error",
        }
        cases.append(Case(f"{name}, {task.name}", facts, found))
    return cases


def _load(loaded: dict[str, Any], contestant: ModelContestant, build: Callable[[], Any]) -> Any:
    """A contestant's decoder, prepared once for all tasks; where that failed, it fails again."""
    if contestant.name not in loaded:
        try:
            loaded[contestant.name] = build()
        except Exception as error:  # kept for the row of each task
            loaded[contestant.name] = error
    if isinstance(loaded[contestant.name], Exception):
        raise loaded[contestant.name]
    return loaded[contestant.name]


def _tasks(prompts: Tensor, new_tokens: int = NEW_TOKENS) -> tuple[Task, ...]:
    batch = len(prompts)
    one, token = prompts[:1], prompts[:1, :1]

    def step(decoder: Decoder) -> Tensor:
        decoder.rewind(LENGTH)
        return decoder.next(token)

    return (
        Task(f"prefill 1x{LENGTH}", "prompt", lambda decoder: decoder.prefill(one)),
        Task(f"prefill {batch}x{LENGTH}", "batch", lambda decoder: decoder.prefill(prompts), share=batch),
        Task("one token", "token", step, ready=lambda decoder: decoder.prefill(one)),
        Task(
            f"generate {new_tokens}",
            "token",
            lambda decoder: decoders.generate(decoder, one, new_tokens),
            units=new_tokens,
            share=new_tokens / 8,
            has_logits=False,
        ),
    )


def _prepare(decoder: Decoder, task: Task, expected: Tensor, first: dict[str, float], name: str) -> Prepared:
    if (predicted := first.get(name, 0.0) * task.share) > _SKIP_SECONDS:
        raise Unavailable(
            f"not run: about {predicted:.0f} s a call, as a prefill of one prompt took {first[name]:.0f} s"
        )
    task.ready(decoder)
    output = task.run(decoder)
    error = relative_error(output, expected) if task.has_logits else float("nan")
    _, seconds = timed(lambda: task.run(decoder))
    first.setdefault(name, seconds)
    slow = seconds / task.units if seconds > LIMIT_SECONDS else None
    return Prepared(lambda: task.run(decoder), task.units, error=error, seconds=slow)


def _run_minilm(contestants: Sequence[ModelContestant], settings: ModelSettings, progress: Progress) -> list[Case]:
    with quiet():
        loaded = minilm.load()
    batches = loaded.batches(minilm.sentences(QUICK_SENTENCES if settings.quick else SENTENCES))
    model: nn.Module = loaded.model
    reference = minilm.embed(model, batches)

    def prepare(contestant: ModelContestant) -> Prepared:
        call = contestant.encoder(model, settings.threads, batches[0])
        embeddings = minilm.embed(call, batches)
        run = partial(minilm.embed, call, batches)
        _, seconds = timed(run)
        slow = seconds / len(batches) if seconds > LIMIT_SECONDS else None
        return Prepared(run, len(batches), error=minilm.cosine_error(embeddings, reference), seconds=slow)

    found = measure(contestants, prepare, settings.rounds, progress)
    facts = {"model": "minilm", "task": "embed", "unit": "batch of 16", "error": "1 - cosine"}
    return [Case("minilm, batches of 16 sentences", facts, found)]
