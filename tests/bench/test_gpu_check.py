"""The GPU benchmark's check of the kernels: what it covers, what a failure becomes, and what is then not timed."""

import importlib.util
import itertools
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from int8pass.bench import gpu, gpu_check, gpu_check_processes, gpu_measure
from int8pass.bench.gpu_check import DTYPES, LARGE, LISTED, RULES, SMALL, TIMED, WITH_A_PROFILE, Check, Task, why_not
from int8pass.bench.gpu_check_processes import Record, in_processes
from int8pass.bench.gpu_choices import Stopwatch
from int8pass.bench.measure import Unavailable
from int8pass.bench.results import Run
from int8pass.kernels.cuda import fused
from tests.kernels.interpreter import INTERPRETER_FAULT

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent.parent
TINY = Task((2, 8, 4), torch.float16, RULES[:1])
HANGING = Task((2, 8, 8), torch.float16, RULES[:1])  # by `work`


def fail(*arguments):
    raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nand more")


def right(x, threshold, per_token, columns):
    """cuda_quantize at threshold 0, without Triton."""
    codes, scale = gpu_check._absmax(x.float())
    return codes, scale, torch.empty(0, dtype=torch.int32)


def test_what_is_checked():
    tasks = gpu_check.tasks(large=True)
    assert len(set(tasks)) == len(tasks)
    met: dict[tuple, set] = {}
    for task in [task for task in tasks if task.rules != (LISTED,)]:
        met.setdefault(task.shape, set()).update((task.dtype, rule) for rule in task.rules)
    every = set(itertools.product(DTYPES, RULES))
    assert all(met[shape] == every for shape in SMALL + TIMED)
    for shape in LARGE:
        dtypes, rules = zip(*met[shape], strict=True)
        assert set(dtypes) == set(DTYPES) and set(rules) == set(RULES)
    assert set().union(*(met[shape] for shape in LARGE if shape[0] <= 16)) == every
    assert {math.gcd(features, 16) for _, features, _ in met} == {1, 2, 4, 8, 16}  # what kernels are compiled for
    assert {task.shape for task in gpu_check.tasks(large=False)} == set(SMALL)
    listed = [task for task in tasks if task.rules == (LISTED,)]
    assert [task.shape for task in listed] == [*SMALL, *WITH_A_PROFILE] and set(WITH_A_PROFILE) < set(LARGE)
    assert [task.dtype for task in listed] == [*DTYPES, *DTYPES]
    assert [task for task in gpu_check.tasks(large=False) if LISTED in task.rules] == listed[:3]


def test_a_norm_is_checked_whose_rows_do_not_fit_in_registers():
    pytest.importorskip("triton")
    from int8pass.kernels.cuda.norm_quantize import _LARGEST_BLOCK

    met = [task for task in gpu_check.tasks(large=True) if task.shape[1] > _LARGEST_BLOCK]
    assert {task.dtype for task in met} == set(DTYPES)
    assert {rule for task in met for rule in task.rules} == {*RULES, LISTED}


def test_rules_in_words_and_as_the_ops_take_them():
    assert [str(rule) for rule in RULES] == ["threshold 0.0, column", "threshold 6.0, column", "threshold 6.0, token"]
    assert [rule.arguments(9) for rule in RULES] == [(0.0, False, None), (6.0, False, None), (6.0, True, None)]
    assert str(LISTED) == "listed columns" and LISTED.arguments(3) == (0.0, False, (0, 1, 2))
    x, *_ = gpu_check._inputs(9, 400, 12, torch.float32)
    threshold, per_token, columns = LISTED.arguments(400)
    assert columns == tuple(sorted(x.abs().amax(0).topk(4).indices.tolist())) and not threshold and not per_token
    assert set(x.abs().argmax(1).tolist()) <= set(columns)  # without them a row has another scale


def test_an_op_that_overlooks_a_profiles_columns_is_wrong(monkeypatch):
    monkeypatch.setattr(fused, "cuda_quantize", right)
    monkeypatch.setattr(gpu_check, "_ops", lambda x, parts, rest: {})
    monkeypatch.setattr(gpu_check, "_norm_error", lambda *arguments: 0.5)
    listed = Task((3, 32, 4), torch.float16, (LISTED,))
    quantize, norm = gpu_check.summary(gpu_check.findings(listed, CPU))
    assert quantize.failure == "M, K, N = (3, 32, 4), float16, listed columns" and not norm.failure


