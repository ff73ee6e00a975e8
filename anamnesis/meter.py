"""What asking looks like from outside: a line of figures on stderr and events as JSON lines in `logs/requests.jsonl`.

Counts, times and error classes only: no prompt, no answer, no header, no key.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from anamnesis.progress import Progress
from anamnesis.spending import Cost

LOG = Path("logs/requests.jsonl")
LOG_SECONDS = 10.0


class Meter:
    """Counts requests, tokens, money and retries of one run of `Client.ask`. Use as a context manager."""

    def __init__(self, label: str, total: int, in_flight: Callable[[], int], priced: bool):
        self._label, self._in_flight, self._priced = label, in_flight, priced
        self._progress = Progress(label, total, "calls")
        self._start = self._logged = time.monotonic()
        self.requests = self.answered = self.failed = self.tokens = 0
        self.usd = 0.0
        self.retries: Counter[str] = Counter()

    def __enter__(self) -> "Meter":
        self._progress.__enter__()
        self.log("start", total=self._progress.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> None:
        self._progress.note = self._note()
        self._progress.__exit__(kind, *rest)
        self.log("end", ended=kind.__name__ if kind else "done", **self._figures())

    def answer(self, calls: int, cost: Cost) -> None:
        """Count the calls that one reply answered."""
        self.answered += calls
        self.requests += 1
        self.tokens += cost.tokens
        self.usd += cost.usd
        self._progress.advance(calls, self._note())

    def failure(self, calls: int, kind: str) -> None:
        """Count calls that ended without an answer; `kind` is the class of the error."""
        self.failed += calls
        self._progress.advance(calls, self._note())
        self.log("failed", calls=calls, kind=kind)

    def retry(self, kind: str, wait_s: float) -> None:
        """Count a try that failed and will be repeated."""
        self.retries[kind] += 1
        self.log("retry", kind=kind, wait_s=round(wait_s, 3))

    def tick(self) -> None:
        """Show and log how it goes; to be called every second or so, also while nothing comes back."""
        self._progress.advance(0, self._note())
        if time.monotonic() - self._logged >= LOG_SECONDS:
            self.log("progress", **self._figures())

    def log(self, event: str, **figures: Any) -> None:
        """Append one event to the log; a disk that is full ends no run."""
        self._logged = time.monotonic()
        line = {"at": round(time.time(), 3), "pid": os.getpid(), "label": self._label, "event": event, **figures}
        try:
            LOG.parent.mkdir(exist_ok=True)
            with LOG.open("a", encoding="utf-8") as log:  # one write of one short line: processes don't mix theirs
                log.write(json.dumps(line) + "\n")
        except OSError:
            pass

    def _figures(self) -> dict[str, Any]:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return {
            "done": self.answered + self.failed,
            "failed": self.failed,
            "requests_per_s": round(self.requests / seconds, 3),
            "tokens_per_s": round(self.tokens / seconds, 1),
            "in_flight": self._in_flight(),
            "retries": dict(self.retries),
            "usd": round(self.usd, 6) if self._priced else None,
        }

    def _note(self) -> str:
        figures = self._figures()
        parts = [f"{figures['tokens_per_s']:.0f} tokens/s", f"{figures['in_flight']} in flight"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.retries:
            parts.append("retried " + ", ".join(f"{kind} {count}x" for kind, count in sorted(self.retries.items())))
        if self._priced:
            parts.append(f"{self.usd:.4f} USD")
        return ", ".join(parts)
