"""A local server's own words come in one line, and it ends with its stage however that ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_with_its_stage(sent: signal.Signals, smollm2_dir: Path, tmp_path: Path) -> None:
    code = STAGE.format(root=str(ROOT), folder=str(smollm2_dir))
    stage = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert stage.stdout
        assert stage.stdout.readline() == "ready\n"
        os.kill(stage.pid, sent)  # the stage alone: nobody tells the server
        code_of_stage = stage.wait(60)
        assert code_of_stage == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
        deadline = time.monotonic() + 60
        while _alive(stage.pid) and time.monotonic() < deadline:  # vLLM's processes are in the stage's group
            time.sleep(0.2)
        assert not _alive(stage.pid)
    finally:
        if _alive(stage.pid):
            os.killpg(stage.pid, signal.SIGKILL)