def test_what_an_op_raises_is_its_line_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(fused, "cuda_quantize", right)
    monkeypatch.setattr(fused, "cuda_int8_linear", fail)
    monkeypatch.setattr(
        gpu_check, "_ops", lambda x, parts, rest: {
            "cuda_int8_linear": lambda: fused.cuda_int8_linear(x, *rest), "zeros": lambda: torch.zeros(2, 4),
        }
    )  # fmt: skip
    monkeypatch.setattr(gpu_check, "_norm_error", lambda *arguments: 0.5)
    quantize, norm, linear, zeros = gpu_check.summary(gpu_check.findings(TINY, CPU))
    assert quantize == Check("cuda_quantize", 1, 0.0, "") and norm == Check("cuda_norm_quantize", 4, 0.5, "")
    assert (linear.cases, linear.worst, linear.wrong) == (2, math.inf, ("float16",))
    assert linear.failure == (
        "M, K, N = (2, 8, 4), float16, threshold 0.0, column: RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED and more"
    )
    assert zeros.cases == 2 and 1 < zeros.worst < math.inf and zeros.failure.endswith("column")
    with pytest.raises(gpu.KernelCheckError, match=r"^cuda_int8_linear is wrong at .* and more; zeros is wrong at"):
        gpu.require_right([quantize, linear, zeros])
    gpu.require_right([quantize])


