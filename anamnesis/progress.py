"""Progress on stderr: a bar on a terminal, a line every ten seconds elsewhere. Never a prompt, an answer or a key."""

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_SECONDS = 10.0


def say(line: str) -> None:
    """Print one line on stderr, at once."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts finished pieces of work. Use as a context manager and call `advance`."""

    def __init__(self, label: str, total: int, unit: str = "rows"):
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.note = ""
        self._start = self._last = time.monotonic()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = RichProgress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=False
            )
            self._task = self._bar.add_task(self.label, total=self.total, note="")
            self._bar.start()
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more as done; `note` stands beside the figures (a rate, a loss)."""
        self.done += count
        self.note = note
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._last > LINE_SECONDS:
            self._last = time.monotonic()
            self.say()

    def say(self) -> None:
        """Print the figures as one line on stderr: done, rate, note, and the time that is left at this rate."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        line = f"{self.label}: {self.done}/{self.total} {self.unit}, {self.done / seconds:.1f}/s"
        if self.note:
            line += f", {self.note}"
        if 0 < self.done < self.total:
            line += f", {timedelta(seconds=round(seconds / self.done * (self.total - self.done)))} left"
        say(line)

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None and self.total:
            self.say()
