"""TensorRT's progress and messages: phases as bars on standard error, messages in the log and in errors."""

import logging
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)
_KEPT = 5


class PhaseBars:
    """The three methods of IProgressMonitor, shown as nested bars. TensorRT calls them from several threads."""

    def __init__(self, bars: "Progress"):
        self.bars = bars
        self.tasks: dict[str, tuple[Any, int]] = {}
        self.cancelled = False
        self._lock = threading.Lock()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase of so many steps begins, inside of another one."""
        with self._lock:
            depth = self.tasks[parent_phase][1] + 1 if parent_phase in self.tasks else 0
            self.tasks[phase_name] = (self.bars.add_task(f"{'  ' * depth}{phase_name}", total=num_steps), depth)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step is done; False stops the build, which is what Ctrl-C asks for."""
        try:
            with self._lock:
                if phase_name in self.tasks:
                    self.bars.update(self.tasks[phase_name][0], completed=step + 1)
        except KeyboardInterrupt:  # it may not pass through TensorRT's code
            self.cancelled = True
        return not self.cancelled

    def phase_finish(self, phase_name: str) -> None:
        """A phase is over: its bar goes."""
        with self._lock:
            task, _ = self.tasks.pop(phase_name, (None, 0))
            if task is not None:
                self.bars.remove_task(task)


def progress_monitor(trt: ModuleType, bars: "Progress") -> Any:
    """A trt.IProgressMonitor that draws PhaseBars."""

    class Monitor(PhaseBars, trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            PhaseBars.__init__(self, bars)

    return Monitor()


class Messages:
    """What TensorRT said: warnings and worse go to the log, the last errors are kept for an exception's message."""

    def __init__(self):
        self.errors: list[str] = []

    def record(self, severity: str, message: str) -> None:
        """severity: the name of a trt.ILogger.Severity."""
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self.errors = [*self.errors[1 - _KEPT :], message]
            logger.error(message)
        elif severity == "WARNING":
            logger.warning(message)
        else:
            logger.debug(message)

    def __str__(self) -> str:
        return "\n".join(self.errors) or "TensorRT gave no reason"


def trt_logger(trt: ModuleType, messages: Messages) -> Any:
    """A trt.ILogger that records into `messages`."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            messages.record(severity.name, message)

    return Logger()