def test_without_quantization_what_follows_it_is_wrong_too(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(fused, "cuda_quantize", fail)
    monkeypatch.setattr(fused, "cuda_norm_quantize", fail)
    monkeypatch.setattr(fused, "cuda_int8_linear", lambda *arguments: torch.zeros(2, 4))
    found = {each.name: each.failure for each in gpu_check.summary(gpu_check.findings(TINY, CPU))}
    for op in ("cuda_quantize", "cuda_norm_quantize", "cuda_linear", "in two parts"):
        assert found[op].endswith("RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED and more")
    assert found["cuda_int8_linear"].endswith("column")


WRONG = [
    Check("cuda_quantize", 1, 0.0, ""), Check("cuda_linear", 1, 2.0, "M, K, N = (1, 2, 3)", ("bfloat16",)),
    Check("by cuBLASLt", 1, math.inf, "M, K, N = (17, 8, 8): no", ("float16",)),
]  # fmt: skip


def test_what_is_not_to_be_timed():
    assert why_not(WRONG, torch.bfloat16) == "not timed: cuda_linear is wrong at M, K, N = (1, 2, 3)"
    assert not why_not(WRONG, torch.float16) and not why_not(WRONG, torch.bfloat16, ["cuda_quantize"])
    assert why_not(WRONG, torch.float16, ["by cuBLASLt"]).endswith("(17, 8, 8): no")
    died = [Check("a process", 1, math.inf, "ended with status -6", ("float16",))]
    assert why_not(died, torch.float16) and why_not(died, torch.float16, ["by cuBLASLt"])


def test_a_way_that_is_wrong_is_refused():
    stopwatch = Stopwatch(CPU, torch.float16, 1, WRONG)
    assert stopwatch.unless_wrong(print, "cuda_linear") is print
    with pytest.raises(Unavailable, match="by cuBLASLt is wrong at"):
        stopwatch.unless_wrong(print, "by cuBLASLt")()


def test_int8mixed_is_not_timed_with_a_wrong_kernel_and_its_peers_are(tmp_path):
    plan = gpu.Plan(
        tmp_path, widths=(64,), prefill_rows=(20,), decode_rows=(), blocks=None, dtype=torch.bfloat16, rounds=1,
        peers=("float-eager",), limits_side=64,
    )  # fmt: skip
    gpu.run(plan, CPU, Console(quiet=True), WRONG)
    found = Run.from_json((tmp_path / "gpu.json").read_text())
    assert found.cases[0]["int8mixed"].failure == "not timed: cuda_linear is wrong at M, K, N = (1, 2, 3)"
    assert found.cases[0].median("float-eager") > 0
    assert [each["failure"] for each in found.machine["checked"]] == [each.failure for each in WRONG]


@pytest.mark.parametrize("error", [0.5, math.inf, math.nan])
def test_a_result_that_is_far_off_with_the_tiles_that_would_be_timed_is_not_timed(error):
    assert gpu_measure._right(0.02) == 0.02
    with pytest.raises(Unavailable, match=r"^not timed: the result is wrong, its relative error is"):
        gpu_measure._right(error)


def work(sender, task, device):
    """In the place of a check: sends a finding, then aborts, takes too long, or ends as it should."""
    sender.send(gpu_check.Finding("op", task.dtype, str(task), 0.5))
    if task.shape[0] == 1:
        os.abort()
    if task.shape[0] == 2:
        time.sleep(600)
    sender.send(None)


def noting_work(sender, task, device):
    """The same in a process that leaves its number in a file."""
    noted = Path(os.environ["NOTED"])
    noted.with_suffix(".new").write_text(str(os.getpid()))
    noted.with_suffix(".new").rename(noted)
    work(sender, task, device)


def test_a_process_that_ends_early_is_a_line(monkeypatch):
    monkeypatch.setattr(gpu_check_processes, "_work", work)
    todo = [Task((rows, 8, 8), torch.float16, RULES[:1]) for rows in (3, 1, 4)]
    seen = []
    record = Record(todo)
    in_processes(record, CPU, 2, seen.append)
    found = record.findings()
    assert [each.op for each in found] == ["op", "op", "a process", "op"] and sorted(seen) == sorted(map(str, todo))
    assert [each.case for each in found] == [str(todo[number]) for number in (0, 1, 1, 2)]
    assert found[2].raised.startswith("ended with status -")
    assert not multiprocessing.active_children()


def test_a_task_that_hangs_is_a_line_and_makes_room_for_the_next(monkeypatch):
    monkeypatch.setattr(gpu_check_processes, "_work", work)
    record = Record([HANGING, Task((2, 8, 16), torch.float16, RULES[:1])])
    in_processes(record, CPU, 1, print, longest=1)
    late = [each for each in record.findings() if each.op == "a process"]
    assert [each.raised for each in late] == ["took over 1 s"] * 2
    assert [each.case for each in late] == [str(task) for task in record.todo]
    assert not multiprocessing.active_children()


def test_what_is_not_done_when_the_check_must_end_is_a_line(monkeypatch):
    monkeypatch.setattr(gpu_check_processes, "_work", work)
    record = Record([Task((3, 8, 4), torch.bfloat16, RULES[:1]), HANGING])  # the larger begins, and the other waits
    in_processes(record, CPU, 1, print, seconds=0.1)
    waiting, begun = record.findings()
    assert waiting.raised.startswith("not begun when the check ended, after ") and waiting.case == str(record.todo[0])
    assert begun.raised.startswith("not done when the check ended, after ") and begun.case == str(HANGING)
    assert not multiprocessing.active_children()
    assert all("a process is wrong at" in why_not(record.checks(), dtype) for dtype in (torch.float16, torch.bfloat16))


def test_the_limits_leave_time_for_the_table():
    """Of the plan in README.md, which ends the check from outside."""
    plan = (ROOT / "int8pass" / "bench" / "README.md").read_text(encoding="utf-8")
    outside = int(re.search(r"timeout (\d+) python examples/bench_gpu.py --check", plan)[1])
    assert gpu_check_processes._TASK_SECONDS < gpu_check_processes.CHECK_SECONDS <= outside - 30


def test_ended_by_sigterm_the_check_prints_its_table_and_leaves_no_process(tmp_path):
    script = """
from int8pass.bench import gpu, gpu_check_processes
from int8pass.bench.console import wide_console
from tests.bench.test_gpu_check import CPU, HANGING, noting_work
if __name__ == "__main__":
    gpu.tasks = lambda large: [HANGING]
    gpu_check_processes._work = noting_work
    gpu.check_kernels = lambda record, device, seconds, progress: gpu_check_processes.in_processes(
        record, device, 1, progress)
    gpu.check(CPU, False, wide_console())
"""
    noted = tmp_path / "process"
    environment = {**os.environ, "PYTHONPATH": ".", "NOTED": str(noted)}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                          text=True) as parent:  # fmt: skip
        while not noted.exists() and parent.poll() is None:
            time.sleep(0.1)
        parent.terminate()
        output, _ = parent.communicate(timeout=60)
    assert parent.returncode == 128 + signal.SIGTERM
    assert "a process" in output and "not done when the check ended" in " ".join(output.split())
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)


def test_outside_the_check_sigterm_is_what_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, gpu_check_processes.exit_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(bool(INTERPRETER_FAULT), reason=INTERPRETER_FAULT)
def test_processes_find_what_one_finds():
    """In Triton's interpreter, in a process that has not imported Triton."""
    script = """
from int8pass.bench import gpu
gpu.interpret_kernels()
import torch
from int8pass.bench.gpu_check import findings, tasks
from int8pass.bench.gpu_check_processes import Record, in_processes
if __name__ == "__main__":
    todo, device = tasks(False)[:2], torch.device("cpu")
    record = Record(todo)
    in_processes(record, device, 2, print)
    apart = record.findings()
    assert apart == [each for task in todo for each in findings(task, device)] and len(apart) > 20
"""
    environment = {**os.environ, "PYTHONPATH": "."}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
