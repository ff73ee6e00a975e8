"""Stages in processes forked from one that has imported torch, transformers and DeepSpeed: those take six seconds.

What a stage itself imports, it imports anew. Starting by `python -m` is for tests of just that.
"""

import io
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from anamnesis.ranks import choose_accelerator

LIBRARIES = ["torch", "transformers.models.auto", "transformers.models.llama.modeling_llama", "deepspeed"]


def _server() -> multiprocessing.context.ForkServerContext:
    choose_accelerator()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def _run(
    module: str,
    arguments: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    err: Connection,
    alone: bool,
    cores: set[int],
) -> None:
    """In the forked process: what `python -m <module> <arguments>` does."""
    if alone:
        os.setsid()
    if cores:
        os.sched_setaffinity(0, cores)
    os.dup2(err.fileno(), sys.__stderr__.fileno())
    err.close()
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.__stdout__.fileno())
    sys.stdout, sys.stderr = sys.__stdout__, io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:] = [cwd, *(path for path in sys.path if path not in ("", cwd))]
    sys.argv = [module, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Stage:
    """One of them, to be used as a `subprocess.Popen` is: its standard error is a pipe, its output goes nowhere."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        alone: bool = False,
        cores: Iterable[int] = (),
    ):
        reader, writer = os.pipe()
        context = _server()
        end = Connection(writer, readable=False)
        self._process = context.Process(
            target=_run, args=(module, arguments, str(cwd), dict(env), end, alone, set(cores))
        )
        self._process.start()
        end.close()
        self.stderr: IO[str] = os.fdopen(reader, encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self) -> tuple[None, str]:
        """Wait for its end, and for that of whoever else holds the pipe; what was said since the last reading."""
        with self.stderr:
            said = self.stderr.read()
        self._process.join()
        return None, said
