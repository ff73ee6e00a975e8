"""Our way of asking a real vLLM server beside vLLM's own offline engine, and judging in order beside judging at random.

Run: python -m bench.generate [--json]     (half an hour on two cores that do nothing else)

Both serve SmolLM2-135M-Instruct with the same engine arguments and environment, and both are up and warm before any
clock starts. Ours: requests of stage respond through Client and a fresh ledger, at the concurrency of params.yaml,
which leaves the batching to the engine, and at FEW; theirs: `LLM.generate` on the same prompts, as token ids, with the
same sampling settings and seeds. Every answer has the same length (ignore_eos). They take turns; medians are compared.

Judging: one-token requests of stage judge over nine responses to each instruction, those to one instruction together
or all shuffled, on a server whose cache of prefixes holds a small part of them, as it is with many instructions. vLLM's
counters tell which share of the prompt tokens came from the cache. Long instructions fill blocks of that cache, short
ones don't: the rubric before them is shared in any order.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from anamnesis import judging, server
from anamnesis import params as settings
from anamnesis.cards import CARD, Card, load_card
from anamnesis.client import Client
from anamnesis.hardware import has_gpu_build
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.responding import respond_call
from anamnesis.sections import Sampling
from anamnesis.server import Endpoint
from anamnesis.sources import materialise
from anamnesis.wire import Call, Outcome
from bench import finish, tell

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2"
KEY_ENV = "ANAMNESIS_BENCH_KEY"
PROMPTS, MAX_TOKENS, TURNS = 128, 64, 3
FEW = 32  # requests at once, fewer than the engine would batch by itself
INSTRUCTIONS, RESPONSES, JUDGE_TURNS = 24, 9, 2
JUDGES_AT_ONCE = 8
CACHE_TOKENS = 8192  # of the judging server: what its requests at once need, and little more
BLOCK_TOKENS = 128  # of vLLM's cache on CPU
PASSAGE = 5  # responses that a long instruction quotes

FORMS = (
    "Explain {} to a child in a few sentences.",
    "Write a short letter to a friend about {}.",
    "Which three things should everyone know about {}, and why those?",
    "I have an hour a week for {}. How should I spend it?",
    "Compare {} today with what it was a hundred years ago.",
    "Give me a plan for a lesson on {}.",
    "What do beginners get wrong about {}, and how can they do better?",
    "Tell a story in which {} matters.",
)
TOPICS = (
    "bread baking, bees, tides, the bicycle, old maps, compost, chess openings, night trains, lighthouses, knitting, "
    "clouds, public libraries, the abacus, mushrooms, bridges, choir singing"
).split(", ")


def instructions() -> list[str]:
    return [form.format(topic) for topic in TOPICS for form in FORMS][:PROMPTS]


def respond_calls(params: Params) -> list[Call]:
    """The requests of stage respond, of a fixed length."""
    sampling = Sampling(max_tokens=MAX_TOKENS)
    rows = [{"text": text, "instruction_id": text} for text in instructions()]
    calls = [respond_call(row, sampling, params.seed, 0) for row in rows]
    return [replace(call, request=call.request | {"extra_body": {"ignore_eos": True}}) for call in calls]


def judge_calls(tokenizer: Any, params: Params, texts: Sequence[str], long: bool) -> list[Call]:
    """The requests of stage judge, those to one instruction together."""
    prompt = judging.load_prompt(ROOT / "prompts" / "judge.txt")
    draw = random.Random(params.seed)
    calls = []
    for instruction in instructions()[:: len(FORMS) // 2][:INSTRUCTIONS]:
        quoted = " ".join(draw.sample(texts, PASSAGE)) if long else ""
        asked = f"{instruction} Take this into account: {quoted}" if long else instruction
        for response in draw.sample(texts, RESPONSES):
            calls.append(
                judging.local_expected_call(tokenizer, judging.judge_messages(prompt, asked, response, params.seed))
            )
    return calls


def ask(where: Endpoint, params: Params, calls: Sequence[Call], at_once: int) -> tuple[list[Outcome], float]:
    """Outcomes and seconds of one `Client.ask` with a fresh ledger, the server's cache being empty."""
    root = where.base_urls[0].removesuffix("/v1")
    httpx.post(f"{root}/reset_prefix_cache").raise_for_status()
    requests = params.requests.model_copy(update={"concurrency": at_once})
    os.environ[KEY_ENV] = where.api_key
    card = Card(MODEL, "endpoint", "bench", base_url=where.base_urls[0], model=where.model, api_key_env=KEY_ENV)
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as place:
        (Path(place) / CARD).write_text(json.dumps(asdict(card)), encoding="utf-8")
        start = time.perf_counter()
        ours = params.model_copy(update={"requests": requests})
        with Ledger(Path(place) / "ledger.sqlite") as ledger, Client(place, ours, ledger) as client:
            outcomes = client.ask(calls, "bench")
        seconds = time.perf_counter() - start
    if missing := [outcome.reason for outcome in outcomes if outcome.answer is None]:
        raise SystemExit(f"{len(missing)} of {len(outcomes)} calls have no answer: {missing[0]}")
    return outcomes, seconds


