"""The check of the CUDA kernels, in processes side by side: compiling takes the time, and each has a core for it.

Each task has a process of its own, so that a compiler that aborts, or an access that ends the device's context, is a
line of the check and not the end of the others. Compiled kernels are shared through Triton's cache on disk; tiles that
are timed while others use the device are not kept.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection

import torch

from int8pass.bench.gpu_check import PROCESS, Check, Finding, Task, findings, summary, tasks

_MOST_PROCESSES = 16
_LONGEST_SECONDS = 240
_END_SECONDS = 10  # after its last word

Progress = Callable[[str], None]


def check_kernels(device: torch.device, large: bool, progress: Progress = lambda text: None) -> list[Check]:
    """Run all tasks of the check: in processes on a GPU, one after another in Triton's interpreter.

    progress: told once a task that it is done. The result is in the order of the tasks.
    """
    todo = tasks(large)
    if device.type == "cpu":
        return summary(_one_by_one(todo, device, progress))
    processes = min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))
    return summary(in_processes(todo, device, processes, progress))


def _one_by_one(todo: Sequence[Task], device: torch.device, progress: Progress) -> list[Finding]:
    found = []
    for task in todo:
        found += findings(task, device)
        progress(str(task))
    return found


def in_processes(
    todo: Sequence[Task], device: torch.device, processes: int, progress: Progress, longest: float = _LONGEST_SECONDS
) -> list[Finding]:
    """The findings of all tasks, in their order; the largest begin first. longest: seconds that a task may take."""
    with ThreadPoolExecutor(processes) as threads:
        by_size = sorted(todo, key=lambda task: -math.prod(task.shape))
        begun = {threads.submit(_in_a_process, task, device, longest): task for task in by_size}
        for done in as_completed(begun):
            progress(str(begun[done]))
    found = {task: future.result() for future, task in begun.items()}
    return [finding for task in todo for finding in found[task]]


def _in_a_process(task: Task, device: torch.device, longest: float) -> list[Finding]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, task, device))
    process.start()
    sender.close()
    found: list[Finding] = []
    deadline = time.monotonic() + longest
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            if (finding := receiver.recv()) is None:
                return found
            found.append(finding)
        end = f"took over {longest:.0f} s"
    except EOFError:
        process.join(_END_SECONDS)
        end = f"ended with status {process.exitcode}"
    finally:
        process.kill()  # one that has sent all its findings is at its end
        process.join()
        receiver.close()
    return [*found, Finding(PROCESS, task.dtype, str(task), math.inf, end)]


def _work(sender: Connection, task: Task, device: torch.device) -> None:
    from int8pass.kernels.cuda import tuning

    torch.set_num_threads(1)
    tuning.keep_nothing()
    for finding in findings(task, device):
        sender.send(finding)
    sender.send(None)
