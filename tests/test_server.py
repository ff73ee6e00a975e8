"""A local server's own words come in one line, and it ends with its stage however that ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from anamnesis import server
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.sections import Requests, Serve

ROOT = Path(__file__).resolve().parent.parent
LOGS = {
    "the root cause, not what follows from it": (
        "(EngineCore pid=7) ERROR 11-21 10:00:00 [core.py:1] ValueError: the KV cache is too small\n"
        "(APIServer pid=5) Traceback (most recent call last):\n"
        "(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.\n",
        "ValueError: the KV cache is too small",
    ),
    "a reason on the next line": (
        "(APIServer pid=5) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "(APIServer pid=5)   Value error, User-specified max_model_len (9) is greater than 8\n"
        "(APIServer pid=5)     For further information visit the manual\n",
        "ModelConfig Value error, User-specified max_model_len (9)",
    ),
    "a command line that is wrong": ("usage: x\napi_server.py: error: unrecognized arguments: --no\n", "unrecognized"),
    "nothing that looks like an error": ("INFO starting\nKilled\n", "Killed"),
    "nothing at all": ("", "empty"),
}


@pytest.mark.parametrize("name", LOGS)
def test_the_telling_line_of_a_log(name: str, tmp_path: Path) -> None:
    text, wanted = LOGS[name]
    (tmp_path / "log").write_text(text)
    line = server._last_error(tmp_path / "log")
    assert wanted in line
    assert "\n" not in line
    assert "pid=" not in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "serve", "words"),
    [
        ({"architectures": ["NoSuchForCausalLM"]}, {}, "NoSuchForCausalLM"),
        ({}, {"max_model_len": 100_000}, "max_model_len"),
        ({}, {"vllm_args": ["--no-such-option"]}, "--no-such-option"),
    ],
)
def test_vllms_own_errors_are_one_line(
    config: dict[str, object],
    serve: dict[str, object],
    words: str,
    smollm2_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smollm2_dir, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(UserError) as caught,
        server.endpoint(folder, Serve.model_validate(serve), Requests(kv_cache_gib=1)),
    ):
        pass
    assert caught.value.code == MODEL_UNAVAILABLE
    assert words in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert (tmp_path / "logs/server-smollm2.log").stat().st_size


STAGE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to Ctrl-C
sys.path.insert(0, {root!r})
from anamnesis import server
from anamnesis.errors import run
from anamnesis.sections import Requests, Serve
def main():
    with server.endpoint({folder!r}, Serve(), Requests(kv_cache_gib=1)):
        print("ready", flush=True)
        time.sleep(600)
run(main)
"""


def _processes_below(stage: "subprocess.Popen[str]", at_least: int) -> list[psutil.Process]:
    """The server and all that it started, once they are so many."""
    deadline = time.monotonic() + 120
    while len(found := psutil.Process(stage.pid).children(recursive=True)) < at_least:
        assert stage.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@pytest.fixture
def serving_stage(smollm2_dir: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A stage of its own that starts a server, says "ready" and waits."""
    code = STAGE.format(root=str(ROOT), folder=str(smollm2_dir))
    stage = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    yield stage
    if stage.poll() is None:
        stage.kill()
        stage.wait()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_with_its_stage(sent: signal.Signals, serving_stage: "subprocess.Popen[str]") -> None:
    assert serving_stage.stdout
    assert serving_stage.stdout.readline() == "ready\n"
    below = _processes_below(serving_stage, 2)
    os.kill(serving_stage.pid, sent)  # the stage alone: nobody tells the server
    assert serving_stage.wait(60) == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
    _, alive = psutil.wait_procs(below, 60)
    assert not alive


@pytest.mark.slow
def test_a_server_that_is_still_starting_ends_with_all_it_started(serving_stage: "subprocess.Popen[str]") -> None:
    below = _processes_below(serving_stage, 2)
    serving_stage.terminate()
    assert serving_stage.wait(60) == 143
    _, alive = psutil.wait_procs(below, 10)
    assert not alive
