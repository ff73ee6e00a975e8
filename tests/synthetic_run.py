"""A whole made-up run on disk, for the report: seeded rows in every file that it reads, hostile text among them.

Run as a script it writes one to look at: PYTHONPATH=. python tests/synthetic_run.py <folder> [small | wide | paper]
"""

import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from anamnesis import controls, likeness, records
from anamnesis.agreement import Bootstrap
from anamnesis.distribution import Distance, Estimate, Floor, shares
from anamnesis.instruction_types import TYPES
from anamnesis.params import Params, Select
from anamnesis.records import digest
from stages import agree

ROOT = Path(__file__).resolve().parent.parent

HOSTILE = [
    "<script>alert('owned')</script> & <img src=x onerror=alert(1)> \"quoted\" 'single'",
    "</p></li></ul></details></main><style>*{display:none}</style>{{ 7 * 7 }}{% raw %}",
    "A word without an end: " + "pneumono" * 60,
    "اكتب قصيدة قصيرة عن البحر ثم اشرح معناها",
    "\u202eright to left override\u202c and emoji 👩‍🔬🧪🇳🇿 in a row 🎉",
    "colour \x1b[31mred\x1b[0m, title \x1b]0;owned\x07, bell \x07, backspace \x08, C1 \x9b31m",
    "| pipes | and `ticks` and [a link](https://example.org/x) and https://example.org/plain",
]
PLAIN = [
    "Write a short story about a lighthouse keeper who collects fog.",
    "What is the difference between a virus and a bacterium?",
    "Write a Python function that reverses the words of a sentence.",
    "How many apples are left if I eat 3 of 12 and give away 4?",
    "Give me three tips for sleeping better before an exam.",
    "Plan a weekend trip to a small town by the sea.",
    "Compare two ways to heat a house and name the better one.",
    "Explain how a bicycle stays upright.",
]
# measure: items, base level, spread of items, effect of training without and with rehearsal
LEVELS = {
    "domain_choice": (60, 0.25, None, 0.25, 0.18),
    "domain_exact": (24, 0.02, None, 0.06, 0.04),
    "domain_text": (40, 1.83, 0.30, -0.60, -0.42),
    "instructions_followed": (16, 0.40, None, -0.12, 0.0),
    "arithmetic": (40, 0.30, None, -0.05, 0.0),
    "general_text": (40, 0.87, 0.20, 0.02, -0.01),
    "own_text": (12, 0.44, 0.10, 0.065, 0.012),
    "own_kl": (12, 0.0, 0.0, 0.12, 0.03),
}
# the same of other suites, which only `write_run(measures=…)` asks for
OTHER_LEVELS = {
    "leaderboard_mmlu_pro": (280, 0.46, None, -0.06, -0.01),
    "leaderboard_gpqa": (60, 0.34, None, -0.02, 0.0),
    "leaderboard_ifeval": (80, 0.52, None, -0.10, -0.01),
    "leaderboard_math_hard": (98, 0.23, None, -0.05, 0.0),
    "medqa": (60, 0.40, None, 0.10, 0.09),
    "pubmedqa": (50, 0.55, None, 0.08, 0.08),
    "gsm8k": (60, 0.60, None, -0.08, -0.02),
    "domain-coding": (40, 0.30, None, 0.20, 0.18),
    "refused_harmful": (24, 0.80, None, -0.20, -0.05),
    "refused_harmless": (24, 0.10, None, 0.02, 0.0),
}
CATEGORIES = {
    "leaderboard_mmlu_pro": ("biology", "business", "chemistry", "computer science", "economics", "engineering",
                             "health", "history", "law", "math", "other", "philosophy", "physics", "psychology"),
    "leaderboard_math_hard": ("algebra", "counting and probability", "geometry", "intermediate algebra",
                              "number theory", "prealgebra", "precalculus"),
    "leaderboard_ifeval": ("keywords", "length constraints", "detectable format"),
    "refused_harmful": ("violence", "fraud"),
}  # fmt: skip
LEADERBOARD = [name for name in OTHER_LEVELS if name.startswith("leaderboard")]
EVERY_MEASURE = [*LEVELS, *OTHER_LEVELS]


