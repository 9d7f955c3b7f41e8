"""Training learns, follows its settings, and happens once: the weights are kept in a folder."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from int8pass.experiments.corpus import Corpus
from int8pass.experiments.language_model import ModelSize
from int8pass.experiments.training import TrainingSettings, cache_path, next_byte_loss, schedule, trained_model, windows

SETTINGS = TrainingSettings(
    ModelSize(width=16, depth=1, heads=2, context=16), steps=60, batch=8, other_learning_rate=3e-2
)


@pytest.fixture(scope="module")
def corpus():
    text = torch.frombuffer(bytearray(b"abcdefgh" * 200), dtype=torch.uint8)
    return Corpus(text, text[:400], "digest")


def test_the_loss_falls_far_below_that_of_guessing(corpus, tmp_path):
    losses = []
    trained_model(SETTINGS, corpus, tmp_path, progress=lambda step, loss: losses.append((step, loss)))
    assert [step for step, _ in losses] == list(range(1, 61))
    assert losses[0][1] == pytest.approx(math.log(256), rel=0.05)
    assert losses[-1][1] < 0.5 * math.log(8)  # eight bytes, each of which is certain from the one before


def test_weights_come_from_the_folder_the_second_time(corpus, tmp_path):
    steps = []

    def model(settings=SETTINGS, text=corpus, **options):
        steps.clear()
        return trained_model(settings, text, tmp_path, progress=lambda step, _: steps.append(step), **options)

    first = model().state_dict()
    assert len(steps) == 60
    again = model()
    assert not steps and not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert all(torch.equal(first[name], value) for name, value in again.state_dict().items())
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    repeated = model(retrain=True).state_dict()
    assert len(steps) == 60
    assert all(torch.equal(first[name], value) for name, value in repeated.items())
    model(TrainingSettings(SETTINGS.size, steps=3, batch=8))
    assert len(steps) == 3
    model(text=Corpus(corpus.train, corpus.validation, "another"))
    assert len(steps) == 60


def test_an_interrupted_training_leaves_nothing(corpus, tmp_path):
    def interrupt(step, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained_model(SETTINGS, corpus, tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_learning_rate_rises_and_falls():
    shares = [schedule(100, step) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[4:] == pytest.approx([(96 - step) / 96 for step in range(96)])
    assert schedule(1, 0) == 1.0


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_products_are_bfloat16_only_where_the_cpu_has_it(monkeypatch, corpus, tmp_path, instructions, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    dtypes = set()

    def note(module, inputs, output):
        if isinstance(module, nn.Linear):
            dtypes.add(output.dtype)

    hook = register_module_forward_hook(note)
    try:
        trained_model(TrainingSettings(SETTINGS.size, steps=2, batch=8), corpus, tmp_path)
    finally:
        hook.remove()
    assert dtypes == {expected}


def test_weights_of_another_dtype_are_kept_apart(monkeypatch, corpus, tmp_path):
    paths = set()
    for has_bfloat16 in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=has_bfloat16: {"avx512_bf16": found})
        paths.add(cache_path(SETTINGS, corpus, tmp_path))
    assert len(paths) == 2


def test_windows_are_pieces_of_the_text():
    text = torch.arange(100, dtype=torch.uint8)
    found = windows(text, 50, 7, torch.Generator().manual_seed(0))
    assert found.dtype == torch.int64 and found.shape == (50, 7)
    assert torch.equal(found - found[:, :1], torch.arange(7).expand(50, 7))
    assert len(found[:, 0].unique()) > 20


def test_the_loss_is_of_the_next_byte():
    sequences = torch.tensor([[1, 2, 3]])

    def next_number(tokens):
        return 50.0 * torch.nn.functional.one_hot(tokens + 1, 256).float()

    assert float(next_byte_loss(next_number, sequences)) == pytest.approx(0.0, abs=1e-6)
    assert float(next_byte_loss(lambda tokens: torch.zeros(1, 2, 256), sequences)) == pytest.approx(math.log(256))


def test_without_safetensors_the_extra_is_named_before_any_training(corpus):
    code = """if True:
        import sys
        sys.modules["safetensors"] = None
        from int8pass.errors import MissingDependencyError
        from int8pass.experiments.training import TrainingSettings, trained_model
        try:
            trained_model(TrainingSettings(), None)
        except MissingDependencyError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'int8pass[examples]'" in done.stdout, done.stderr
