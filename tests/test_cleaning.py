"""What is taken out before the mix: each reason has its rows, of near-duplicates one stays, and the rest stays."""

import random
import sys
from typing import Any

import pytest
from cleaning_rows import LONG, WORDS, candidates, index, reasons, turns

from anamnesis import cleaning, records, tallies
from anamnesis.decontamination import Item
from anamnesis.errors import UserError
from anamnesis.refusals import refuses

# ------------------------------------------------------------------------------------------- refused, truncated, others

REFUSED = [
    "I'm sorry, but I can't assist with that.",
    "I\u2019m sorry, I can\u2019t help with this request.",
    "Unfortunately, I cannot fulfill this request, as it goes against my guidelines.",
    "I am unable to provide medical advice.",
    "As an AI language model, I cannot browse the internet.",
    "Sorry, that would be against my guidelines.",
]
ANSWERED = [
    "I can't believe how good this recipe is! Take two eggs.",
    "I'm sorry to hear that you can't sleep. Try this: no screens after nine.",
    "As an AI, I have no feelings, but here is how people describe them.",
    "I'm sorry, but I can't do that. However, I can tell you how the law sees it.",
    "As an AI, I can't examine a patient, but I can list what a doctor would look at.",
    "I can't help but smile at this. The joke is about a duck.",
    "Say this to him: I'm sorry, I forgot your birthday.",
    "",
]


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", ANSWERED)
def test_answered(text: str) -> None:
    assert not refuses(text)


PROSE = "Mosses have no roots. They drink through their leaves. " * 8
CUT = [
    PROSE + "This is why they can live on bare",
    "Use a lamp, a ladder and",
    "Here is the code:\n```python\nfor moss in mosses:\n    print(moss",
    PROSE + "\n\nSome of them, such as the ones in wet valleys,",
]
WHOLE = [
    PROSE,
    "Paris",
    "Sphagnum, of course",
    PROSE + "\n\n1. Slate roofs\n2. Old walls in wet and shaded valleys of the north",
    PROSE + "\n\nYours sincerely and with all good wishes from here, Ada",
    "```python\nprint('moss')\n```",
    PROSE + "They like it wet 🌿",
    PROSE + "\n\n| moss | place |\n| Sphagnum | bogs of the far and cold north |",
    "A haiku has seventeen syllables, and the last line need not end in a full stop",
]


@pytest.mark.parametrize(("text", "cut"), [*((text, True) for text in CUT), *((text, False) for text in WHOLE)])
def test_truncated_by_its_text(text: str, cut: bool) -> None:
    assert cleaning.is_cut(text) is cut


def test_every_response_is_looked_at_because_every_one_is_trained_on() -> None:
    no, cut = REFUSED[0], CUT[1]
    table = candidates(
        ("early no", turns("A dark secret?", no, "A moss, then?", "Sphagnum.", "And a fern?", "Bracken.")),
        ("later no", turns("A moss?", "Sphagnum.", "A dark secret?", no, "And a fern?", "Bracken.")),
        ("last no", turns("A moss?", "Sphagnum.", "A dark secret?", no)),
        ("early cut", turns("What do I need?", cut, "And then?", "A bucket.")),
        ("fine", turns("A moss?", "Sphagnum.", "And a fern?", "Bracken.")),
    )
    cleaned = cleaning.clean(table, [cleaning.truncated_check, cleaning.refused_check], None, seed=17)
    assert reasons(cleaned) == {
        "early no": ("refused", "refused in answer 1"),
        "later no": ("refused", "refused in answer 2"),
        "last no": ("refused", "refused"),
        "early cut": ("truncated", "truncated in answer 1"),
        "fine": ("ok", None),
    }
    assert cleaning.counts(cleaned) == {"rows": 5, "kept": 1, "dropped.refused": 3, "dropped.truncated": 1}
    told = [(drop.status, drop.reason, drop.count) for drop in tallies.clean_drops(cleaned.to_pylist())]
    assert told == [("refused", "refused", 3), ("truncated", "truncated", 1)]


