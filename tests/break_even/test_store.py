"""Results on disk: kept under all that they depend on, and nothing else; a bad file is measured again."""

import dataclasses
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from int8pass.break_even import store
from int8pass.break_even.case import Case
from int8pass.config import Int8MixedConfig
from int8pass.kernels import identity

F32 = torch.float32
CASE = Case(16, 64, 32, F32, F32, F32, F32, torch.device("cpu"))
CONFIG = Int8MixedConfig(break_even="measured")
KEY = store.key_of(CASE, CONFIG)


def forget(monkeypatch):
    monkeypatch.setattr(store, "_known", {})


def test_what_is_saved_is_loaded_by_another_process(folder, monkeypatch):
    assert store.load(KEY) is None
    store.save(KEY, 1.25)
    forget(monkeypatch)
    assert store.load(KEY) == 1.25
    (file,) = folder.iterdir()
    assert json.loads(file.read_text()) == {"speedup": 1.25, "key": KEY}


@pytest.mark.parametrize(
    "change",
    (
        {"rows": 17}, {"in_features": 65}, {"out_features": 33}, {"input": torch.bfloat16}, {"weight": torch.float16},
        {"output": torch.bfloat16}, {"bias": None}, {"differentiable": True}, {"profiled": 3},
    ),
    ids=str,
)  # fmt: skip
def test_another_linear_has_another_key(change):
    assert store.key_of(dataclasses.replace(CASE, **change), CONFIG) != KEY


@pytest.mark.parametrize(
    "change",
    (
        {"threshold": 0.0}, {"outliers": "token"}, {"outlier_weights": "dequantized"}, {"lowering": "eager"},
        {"mode": "max-autotune"}, {"inductor": {"cpp.threads": 1}}, {"free_weights": True},
    ),
    ids=str,
)  # fmt: skip
def test_options_that_change_what_runs_change_the_key(change):
    """free_weights does so too: it makes outlier columns come from int8."""
    assert store.key_of(CASE, dataclasses.replace(CONFIG, **change)) != KEY


@pytest.mark.parametrize(
    "change", ({"skip_modules": ("a",)}, {"skip_modules_default": False}, {"dump_dir": "a"}), ids=str
)
def test_options_about_other_things_do_not(change):
    assert store.key_of(CASE, dataclasses.replace(CONFIG, **change)) == KEY


def test_machine_and_versions_are_in_the_key(monkeypatch):
    assert KEY["torch"] == torch.__version__ and KEY["threads"] == str(torch.get_num_threads())
    for name in ("device_in_words", "kernel_version"):
        with monkeypatch.context() as changed:
            changed.setattr(store, name, lambda *device: "another")
            assert store.key_of(CASE, CONFIG) != KEY
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert store.key_of(CASE, CONFIG)["torch"] == "0.0"


def test_the_kernel_version_follows_the_sources(monkeypatch, tmp_path):
    sources = tmp_path / "kernels" / "cuda"
    sources.mkdir(parents=True)
    (sources / "a.py").write_text("one")
    monkeypatch.setattr(identity, "__file__", str(tmp_path / "kernels" / "identity.py"))
    first = identity.kernel_version.__wrapped__()
    (sources / "a.py").write_text("two")
    assert identity.kernel_version.__wrapped__() != first


@pytest.mark.parametrize(
    "content",
    ("", "{", "[1.0]", "{}", '{"speedup": 2.0}', '{"speedup": 2.0, "key": {}}', "\xff", "SPEEDUP NaN", "SPEEDUP -1.0",
     'SPEEDUP "2.0"', "SPEEDUP Infinity"),
)  # fmt: skip
def test_a_file_that_is_not_what_was_written_is_measured_again(content, folder, monkeypatch, caplog):
    store.save(KEY, 2.0)
    (file,) = folder.iterdir()
    key = json.dumps(KEY)
    if content.startswith("SPEEDUP"):
        content = f'{{"speedup": {content.removeprefix("SPEEDUP")}, "key": {key}}}'
    file.write_bytes(content.encode("latin-1"))
    forget(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="int8pass"):
        assert store.load(KEY) is None
    assert "measured again" in caplog.text
    store.save(KEY, 3.0)
    forget(monkeypatch)
    assert store.load(KEY) == 3.0


def test_a_folder_that_cannot_be_written_to_is_said_and_the_process_remembers(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr(store, "cache_folder", lambda: tmp_path / "file")
    with caplog.at_level(logging.WARNING, logger="int8pass"):
        store.save(KEY, 1.5)
    assert "another process will measure it again" in caplog.text and store.load(KEY) == 1.5


def test_writers_at_the_same_time_never_leave_half_a_file(folder, monkeypatch, caplog):
    speedups = [1.0 + number / 64 for number in range(64)]

    def write_and_read(speedup):
        store.save(KEY, speedup)
        store._known.clear()  # read from disk, as another process does
        return store.load(KEY)

    with caplog.at_level(logging.WARNING, logger="int8pass"), ThreadPoolExecutor(8) as threads:
        assert set(threads.map(write_and_read, speedups)) <= set(speedups)
    assert not caplog.text and len(list(folder.iterdir())) == 1
