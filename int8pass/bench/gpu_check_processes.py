"""The check of the CUDA kernels, in processes side by side: compiling takes the time, and each has a core for it.

Each task has a process of its own, so that a compiler that aborts, an access that ends the device's context or a kernel
that never ends is a line of the check and not the end of the others. Compiled kernels are shared through Triton's cache
on disk; tiles that are timed while others use the device are not kept.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType

import torch

from int8pass.bench.gpu_check import PROCESS, Check, Finding, Task, findings, summary

CHECK_SECONDS = 150  # all tasks together: less than the 180 of the first run in README.md
_TASK_SECONDS = 90
_END_SECONDS = 5  # after its last word
_MOST_PROCESSES = 16

Progress = Callable[[str], None]


@dataclass
class Record:
    """What was found so far. found: of each task that has begun; ended: those that have."""

    todo: Sequence[Task]
    found: dict[Task, list[Finding]] = field(default_factory=dict)
    ended: set[Task] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    def findings(self) -> list[Finding]:
        """In the order of the tasks, of which one that has not ended is a finding that says so."""
        late = f"when the check ended, after {time.monotonic() - self.began:.0f} s"
        listed: list[Finding] = []
        for task in self.todo:
            listed += self.found.get(task, [])
            if task not in self.ended:
                listed.append(_early(task, f"not {'done' if task in self.found else 'begun'} {late}"))
        return listed

    def checks(self) -> list[Check]:
        return summary(self.findings())


def check_kernels(record: Record, device: torch.device, seconds: float, progress: Progress = lambda text: None) -> None:
    """Run all tasks of the check: in processes on a GPU, one after another in Triton's interpreter.

    record: gets what is found, also where an exception ends the check; seconds: how long the processes may take in all;
    progress: told once a task that it is done.
    """
    if device.type == "cpu":
        _one_by_one(record, device, progress)
    else:
        in_processes(record, device, min(_MOST_PROCESSES, len(os.sched_getaffinity(0))), progress, seconds)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Within, the first SIGTERM raises SystemExit, so that what is open is closed. In the main thread alone."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _one_by_one(record: Record, device: torch.device, progress: Progress) -> None:
    for task in record.todo:
        found = record.found[task] = []
        for finding in findings(task, device):
            found.append(finding)
        record.ended.add(task)
        progress(str(task))


def in_processes(
    record: Record, device: torch.device, processes: int, progress: Progress, seconds: float = CHECK_SECONDS,
    longest: float = _TASK_SECONDS,
) -> None:  # fmt: skip
    """Run all tasks, so many at once; the largest begin first. longest: seconds that a task may take, of all `seconds`.

    No process is left when this returns or raises.
    """
    end = time.monotonic() + seconds
    waiting = sorted(record.todo, key=lambda task: math.prod(task.shape))
    running: list[_Running] = []
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < processes:
                task = waiting.pop()
                running.append(_begin(task, device, record.found.setdefault(task, []), longest))
            first = min(end, *(each.deadline for each in running))
            ready = wait([each.receiver for each in running], max(0.0, first - time.monotonic()))
            for each in list(running):
                if _has_ended(each, each.receiver in ready, longest):
                    _kill([each])
                    running.remove(each)
                    record.ended.add(each.task)
                    progress(str(each.task))
    finally:
        _kill(running)


@dataclass
class _Running:
    """A task's process. found: what it has sent; deadline: by time.monotonic()."""

    task: Task
    process: BaseProcess
    receiver: Connection
    found: list[Finding]
    deadline: float


def _begin(task: Task, device: torch.device, found: list[Finding], longest: float) -> _Running:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, task, device), daemon=True)
    process.start()
    sender.close()
    return _Running(task, process, receiver, found, time.monotonic() + longest)


def _has_ended(running: _Running, ready: bool, longest: float) -> bool:
    """Take one finding, if it is there. A process that has ended early, or takes too long, is a finding too."""
    if ready:
        try:
            finding = running.receiver.recv()
        except EOFError:
            running.process.join(_END_SECONDS)
            running.found.append(_early(running.task, f"ended with status {running.process.exitcode}"))
            return True
        if finding is None:
            return True
        running.found.append(finding)
    if late := time.monotonic() >= running.deadline:
        running.found.append(_early(running.task, f"took over {longest:.0f} s"))
    return late


def _kill(running: Sequence[_Running]) -> None:
    """Also those that are at their end. One that the driver holds is not waited for."""
    for each in running:
        each.process.kill()
    end = time.monotonic() + _END_SECONDS
    for each in running:
        each.process.join(max(0.0, end - time.monotonic()))
        each.receiver.close()


def _early(task: Task, why: str) -> Finding:
    return Finding(PROCESS, task.dtype, str(task), math.inf, why)


def _work(sender: Connection, task: Task, device: torch.device) -> None:
    from int8pass.kernels.cuda import tuning

    torch.set_num_threads(1)
    tuning.keep_nothing()
    for finding in findings(task, device):
        sender.send(finding)
    sender.send(None)