def test_every_reason_is_given_once_and_counted() -> None:
    english = "Mosses drink through their leaves, which are one cell thick in most of them."
    table = candidates(
        ("fine", turns("Why do mosses like slate so much?", english)),
        ("copy", turns(LONG, REFUSED[0])),
        ("cut", turns("Tell me about mosses on roofs.", CUT[0])),
        ("no", turns("Tell me a dark secret.", REFUSED[0])),
        ("german", turns("Warum wachsen Moose auf Schiefer?", "Weil er Wasser hält und nie ganz trocken wird.")),
        ("mail", turns("Who can tell me more?", f"{english} Write to ada.moss@example.org.")),
        ("again", turns("Why do mosses like slate so MUCH?!", english)),
    )
    checks = [
        cleaning.overlap_check(index(made=[Item((LONG,))])),
        cleaning.truncated_check,
        cleaning.refused_check,
        cleaning.language_check(["en"]),
        _finds_mail,
    ]
    cleaned = cleaning.clean(table, checks, 0.8, seed=17)
    first = reasons(cleaned)
    kept, dropped = ("fine", "again") if first["fine"][0] == "ok" else ("again", "fine")
    assert first == {
        "copy": ("filtered", "overlap with made"),  # and not for its refusal
        "cut": ("truncated", "truncated"),
        "no": ("refused", "refused"),
        "german": ("filtered", "language de"),
        "mail": ("filtered", "personal data"),
        kept: ("ok", None),
        dropped: ("filtered", f"near-duplicate of {kept}"),
    }
    assert cleaning.counts(cleaned) == {
        "rows": 7,
        "kept": 1,
        "dropped.language": 1,
        "dropped.near-duplicate": 1,
        "dropped.overlap_with_made": 1,
        "dropped.personal_data": 1,
        "dropped.refused": 1,
        "dropped.truncated": 1,
    }
    assert reasons(cleaning.clean(table.take(list(range(6, -1, -1))), checks, 0.8, seed=17)) == first


def _finds_mail(messages: Any) -> tuple[str, str] | None:
    return ("filtered", "personal data") if "@" in messages[-1]["content"] else None


def test_short_and_unclear_texts_pass_the_language_filter() -> None:
    check = cleaning.language_check(["en"])
    for said in (("Write a poem.", "Ok."), ("def f(x): return x + 1", "def g(y): return y"), ("What is 3 + 4?", "7")):
        assert check(turns(*said)) is None, said


def test_personal_data() -> None:
    pytest.importorskip("datafog_core", reason="the extra `pii` is not installed")
    check = cleaning.personal_data_check(["EMAIL", "CREDIT_CARD"])
    assert check(turns("Write to ada.moss@example.org", "Done.")) == ("filtered", "personal data")
    assert check(turns("Pay.", "With 4111 1111 1111 1111.")) == ("filtered", "personal data")
    assert check(turns("What is an e-mail address?", "A name, an @, and a host, since 1971.")) is None
    with pytest.raises(UserError, match=r"clean\.personal_data: 'MAIL' is not known; known: .*EMAIL"):
        cleaning.personal_data_check(["MAIL"])


def test_personal_data_without_the_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datafog_core", None)
    with pytest.raises(UserError, match=r"^clean\.personal_data: needs the package datafog-core"):
        cleaning.personal_data_check(["EMAIL"])


# ----------------------------------------------------------------------------------------------------- near-duplicates


def _similarity(one: str, other: str) -> float:
    first, second = (
        {tuple(listed[i : i + 3]) for i in range(max(1, len(listed) - 2))} for listed in (one.split(), other.split())
    )
    return len(first & second) / len(first | second)


def test_near_duplicates_are_those_of_brute_force() -> None:
    """Texts with one to five words changed: none below the threshold is dropped, none well above it is kept."""
    draw = random.Random(4)
    texts: list[str] = []
    for _ in range(60):
        base = draw.choices(WORDS, k=draw.randrange(12, 60))
        for changes in range(6):
            text = list(base)
            for _ in range(changes):
                text[draw.randrange(len(text))] = draw.choice(["brick", "tower", "salt"])
            texts.append(" ".join(text))
    seen = cleaning.NearDuplicates(0.7)
    kept: list[str] = []
    found = missed = 0
    for place, text in enumerate(texts):
        like = seen.first_like(str(place), text)
        nearest = max((_similarity(text, other) for other in kept), default=0.0)
        if like is None:
            kept.append(text)
            missed += nearest >= 0.7
        else:
            found += 1
            assert _similarity(text, texts[int(like)]) == nearest >= 0.7
    assert found > 100
    assert missed <= 0.02 * found


DIFFERENT = [
    ("Is it safe for dogs to eat chocolate?", "Is it safe for dogs to eat avocado?"),
    ("Write a C function that reverses a string.", "Write a C++ function that reverses a string."),
    ("What is 3 + 4?", "What is 3 - 4?"),
    ("写一首关于秋天的诗", "写一首关于春天的诗"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_questions_are_no_near_duplicates_by_default(
    one: str, other: str, default_params: dict[str, Any]
) -> None:
    threshold = default_params["clean"]["near_duplicates"]
    table = cleaning.clean(candidates(("a", turns(one, "x")), ("b", turns(other, "x"))), [], threshold, seed=1)
    assert {status for status, _ in reasons(table).values()} == {"ok"}


def test_of_near_duplicates_the_one_stays_that_the_mix_would_take_first() -> None:
    for seed in range(6):
        table = candidates(*((str(i), turns("Why do mosses like slate so much?", "x")) for i in range(4)))
        first = min("0123", key=lambda key: records.digest(seed, "mix", key))
        kept = [key for key, (status, _) in reasons(cleaning.clean(table, [], 0.8, seed)).items() if status == "ok"]
        assert kept == [first]