def tokens_of(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """Tokens in and out."""
    answers = [outcome.answer for outcome in outcomes if outcome.answer]
    return sum(answer.prompt_tokens for answer in answers), sum(answer.completion_tokens for answer in answers)


@contextmanager
def offline(folder: Path, params: Params) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yield what runs `LLM.generate` once in an engine of its own process; returns tokens in and out, and seconds."""
    gpu = has_gpu_build()
    line = server.command(folder, load_card(folder), 0, params.serve, gpu)
    env = server.environment("none", params.requests, gpu)
    with subprocess.Popen(
        [sys.executable, "-m", "bench.generate", "--engine", *line[line.index("--model") :]],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout

        def once() -> dict[str, Any]:
            assert process.stdin
            assert process.stdout
            print(file=process.stdin, flush=True)
            return dict(json.loads(process.stdout.readline() or "{}"))

        if "ready" not in process.stdout.readline():
            raise SystemExit("the offline engine did not start; its log is above")
        yield once
        process.stdin.close()


def engine(arguments: list[str]) -> None:
    """In the engine's process: generate once for each line on stdin."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout

    from vllm import LLM, EngineArgs, SamplingParams
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parsed, _ = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_known_args(arguments)
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(parsed))
    tokenizer = llm.get_tokenizer()
    prompts, sampling = [], []
    for call in respond_calls(settings.load(ROOT / "params.yaml")):
        request = call.request
        rendered = tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True, tokenize=False)
        prompts.append({"prompt_token_ids": tokenizer(rendered, add_special_tokens=False)["input_ids"]})
        known = {name: request[name] for name in ("max_tokens", "temperature", "top_p", "seed")}
        sampling.append(SamplingParams(**known, ignore_eos=True))
    print("ready", file=told, flush=True)
    for _ in sys.stdin:
        llm.reset_prefix_cache()
        start = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(output.prompt_token_ids) for output in outputs)
        made = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"tokens": [tokens, made], "seconds": seconds}), file=told, flush=True)


def compare_generation(folder: Path, params: Params) -> tuple[dict[str, list[float]], list[str]]:
    """Output tokens a second of each turn, by way, and the texts of the last answers of ours."""
    calls = respond_calls(params)
    default = params.requests.concurrency
    rates: dict[str, list[float]] = {}
    with server.endpoint(folder, params.serve, params.requests) as where, offline(folder, params) as generate:

        def ours(at_once: int) -> list[Outcome]:
            outcomes, seconds = ask(where, params, calls, at_once)
            note(f"ours at {at_once}", tokens_of(outcomes), seconds)
            return outcomes

        def note(way: str, tokens: tuple[int, int], seconds: float) -> None:
            if tokens != wanted:
                raise SystemExit(f"{way}: {tokens} tokens in and out, not {wanted}: not comparable")
            rates.setdefault(way, []).append(tokens[1] / seconds)
            print(f"{way}: {tokens[1] / seconds:.0f} tokens/s", file=sys.stderr, flush=True)

        first = generate()  # not counted: a first run of each warms up
        wanted = (first["tokens"][0], len(calls) * MAX_TOKENS)
        ask(where, params, calls, default)
        for _ in range(TURNS):
            found = generate()
            note("offline", (found["tokens"][0], found["tokens"][1]), found["seconds"])
            ours(FEW)
            outcomes = ours(default)
    return rates, [outcome.answer.text or "" for outcome in outcomes if outcome.answer]