def load_params() -> dict[str, Any]:
    """params.yaml as plain dicts, with few resamples."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["report"]["bootstrap"] = 300
    return raw


def wide_params() -> dict[str, Any]:
    """A run with much in it: 15 variants, 3 interpolations, 3 training seeds of two variants, labels and stand-ins."""
    raw = load_params()
    reconstructed = raw["variants"]["committee"]
    raw["variants"] |= {
        "single-multi": reconstructed | {"members": ["smollm2"], "judges": ["smollm2"], "min_votes": 1},
        "random-of-nine": {"rehearsal": "reconstructed", "members": ["smollm2", "qwen-coder"], "rule": "random"},
        "leave-own-judge-out": reconstructed | {"rule": "leave-own-judge-out", "min_votes": 1},
        "median": reconstructed | {"rule": "median"},
        "sharegpt": {"rehearsal": "sharegpt"},
        "dolly": {"rehearsal": "dolly"},
        "gpteacher": {"rehearsal": "gpteacher"},
        "oasst": {"rehearsal": "oasst"},
        "alpaca": {"rehearsal": "alpaca"},
        "domain-lora": {"rehearsal": "none", "tuning": {"method": "lora"}},
        "domain-l2-sp": {"rehearsal": "none", "tuning": {"method": "l2-sp"}},
        "domain-kl": {"rehearsal": "none", "tuning": {"method": "kl"}},
    }
    raw["rehearsal"]["sources"] = {name: {"source": f"path:data/own/{name}.jsonl"} for name in
                                   ("dolly", "gpteacher", "oasst", "alpaca")}  # fmt: skip
    raw["interpolations"] = {
        f"wise-{alpha}": {"variant": "domain-only", "alpha": alpha / 100} for alpha in (25, 50, 75)
    }
    raw["train"] |= {"seeds": [18, 19], "seeded": ["domain-only", "committee"]}
    raw["report"]["labels"] = {
        "committee": {"label": "committee (ours)", "paper": "ours"},
        "dolly": {"label": "Dolly", "stands_for": "GenQA"},
        "gpteacher": {"label": "GPTeacher <i>", "stands_for": "OpenHermes 1"},
        "single-single": {"paper": "single-model-single-response"},
        "single-multi": {"paper": "single-model-multi-response-filtered"},
    }
    return raw


def paper_params() -> dict[str, Any]:
    """As `wide_params`, with the paper's target and number of instructions: its numbers stand beside ours."""
    raw = wide_params()
    raw["models"]["smollm2"] = {"uri": "hf:meta-llama/Meta-Llama-3-70B-Instruct@main"}
    raw["probe"] |= {"instructions": 100_000, "max_requests": 200_000}
    return raw


def instruction_rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(count + 10):
        text = (HOSTILE[i] if i < len(HOSTILE) else PLAIN[i % len(PLAIN)]) + f" ({i})"
        status, reason = "ok", None
        if i >= count:
            status, reason = [("truncated", "unfinished"), ("filtered", "duplicate"), ("filtered", "surplus")][i % 3]
        if i == count + 9:
            status, reason = "failed", "HTTP 500 \x1b[31m<b>upstream</b>\x1b[0m | retry"
        rows.append(
            {
                "instruction_id": digest("instruction", text),
                "sample_index": i,
                "text": text,
                "status": status,
                "reason": reason,
                "finish_reason": "stop",
                "tokens": int(rng.lognormvariate(3.2, 0.5)),
            }
        )
    return rows


def held_out(instructions: list[dict[str, Any]]) -> set[str]:
    """Every fifth good instruction: only the target answers it, and nobody judges the answer."""
    good = [row["instruction_id"] for row in instructions if row["status"] == "ok"]
    return set(good[4::5])


def response_rows(
    rng: random.Random, member: str, instructions: list[dict[str, Any]], kept_back: set[str]
) -> list[dict[str, Any]]:
    rows = []
    for row in instructions:
        if row["instruction_id"] in kept_back:
            continue
        for index in range(3 if row["status"] == "ok" else 0):
            cut = rng.random() < 0.12
            said = rng.choice(PLAIN) + " Here is what I would say to that. " * rng.randrange(1, 12)
            rows.append(
                {
                    "response_id": digest("response", row["instruction_id"], member, index),
                    "instruction_id": row["instruction_id"],
                    "member": member,
                    "sample_index": index,
                    "text": rng.choice(HOSTILE) if rng.random() < 0.2 else said,
                    "finish_reason": "length" if cut else "stop",
                    "tokens": 160 if cut else rng.randrange(20, 150),
                    "status": "truncated" if cut else "ok",
                    "reason": "max_tokens reached" if cut else None,
                }
            )
    return rows


