"""Our client beside a bare loop and two well-known peers, all asking one server that only waits.

Run: python -m bench.client [--json] [--without-peers]     (some 10 minutes; 2 without peers)

The server (bench/peers/fake_server.py) runs in a process of its own with 64 slots; every question takes the same time
for every client. Each client is a process of its own as well: bench/peers/raw.py, a bare AsyncOpenAI loop of 64
workers; ours.py, our client at concurrency 64 with the ledger on a fresh file; curator.py, bespokelabs-curator with its
rate limits out of the way, at 64 and at as many as it likes; distilabel.py at several batch sizes. Of a peer's ways the
fastest one counts. Raw, ours and curator take turns and the medians are compared; distilabel runs once for each size. A
rate is answers over the seconds from the first request that the server saw to the last answer that it gave, so imports,
start-up and what a client does afterwards count for none; `own seconds` are a client's view, from its call to its rows.
The peers' environments are made once, in .bench/venvs, from bench/peers/<peer>.txt.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import finish, tell

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
VENVS = ROOT / ".bench" / "venvs"
SLOTS = 64
QUESTIONS = 2000
TURNS = 3
LIMIT_S = 900
CLIENTS = {  # its script, and the number that it takes: requests at once, 0 for its own choice, or rows in a batch
    "raw": ("raw", SLOTS),
    "ours": ("ours", SLOTS),
    "curator, 64 at once": ("curator", SLOTS),
    "curator, all at once": ("curator", 0),
    "distilabel, batch 50": ("distilabel", 50),  # its default
    "distilabel, batch 250": ("distilabel", 250),
    "distilabel, batch 500": ("distilabel", 500),
    "distilabel, batch 1000": ("distilabel", 1000),
}


@dataclass(frozen=True)
class Run:
    """One client's run: answers a second and most requests in flight as the server saw them, seconds as it did."""

    requests_per_s: float
    most_in_flight: int
    efficiency: float
    own_seconds: float


@contextmanager
def fake_server() -> Iterator[str]:
    """Yield the address of a fresh server; it ends when its stdin does."""
    line = [sys.executable, str(PEERS / "fake_server.py"), str(SLOTS)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, made where it is missing or its list has changed."""
    wanted, home = PEERS / f"{peer}.txt", VENVS / peer
    made = home / wanted.name
    if not made.exists() or made.read_bytes() != wanted.read_bytes():
        print(f"{peer}: making {home}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([home / "bin" / "pip", "install", "-qq", "--no-deps", "-r", wanted], check=True)
        shutil.copy(wanted, made)
    return home / "bin" / "python"


def environment(folder: Path, python: Path) -> dict[str, str]:
    """A client's environment: nothing of the user's, no network besides the server, no telemetry."""
    tokenizers = next(python.parent.parent.glob("lib/*/site-packages/litellm/litellm_core_utils/tokenizers"), folder)
    return {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "OPENAI_API_KEY": "none",
        "PYTHONPATH": str(ROOT) if python == Path(sys.executable) else "",
        "TIKTOKEN_CACHE_DIR": str(tokenizers),  # curator counts tokens and would load its table from the network
        "CURATOR_DISABLE_CACHE": "1",
        "TELEMETRY_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def run(name: str, url: str, questions: list[str]) -> Run:
    """Let one of CLIENTS ask everything, in a folder of its own."""
    peer, number = CLIENTS[name]
    python = Path(sys.executable) if peer in ("raw", "ours") else python_of(peer)
    with tempfile.TemporaryDirectory(dir=VENVS.parent) as place:
        folder = Path(place)
        shutil.copy(ROOT / "params.yaml", folder)
        (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
        # -P: a script's own folder is not searched, where distilabel.py would be taken for distilabel.
        done = subprocess.run(
            [python, "-P", PEERS / f"{peer}.py", f"{url}/v1", "questions.json", str(number)],
            cwd=folder,
            env=environment(folder, python),
            timeout=LIMIT_S,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{name}: exit code {done.returncode}: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads([line for line in done.stdout.splitlines() if line.startswith('{"answered"')][-1])
    with urllib.request.urlopen(f"{url}/figures") as reply:
        seen = json.load(reply)
    if not told["answered"] == seen["answered"] == len(questions):
        raise SystemExit(f"{name}: {told['answered']} answers, the server gave {seen['answered']}: not comparable")
    found = Run(
        seen["answered"] / seen["seconds"],
        seen["most_in_flight"],
        seen["service_s"] / SLOTS / seen["seconds"],
        told["seconds"],
    )
    print(f"{name}: {found.requests_per_s:.1f} requests/s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Our client beside a bare loop and two peers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    with_peers, count = not options.without_peers, options.questions
    VENVS.mkdir(parents=True, exist_ok=True)
    questions = [f"Question {index}: which of these birds stands still until a fish comes?" for index in range(count)]
    runs: dict[str, list[Run]] = {name: [] for name in CLIENTS if with_peers or name in ("raw", "ours")}
    with fake_server() as url:
        for turn in range(options.turns):
            for name in list(runs)[:: -1 if turn % 2 else 1]:
                if turn == 0 or not name.startswith("distilabel"):
                    runs[name].append(run(name, url, questions))
    rates = {name: median(one.requests_per_s for one in some) for name, some in runs.items()}
    best = {
        peer: max((rate for name, rate in rates.items() if name.startswith(peer)), default=None)
        for peer in ("curator", "distilabel")
    }
    tell(
        f"{count} questions, {SLOTS} slots",
        ["client", "requests/s", "from", "to", "ours ÷ it", "efficiency", "most in flight", "own seconds"],
        [
            [
                name,
                rates[name],
                min(one.requests_per_s for one in some),
                max(one.requests_per_s for one in some),
                rates["ours"] / rates[name],
                median(one.efficiency for one in some),
                max(one.most_in_flight for one in some),
                median(one.own_seconds for one in some),
            ]
            for name, some in runs.items()
        ],
    )
    finish(
        {
            "ratio_raw": rates["ours"] / rates["raw"],
            **{f"ratio_{peer}": rates["ours"] / rate if rate else None for peer, rate in best.items()},
            "max_in_flight": max(one.most_in_flight for one in runs["ours"]),
            "requests_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        }
    )


if __name__ == "__main__":
    main()