def cache_counts(where: Endpoint) -> tuple[float, float]:
    """Prompt tokens that vLLM looked for in its cache of prefixes, and those that it found."""
    text = httpx.get(where.base_urls[0].removesuffix("/v1") + "/metrics").text
    wanted, hit = (
        sum(float(value) for value in re.findall(rf"^vllm:prefix_cache_{what}_total{{.*}} (\S+)$", text, re.MULTILINE))
        for what in ("queries", "hits")
    )
    return wanted, hit


def compare_judging(folder: Path, params: Params, texts: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Calls a second and share of prompt tokens from the cache, of each turn, by length and order."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    small = ["--num-gpu-blocks-override", str(CACHE_TOKENS // BLOCK_TOKENS)]
    serve = params.serve.model_copy(update={"vllm_args": [*params.serve.vllm_args, *small]})
    found: dict[str, list[tuple[float, float]]] = {}
    with server.endpoint(folder, serve, params.requests) as where:
        for length in ("long", "short"):
            grouped = judge_calls(tokenizer, params, texts, length == "long")
            shuffled = random.Random(params.seed).sample(grouped, len(grouped))
            ask(where, params, shuffled[: 2 * JUDGES_AT_ONCE], JUDGES_AT_ONCE)
            for turn in range(JUDGE_TURNS):
                orders = {"grouped": grouped, "shuffled": shuffled}
                for order in list(orders)[:: 1 if turn % 2 else -1]:
                    before = cache_counts(where)
                    _, seconds = ask(where, params, orders[order], JUDGES_AT_ONCE)
                    wanted, hit = (now - then for now, then in zip(cache_counts(where), before, strict=True))
                    found.setdefault(f"{length}, {order}", []).append((len(grouped) / seconds, hit / wanted))
                    print(f"{length}, {order}: {len(grouped) / seconds:.2f} calls/s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = argparse.ArgumentParser(description="Our client on a real vLLM server")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--engine", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine is not None:
        engine(options.engine)
        return
    os.chdir(ROOT)
    params = settings.load()
    folder = ROOT / ".bench" / "models" / MODEL
    if not (folder / CARD).exists():
        materialise(MODEL, params.models[MODEL], folder)
    rates, texts = compare_generation(folder, params)
    judged = compare_judging(folder, params, texts)

    middle = {way: median(some) for way, some in rates.items()}
    tell(
        f"{PROMPTS} prompts, {MAX_TOKENS} tokens each",
        ["way", "output tokens/s", "from", "to", "÷ offline"],
        [[way, rate, min(rates[way]), max(rates[way]), rate / middle["offline"]] for way, rate in middle.items()],
    )
    speed = {way: median(calls for calls, _ in some) for way, some in judged.items()}
    cached = {way: median(share for _, share in some) for way, some in judged.items()}
    tell(
        f"{INSTRUCTIONS} x {RESPONSES} judgments, a cache of {CACHE_TOKENS} tokens",
        ["instructions and order", "calls/s", "÷ shuffled", "prompt tokens from the cache"],
        [
            [way, speed[way], speed[way] / speed[way.split(",")[0] + ", shuffled"], f"{cached[way]:.0%}"]
            for way in sorted(judged)
        ],
    )
    finish(
        {
            "ratio_offline": middle[f"ours at {params.requests.concurrency}"] / middle["offline"],
            "ratio_offline_few": middle[f"ours at {FEW}"] / middle["offline"],
            "tokens_per_s": {way: round(rate) for way, rate in middle.items()},
            "ratio_grouped": speed["long, grouped"] / speed["long, shuffled"],
            "ratio_grouped_short": speed["short, grouped"] / speed["short, shuffled"],
            "cached": {way: round(share, 3) for way, share in cached.items()},
        }
    )


if __name__ == "__main__":
    main()