def judgment_rows(
    rng: random.Random, judge: str, responses: list[dict[str, Any]], level: float
) -> list[dict[str, Any]]:
    rows = []
    for row in responses:
        missing = rng.random() < 0.05
        score = None if missing else round(min(5.0, max(1.0, rng.gauss(level, 0.4) + row["tokens"] / 400)), 6)
        rows.append(
            {
                "response_id": row["response_id"],
                "judge": judge,
                "score": score,
                "parse": "missing" if missing else "logprobs",
                "justification": "",
                "tokens": 1,
                "status": "failed" if missing else "ok",
                "reason": "no rating among the top tokens" if missing else None,
            }
        )
    return rows


def control_rows(
    rng: random.Random, judge: str, judged: list[dict[str, Any]], texts: dict[str, str], level: float
) -> list[dict[str, Any]]:
    """Planted responses, scored a little lower than genuine ones."""
    rows = []
    asked = [row | {"instruction": texts[row["instruction_id"]], "context": []} for row in judged]
    for row in controls.plant(asked, 0.5, 17):
        ok = row["status"] == "ok"
        score = round(min(5.0, max(1.0, rng.gauss(level - 0.2, 0.4))), 6) if ok else None
        given = {"judge": judge, "score": score, "parse": "logprobs" if ok else None, "tokens": 1 if ok else 0}
        rows.append({name: (row | given)[name] for name in records.CONTROLS.names})
    return rows


def selected_rows(
    variant: dict[str, Any], instructions: list[dict[str, Any]], responses: list[dict[str, Any]], votes: dict[str, Any]
) -> list[dict[str, Any]]:
    rows = []
    kept_back = held_out(instructions)
    for row in (row for row in instructions if row["status"] == "ok"):
        ours = [
            other
            for other in responses
            if other["instruction_id"] == row["instruction_id"]
            and other["status"] == "ok"
            and other["member"] in variant["members"]
            and other["sample_index"] < variant.get("samples", 3)
        ]
        best = max(ours, key=lambda other: (votes.get(other["response_id"], 0), other["response_id"]), default=None)
        kept = row["instruction_id"] in kept_back
        if kept:
            best = None
        rows.append(
            {
                "instruction_id": row["instruction_id"],
                "instruction": row["text"],
                "response_id": best and best["response_id"],
                "member": best and best["member"],
                "response": best and best["text"],
                "mean": best and votes.get(best["response_id"]),
                "votes": [],
                "runner_up_id": None,
                "runner_up_mean": None,
                "candidates": len(ours),
                "status": "ok" if best else "filtered",
                "reason": None if best else "held out" if kept else "no complete response",
            }
        )
    return rows


