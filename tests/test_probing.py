"""Every sample ends with a status and a reason; the canary stops a prefix that does not fit."""

import pytest

from anamnesis.client import Outcome
from anamnesis.errors import UserError
from anamnesis.ledger import Answer
from anamnesis.probing import check_canary, classify, fault_of, next_wave, pass_share, probe_call
from anamnesis.sections import Canary, Probe
from anamnesis.template import PreQuery

PROBE = Probe(instructions=3, max_requests=10)
LOOP = "the same words again and " * 12

EXPECTED = [
    ("Can you tell me how tides work?", "stop", None),
    ("  ", "stop", "empty"),
    ("", "length", "empty"),
    ("Tell me about", "length", "unfinished"),
    ("Explain this. <|im_start|>assistant", "stop", "template piece"),
    ("[INST] Why is it so?", "stop", "template piece"),
    ("Почему небо голубое?", "stop", "wrong script"),
    ("请告诉我为什么天空是蓝色的 please", "stop", "wrong script"),
    ("What does café naïveté mean?", "stop", None),
    ("2 + 2 * 4 = ?", "stop", None),
    ("Hi there", "stop", "too short"),
    (LOOP, "stop", "repetition"),
]


@pytest.mark.parametrize(("text", "finish", "fault"), EXPECTED)
def test_each_fault_has_its_reason(text: str, finish: str, fault: str | None) -> None:
    assert fault_of(text, finish, PROBE) == fault


def outcome(text: str, finish: str = "stop") -> Outcome:
    return Outcome(Answer(text, finish, 10, 5))


def test_every_sample_is_kept_and_only_new_good_ones_are_ok() -> None:
    outcomes = [
        outcome("What is a tide?"),
        outcome("what is  a TIDE"),
        Outcome(None, "HTTP 400: no"),
        outcome("Name three birds.", "length"),
        outcome("Name three birds."),
        outcome("Why do cats purr?"),
        outcome("Why do dogs bark?"),
        outcome("Why do dogs bark?"),
    ]
    samples = classify(outcomes, PROBE)
    assert [(sample.status, sample.reason) for sample in samples] == [
        ("ok", None),
        ("filtered", "duplicate"),
        ("failed", "HTTP 400: no"),
        ("truncated", "unfinished"),
        ("ok", None),
        ("ok", None),
        ("filtered", "surplus"),
        ("filtered", "surplus"),
    ]
    assert [sample.sample_index for sample in samples] == list(range(8))
    good = [sample.instruction_id for sample in samples if sample.status == "ok"]
    assert len(set(good)) == len(good)
    assert pass_share(samples) == pytest.approx(5 / 7)


def test_waves_reach_the_goal_and_keep_the_budget() -> None:
    probe = Probe(instructions=40, max_requests=50, canary=Canary(size=10, min_pass=0))
    assert next_wave([], probe) == 10
    outcomes = [outcome(f"What is number {i} good for?") for i in range(10)]
    wave = next_wave(classify(outcomes, probe), probe)
    assert 30 <= wave <= 40
    outcomes += [outcome("same words here") for _ in range(wave)]
    assert next_wave(classify(outcomes, probe), probe) == 50 - 10 - wave
    done = classify([outcome(f"What is number {i} good for?") for i in range(40)], probe)
    assert next_wave(done, probe) == 0


@pytest.mark.parametrize(
    ("bad", "advice"),
    [
        (outcome("a text that never ends", "length"), "system block"),
        (outcome(""), "probe.prefix"),
        (outcome("the very same question"), "temperature"),
        (outcome("Почему небо голубое сегодня?"), "probe.scripts"),
    ],
)
def test_the_canary_gives_shares_and_advice(bad: Outcome, advice: str) -> None:
    probe = Probe(instructions=20, max_requests=40)
    good = [outcome(f"What is number {i} good for?") for i in range(4)]
    samples = classify([*good, *[bad] * 16], probe)
    with pytest.raises(UserError, match=advice) as caught:
        check_canary(samples, probe)
    assert caught.value.code == 5
    assert "\n" not in str(caught.value)
    check_canary(classify(good, probe), probe)


def test_a_samples_seed_depends_on_its_index_alone() -> None:
    prefix = PreQuery("p", [1, 2], [3], [])
    assert probe_call(prefix, PROBE, 17, 4) == probe_call(prefix, PROBE, 17, 4)
    seeds = {probe_call(prefix, PROBE, 17, i).request["seed"] for i in range(50)}
    assert len(seeds) == 50
