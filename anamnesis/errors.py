"""Errors a user can mend, and the exit codes they end in.

Every stage runs its `main` through `run`: a `UserError` becomes one line on stderr and its exit code; anything else
is a defect of ours and keeps its traceback. The table of codes is repeated in docs/exit-codes.md.
"""

import signal
import sys
from collections.abc import Callable
from types import FrameType

BAD_INPUT = 2  # params, a prompt, a data file
MODEL_UNAVAILABLE = 3  # a model can't be fetched, converted or served
REQUEST_REFUSED = 4  # an endpoint refuses the key, the model or the kind of request
QUALITY = 5  # the canary, the failure budget or another check on what models returned
POOL_TOO_SMALL = 6  # not enough rows for the mix that was asked for
OVER_BUDGET = 7  # a cap of `budget` is reached
FORBIDDEN_LICENCE = 8  # a row to be mixed has a licence of mix.licences.forbid
PREEMPTED = 75  # training: SIGTERM, and a checkpoint was saved; EX_TEMPFAIL of sysexits.h, "try again"
INTERRUPTED = 130  # Ctrl-C
ENDED = 143  # SIGTERM: `kill`, a scheduler's time limit


class UserError(Exception):
    """One line that says what is wrong, where, and what to do; `code` is the exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT):
        super().__init__(message)
        self.code = code


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's clients raise where the hub can't be reached, refuses, or has no such thing."""
    from huggingface_hub import errors as hub  # not at the top: it takes a while, and few stages read from the hub

    # HTTPError is that of whichever httpx the client is built on, and no OSError.
    return OSError, ValueError, RuntimeError, hub.HTTPError, hub.EntryNotFoundError, hub.RevisionResolutionError


class _Ended(KeyboardInterrupt):
    """SIGTERM: everything ends in order, as after Ctrl-C."""


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended


_GOES_ON = "answered calls and training's last checkpoint are kept; `dvc repro` goes on"


def run(main: Callable[[], None], kept: str = _GOES_ON) -> None:
    """Call a stage's `main`; turn a user's mistake into one line and a documented exit code.

    `kept` is said after Ctrl-C or SIGTERM: what is there, and how it goes on.
    """
    signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.code) from None
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {kept}", file=sys.stderr)
        raise SystemExit(ENDED if isinstance(interrupt, _Ended) else INTERRUPTED) from None