def cleaned_rows(selected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The picks, one of each twenty taken out for overlap and one for being a near-duplicate."""
    reasons = {3: "overlap with ifeval", 7: "near-duplicate of abc"}
    return [
        {
            "row_id": row["response_id"],
            "order_id": row["instruction_id"],
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "source": "reconstructed",
            "member": row["member"],
            "licence": "MIT",
            "status": "filtered" if i % 20 in reasons else "ok",
            "reason": reasons.get(i % 20),
        }
        for i, row in enumerate(row for row in selected if row["status"] == "ok")
    ]


def domain_rows(count: int) -> list[dict[str, Any]]:
    """Cleaned domain rows, one of them taken out."""
    row = {"messages": [], "source": "domain", "member": None, "licence": "MIT", "status": "ok", "reason": None}
    rows = [{**row, "row_id": digest("domain", i), "order_id": digest("domain", i)} for i in range(count)]
    return [rows[0] | {"status": "filtered", "reason": "overlap with domain-test"}, *rows[1:]]


def mixed_rows(rng: random.Random, mix: dict[str, Any], selected: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    picks = [row for row in selected or [] if row["status"] == "ok"]
    domain = mix["total"] if selected is None else round(mix["total"] * mix["domain_fraction"])
    pool = [("domain", None)] * domain + [("reconstructed", row["member"]) for row in picks]
    return [
        {
            "row_id": digest("row", i),
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "source": source,
            "member": member,
            "licence": "MIT",
            "tokens": rng.randrange(20, 60) if source == "domain" else rng.randrange(60, 220),
        }
        for i, (source, member) in enumerate(pool[: mix["total"]])
    ]


def sample_rows(name: str, effect: float, measures: list[str], seed: int | None = None) -> list[dict[str, Any]]:
    """Items of one model; an item keeps its difficulty from model to model, and most of it from seed to seed.

    `effect` is 0 for base, 1 for a model that rehearsed nothing, -1 for one that did, and between 0 and 1 in part.
    """
    rows = []
    for measure in measures:
        count, level, spread, alone, rehearsed = (LEVELS | OTHER_LEVELS)[measure]
        shift = abs(effect) * (alone if effect > 0 else rehearsed)
        if seed is not None:
            shift *= 1 + 0.2 * random.Random(f"{measure} {name} {seed}").gauss(0, 1)
        for i in range(count):
            hardness = random.Random(f"{measure} {i}")
            noise = random.Random(f"{measure} {i} {name}" + (f" {seed}" if seed is not None else ""))
            weight = 1.0
            if spread is None:
                draw = 0.75 * hardness.random() + 0.25 * noise.random()
                value = float(draw < level + shift)
            elif measure == "own_kl":
                value = 0.0 if name == "base" else abs(noise.gauss(shift, abs(shift) / 3))
            else:
                weight = float(hardness.randrange(40, 200))
                moved = 0.0 if name == "base" else noise.gauss(shift, abs(shift) * 0.4)
                value = max(0.01, hardness.gauss(level, spread) + moved)
            kinds = CATEGORIES.get(measure)
            hidden = measure == "leaderboard_gpqa"
            rows.append(
                {
                    "measure": measure,
                    "item_id": f"{measure}-{i}",
                    "value": value,
                    "weight": weight,
                    "output": None if hidden else HOSTILE[i % len(HOSTILE)],
                    "category": kinds[i % len(kinds)] if kinds else None,
                    "question": None if hidden else f"{HOSTILE[(i + 1) % len(HOSTILE)]} ({i})",
                }
            )
    return rows


def made_up_likeness(count: int, others: int = 2) -> likeness.Likeness:
    """Portraits of a reconstructed set and of `others` more, the last one too small to compare."""

    def portrait(size: int, turn: int) -> likeness.Portrait:
        kinds = [TYPES[(i * i + turn) % len(TYPES)] for i in range(size)]
        bits = Estimate(0.9 + 0.3 * turn, 0.8 + 0.3 * turn, 1.1 + 0.3 * turn) if size >= 20 else None
        tokens = {"low": 12.0, "median": 20.5, "high": 31.0}
        return likeness.Portrait(size, shares(kinds, TYPES), {"en": 0.75, "zh-cn": 0.25}, tokens, bits, size)

    far = Distance(Estimate(0.21, 0.15, 0.3), Estimate(0.93, 0.88, 0.97), 0.0312, 0.001)
    sets = [("wild-prompts", 120, far), ("few", 7, Distance(None, None, None, None))][:others]
    return likeness.Likeness(
        {likeness.RECONSTRUCTED: portrait(count, 0)}
        | {name: portrait(size, turn) for turn, (name, size, _) in enumerate(sets, 1)},
        {name: distance for name, _, distance in sets},
        Floor(0.04, 0.58, 0.0011) if count >= 40 else Floor(None, None, None),
    )


def distribution_rows(instructions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every good instruction with a type in turn."""
    good = [row["instruction_id"] for row in instructions if row["status"] == "ok"]
    one = {"source": likeness.RECONSTRUCTED, "language": "en", "tokens": 20, "bits": 61.5, "bytes": 70}
    return [one | {"instruction_id": key, "type": TYPES[i % len(TYPES)]} for i, key in enumerate(good)]


def write_curve(path: Path, rng: random.Random, slope: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["step,loss,learning_rate,grad_norm,supervised_tokens,tokens_per_s"]
    for step in range(1, 25):
        loss = 0.8 + 2.4 * 2.7 ** (-step / slope) + rng.random() * 0.2
        lines.append(f"{step},{loss:.6f},0.0001,1.0,{step * 400},{rng.uniform(200, 400):.1f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_run(root: Path, raw: dict[str, Any], measures: list[str] | None = None, instructions: int = 40) -> Params:
    """Write params.yaml and every input of stage report under `root`; returns the params as the stage will see them."""
    params = Params.model_validate(raw)
    rng = random.Random(raw["seed"])
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    data = root / "data"
    probed = instruction_rows(rng, instructions)
    records.write(data / "instructions.parquet", probed, records.INSTRUCTIONS, ["sample_index"])
    rows = distribution_rows(probed)
    records.write(data / "distribution.parquet", rows, records.DISTRIBUTION, ["source", "instruction_id"])
    records.write_metrics(root / "metrics/distribution.json", likeness.flat(made_up_likeness(instructions)))
    answers: list[dict[str, Any]] = []
    for member in params.members():
        rows = response_rows(rng, member, probed, set() if member == params.target else held_out(probed))
        records.write(data / f"responses/{member}.parquet", rows, records.RESPONSES, ["response_id"])
        answers += rows
    votes: dict[str, float] = {}
    tables: dict[str, list[dict[str, Any]]] = {"judgments": [], "controls": []}
    texts = {row["instruction_id"]: row["text"] for row in probed}
    for i, judge in enumerate(params.enabled_judges()):
        judged = [row for row in answers if row["status"] == "ok" and row["instruction_id"] not in held_out(probed)]
        rows = judgment_rows(rng, judge, judged, 3.0 + 0.5 * i)
        records.write(data / f"judgments/{judge}.parquet", rows, records.JUDGMENTS, ["response_id"])
        for row in rows:
            votes[row["response_id"]] = votes.get(row["response_id"], 0.0) + (row["score"] or 0.0)
        planted = control_rows(rng, judge, judged, texts, 3.0 + 0.5 * i)
        records.write(data / f"controls/{judge}.parquet", planted, records.CONTROLS, ["pair_id"])
        tables = {"judgments": tables["judgments"] + rows, "controls": tables["controls"] + planted}
    figures = agree.agree(
        pa.Table.from_pylist(answers, records.RESPONSES),
        pa.Table.from_pylist(tables["judgments"], records.JUDGMENTS),
        pa.Table.from_pylist(tables["controls"], records.CONTROLS),
        pa.Table.from_pylist(probed, records.INSTRUCTIONS),
        members=params.members(),
        judges=params.enabled_judges(),
        select=Select(min_votes=1),
        bootstrap=Bootstrap(100, params.seed),
    )
    records.write(data / "agreement.parquet", figures, records.AGREEMENT, agree.KEY)
    measures = list(LEVELS) if measures is None else measures
    records.write(data / "samples/base.parquet", sample_rows("base", 0, measures), records.SAMPLES, SAMPLE_KEY)
    records.write(data / "domain/cleaned.parquet", domain_rows(40), records.CLEANED, ["row_id"])
    (data / "reseeded").mkdir(parents=True, exist_ok=True)
    effects = {}
    for i, (name, variant) in enumerate((raw["variants"] | raw.get("continued", {})).items()):
        rehearses = variant["rehearsal"] == "reconstructed"
        picks = selected_rows(variant, probed, answers, votes) if rehearses else None
        if picks is not None:
            records.write(data / f"selected/{name}.parquet", picks, records.SELECTED, ["instruction_id"])
            records.write(data / f"cleaned/{name}.parquet", cleaned_rows(picks), records.CLEANED, ["row_id"])
        elif variant["rehearsal"] != "none":
            own = [row | {"source": variant["rehearsal"]} for row in domain_rows(30)]
            records.write(data / f"cleaned/{name}.parquet", own, records.CLEANED, ["row_id"])
        records.write(data / f"mixed/{name}.parquet", mixed_rows(rng, raw["mix"], picks), records.MIXED, ["row_id"])
        effects[name] = (-1.0 if rehearses else 1.0) if variant["rehearsal"] in ("none", "reconstructed") else 0.6
        rows = sample_rows(name, effects[name], measures)
        records.write(data / f"samples/{name}.parquet", rows, records.SAMPLES, SAMPLE_KEY)
        write_curve(root / f"metrics/train/{name}.csv", rng, 4 + i)
    for name, between in params.interpolations.items():
        rows = sample_rows(name, between.alpha * effects[between.variant], measures)
        records.write(data / f"samples/{name}.parquet", rows, records.SAMPLES, SAMPLE_KEY)
    for name, seed in params.reseeded():
        rows = sample_rows(name, effects[name], measures, seed)
        records.write(data / f"reseeded/{name}-{seed}.parquet", rows, records.SAMPLES, SAMPLE_KEY)
    return params


SAMPLE_KEY = ["measure", "item_id"]

KINDS = {
    "small": (load_params, None),
    "wide": (wide_params, EVERY_MEASURE),
    "paper": (paper_params, [*LEADERBOARD, "medqa", "pubmedqa"]),
}

if __name__ == "__main__":
    make_params, asked = KINDS[sys.argv[2] if len(sys.argv) > 2 else "small"]
    write_run(Path(sys.argv[1]), make_params(), asked)
