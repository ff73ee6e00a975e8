"""Sets of instructions against each other: like ones are not told apart, unlike ones are, and too few say nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import made_up_likeness

from anamnesis import distribution, likeness, records
from anamnesis import params as settings
from anamnesis.distribution import Collection, Distance, Estimate
from anamnesis.embedding import DIMENSIONS, embed
from anamnesis.errors import UserError
from anamnesis.instruction_types import OTHER, TYPES, instruction_types, keyword_type
from anamnesis.prototypes import prototypes
from bench.types import Labelled, accuracy, by_vector, read_labelled, shared_data
from stages import distribution as stage

RESAMPLES = 200


def collection(count: int, seed: int, shift: float = 0.0, kinds: tuple[str, ...] = TYPES[:4]) -> Collection:
    """Made-up instructions: normal vectors, moved by `shift` in every direction, types in turn."""
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(count, 8)) + shift
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"{seed}-{i}" for i in range(count)]
    return Collection(ids, [kinds[i % len(kinds)] for i in range(count)], vectors)


def apart(a: Collection, b: Collection) -> Distance:
    return distribution.distance(a, b, RESAMPLES, 17)


def measured(a: Collection, b: Collection) -> tuple[Estimate, Estimate, float, float]:
    """The four figures of sets that are large enough for them."""
    found = apart(a, b)
    assert found.types_js is not None
    assert found.auc is not None
    assert found.mmd2 is not None
    assert found.mmd_p is not None
    return found.types_js, found.auc, found.mmd2, found.mmd_p


# ------------------------------------------------------------------------------------------------------------ distances


def test_a_set_is_not_told_from_itself() -> None:
    one = collection(60, 1)
    types_js, auc, _, p = measured(one, one)
    assert types_js.value == 0
    assert auc.value == pytest.approx(0.5)
    assert p == 1.0


def test_two_draws_from_one_source_are_not_told_apart() -> None:
    found = [measured(collection(80, 10 + i), collection(60, 50 + i)) for i in range(8)]
    assert all(types_js.value < 0.01 for types_js, *_ in found)
    assert np.mean([auc.value for _, auc, *_ in found]) == pytest.approx(0.5, abs=0.06)
    assert sum(auc.low <= 0.5 <= auc.high for _, auc, *_ in found) >= 6
    assert sum(p <= 0.05 for *_, p in found) <= 2


def test_different_sets_are_told_apart() -> None:
    types_js, auc, mmd2, p = measured(collection(60, 1), collection(40, 2, shift=1.0, kinds=TYPES[4:6]))
    assert types_js.value == pytest.approx(1.0)
    assert auc.low > 0.9
    assert mmd2 > 0.1
    assert p == pytest.approx(1 / (1 + RESAMPLES))


def test_distances_are_the_same_again_and_in_any_order_of_rows() -> None:
    a, b = collection(40, 1), collection(30, 2, shift=0.3)
    assert apart(a, b) == apart(a, b)
    turned = apart(a.take(range(39, -1, -1)), b)
    assert turned.types_js == apart(a, b).types_js
    assert turned.mmd2 == pytest.approx(apart(a, b).mmd2 or 0.0)


def test_too_few_say_nothing() -> None:
    few, many = collection(distribution.MIN_INSTRUCTIONS - 1, 1), collection(60, 2)
    assert apart(few, many) == apart(many, few) == Distance(None, None, None, None)
    assert distribution.floor(collection(2 * distribution.MIN_INSTRUCTIONS - 2, 1), 17).auc is None
    told = likeness.distance_sentence("wild", apart(few, many), distribution.floor(few, 17))
    assert "too few" in told
    assert not any(letter.isdigit() for letter in told.replace(str(distribution.MIN_INSTRUCTIONS), ""))


def test_the_floor_is_what_halves_of_one_source_show() -> None:
    found = distribution.floor(collection(120, 3), 17)
    assert found.auc is not None
    assert found.types_js is not None
    assert 0.5 < found.auc < 0.75
    assert found.types_js < 0.1
    assert found == distribution.floor(collection(120, 3), 17)


def test_mmd_is_that_of_its_definition() -> None:
    a, b = collection(25, 1), collection(21, 2, shift=0.2)
    rows = np.vstack([a.vectors, b.vectors])
    squared = ((rows[:, None] - rows) ** 2).sum(axis=2)
    kernel = np.exp(-squared / (2 * np.median(squared[np.triu_indices(46, 1)])))
    np.fill_diagonal(kernel, 0)
    expected = kernel[:25, :25].sum() / (25 * 24) + kernel[25:, 25:].sum() / (21 * 20)
    expected -= 2 * kernel[:25, 25:].mean()
    assert distribution.mmd(a, b, 10, 1)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("p", "q", "expected"), [([1, 1], [2, 2], 0.0), ([5, 0], [0, 3], 1.0), ([1, 0], [1, 1], 0.3113)]
)
def test_divergence(p: list[float], q: list[float], expected: float) -> None:
    assert distribution.divergence(np.array(p, float), np.array(q, float)) == pytest.approx(expected, abs=1e-4)


def test_a_sample_depends_on_the_seed_and_the_ids_alone() -> None:
    texts = {str(i): f"text {i}" for i in range(50)}
    chosen = distribution.sample(texts, 20, 17)
    assert chosen == distribution.sample(dict(reversed(texts.items())), 20, 17)
    assert len(chosen) == 20
    assert chosen.keys() != distribution.sample(texts, 20, 18).keys()


def test_the_share_of_nothing_is_nothing() -> None:
    assert distribution.shares([], TYPES) == {}
    half = distribution.shares(["code", "maths"], TYPES)["code"]
    assert (half.value, half.low < 0.5 < half.high) == (0.5, True)


EXPECTED_LANGUAGES = {
    "How do I keep tomatoes from splitting on the vine?": "en",
    "Wie halte ich meine Tomaten davon ab, am Strauch zu platzen?": "de",
    "¿Cómo puedo evitar que los tomates se abran en la planta?": "es",
    "Как мне сделать так, чтобы помидоры не лопались на кусте?": "ru",
    "ok": "unsure",
    "": "unsure",
}


@pytest.mark.parametrize(("text", "expected"), EXPECTED_LANGUAGES.items())
def test_languages(text: str, expected: str) -> None:
    assert distribution.language(text) == expected


# ---------------------------------------------------------------------------------------------------- types and vectors

EXPECTED_TYPES = {
    "Write a Python function that reverses a list.": "code",
    "Fix the bug in this program: for i in range(10) print(i)": "code",
    "How many apples are left if I eat 3 of 12?": "maths",
    "Solve the equation 2x + 5 = 11.": "maths",
    "Compare the advantages and disadvantages of remote work.": "reasoning",
    "Act as a pirate and answer my questions.": "role play",
    "Plan a weekend itinerary for Lisbon.": "advice and planning",
    "Give me three tips for sleeping better.": "advice and planning",
    "Write a short story about a lighthouse.": "writing",
    "Rewrite this sentence in a formal tone.": "text work",
    "What is the capital of Peru?": "information seeking",
    "Explain how a bicycle stays upright.": "information seeking",
    "?!": OTHER,
    "": OTHER,
}


def test_instruction_types() -> None:
    assert dict(zip(EXPECTED_TYPES, instruction_types(list(EXPECTED_TYPES)), strict=True)) == EXPECTED_TYPES


def test_every_type_has_prototypes_and_keywords() -> None:
    kinds = [kind for kind, _ in prototypes()]
    assert {*kinds, OTHER} == set(TYPES)
    assert min(map(kinds.count, set(kinds))) >= 20
    assert len({sentence for _, sentence in prototypes()}) == len(prototypes())


def test_vectors_have_length_one_and_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    vectors = embed(["How does a heron fish?", "", "  ", "a broken \ud800 letter"])
    assert vectors.shape == (4, DIMENSIONS)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 0, 1])


def test_types_agree_with_a_reader_more_often_than_either_half() -> None:
    """On instructions labelled when the classifier was settled; docs/distribution.md has the figures."""
    if not (shared_data() / "rehearsal").is_dir():
        pytest.skip(f"no public sets in {shared_data()} (SHARED_DATA names the folder)")
    rows = [row for row in read_labelled(shared_data()) if row.sample == "fresh"]
    texts = [row.text for row in rows]
    both = accuracy(rows, instruction_types(texts))
    assert len(rows) > 100
    assert both["low"] > 0.5
    assert both["accuracy"] > accuracy(rows, [keyword_type(text) for text in texts])["accuracy"]
    assert both["accuracy"] > accuracy(rows, by_vector(texts))["accuracy"]


def test_accuracy_counts_each_type_once() -> None:
    rows = [Labelled("first", "", kind) for kind in ("code", "code", "code", "maths")]
    found = accuracy(rows, ["code", "code", "code", "code"])
    assert (found["accuracy"], found["mean_recall"]) == (0.75, 0.5)
    assert found["low"] < 0.75 < found["high"]


# ---------------------------------------------------------------------------------------------------- metrics and stage


def test_metrics_are_read_as_they_were_written() -> None:
    for others in (0, 2):
        whole = made_up_likeness(40, others)
        flat = likeness.flat(whole)
        assert likeness.flat(likeness.read(flat)) == flat
        assert all(isinstance(value, int | float) for value in flat.values())
        assert likeness.sentences(likeness.read(flat)) == likeness.sentences(whole)


def write_instructions(folder: Path, texts: list[str]) -> None:
    rows = [
        {
            "instruction_id": records.digest("instruction", text),
            "sample_index": i,
            "text": text,
            "status": "ok" if text else "filtered",
            "reason": None if text else "empty",
            "finish_reason": "stop",
            "tokens": None,
        }
        for i, text in enumerate(texts)
    ]
    records.write(folder / "data/instructions.parquet", rows, records.INSTRUCTIONS, ["sample_index"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nowhere.jsonl", "distribution.compare.wild: nowhere.jsonl: no such file"),
        ("set.csv", "distribution.compare.wild: 'set.csv': expected a file"),
        ("bad.jsonl", "bad.jsonl: line 1: not valid JSON"),
        ("mute.jsonl", r"mute.jsonl: line 2: field 'messages': no user's turn"),
    ],
)
def test_a_file_that_is_not_there_or_unreadable_is_one_line(
    path: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_params: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_instructions(tmp_path, ["What is fog?"])
    (tmp_path / "bad.jsonl").write_text("{no\n", encoding="utf-8")
    turns = [{"messages": [{"role": role, "content": "Why?"}]} for role in ("user", "assistant")]
    (tmp_path / "mute.jsonl").write_text("\n".join(map(json.dumps, turns)), encoding="utf-8")
    default_params["distribution"]["compare"] = {"wild": path}
    with pytest.raises(UserError, match=expected) as error:
        stage.texts_of(settings.Params.model_validate(default_params))
    assert "\n" not in str(error.value)


def test_first_turns_are_read_from_every_form_without_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_params: dict[str, Any]
) -> None:
    rows = {
        "alpaca": [{"instruction": "Add.", "input": "2 and 3"}, {"instruction": "Why?", "response": ""}],
        "messages": [{"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]}],
        "sharegpt": [{"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}] * 2,
    }
    for form, listed in rows.items():
        (tmp_path / f"{form}.jsonl").write_text("\n".join(map(json.dumps, listed)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    write_instructions(tmp_path, ["What is fog?"])
    default_params["distribution"]["compare"] = {form: f"{form}.jsonl" for form in rows}
    found = stage.texts_of(settings.Params.model_validate(default_params))
    assert {name: sorted(texts.values()) for name, texts in found.items()} == {
        "reconstructed": ["What is fog?"],
        "alpaca": ["Add.\n\n2 and 3", "Why?"],
        "messages": ["Why?"],
        "sharegpt": ["Why?"],
    }


@pytest.mark.parametrize("name", ["reconstructed", "halves", "a.b", "Upper"])
def test_names_of_sets_are_slugs_and_free(name: str, default_params: dict[str, Any]) -> None:
    default_params["distribution"]["compare"] = {name: "x.jsonl"}
    with pytest.raises(ValueError, match=r"compare\."):
        settings.Params.model_validate(default_params)


@pytest.mark.slow
def test_the_stage_on_the_real_target(
    project: Callable[..., Path],
    default_params: dict[str, Any],
    smollm2_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the target finds likely costs it fewer bits; a set compared with itself is not told apart."""
    default_params["distribution"] |= {"compare": {"same": "same.jsonl", "few": "few.jsonl"}, "likelihood": 20}
    default_params["distribution"] |= {"resamples": 100}
    folder = project(default_params, smollm2=smollm2_dir)
    monkeypatch.chdir(folder)
    texts = [sentence for _, sentence in prototypes()][::5]
    write_instructions(folder, [*texts, ""])
    noise = np.random.default_rng(1)
    odd = ["".join(noise.choice(list("qxzvkj wp"), 60)) for _ in range(19)]
    for name, rows in (("same", [*texts, texts[0]]), ("few", odd)):
        lines = [json.dumps({"instruction": text, "output": "x"}) for text in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    stage.main()
    found = json.loads((folder / "metrics/distribution.json").read_text(encoding="utf-8"))
    assert found["reconstructed.instructions"] == found["same.instructions"] == len(texts)
    assert found["same.against.auc.value"] == 0.5
    assert found["same.against.types_js.value"] == 0
    assert "few.against.auc.value" not in found
    assert "few.bits_per_byte.value" not in found
    assert 0.3 < found["reconstructed.bits_per_byte.value"] < 3
    assert "too few" in capsys.readouterr().out
    rows = records.read("data/distribution.parquet", records.DISTRIBUTION)
    assert len(rows) == 2 * len(texts) + 19
    assert sum(row["bits"] is not None for row in rows if row["source"] == "reconstructed") == 20
    worse = [row["bits"] / row["bytes"] for row in rows if row["source"] == "few"]
    assert min(worse) > found["reconstructed.bits_per_byte.value"]
