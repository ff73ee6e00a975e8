"""The default domain set: questions about ICD-10-CM codes, built from the package simple-icd-10-cm.

In: the package's tables (public domain; the package is MIT). Out: conversations to train on and test items of three
kinds, split by category (the three characters before the dot), so that no tested category is ever trained on. Answers
are bare (a title, a code, a chapter's title), so that a test item can be scored as a string.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from anamnesis.errors import UserError
from anamnesis.records import digest, seed_of

SOURCE = "icd10cm"
LONGEST_CODE = 5  # characters without the dot: longer ones are mostly laterality and encounter variants of these
LONGEST_TEXT = 120  # characters of a description or an inclusion term
TEST_SHARE = 0.25  # of each chapter's categories
CHOICES = 4

# What each question asks for, in several wordings; {code}, {description} and {term} are filled in.
WORDINGS: dict[str, tuple[str, ...]] = {
    "description": (
        "What does the ICD-10-CM code {code} stand for?",
        "Give the title of ICD-10-CM code {code}.",
        "A chart shows {code}. What does this ICD-10-CM code mean?",
        "Which diagnosis or circumstance does {code} describe in ICD-10-CM?",
    ),
    "code": (
        "Which ICD-10-CM code has the title “{description}”?",
        "Code this for me in ICD-10-CM: {description}",
        "I need the ICD-10-CM code for: {description}",
        "How is “{description}” coded in ICD-10-CM?",
    ),
    "term": (
        "Under which ICD-10-CM code is “{term}” listed?",
        "The record says “{term}”. Which ICD-10-CM code includes it?",
        "Find the ICD-10-CM code that covers this term: {term}",
        "Which ICD-10-CM code should be used for “{term}”?",
    ),
    "chapter": (
        "Which ICD-10-CM chapter does the code {code} belong to?",
        "Name the ICD-10-CM chapter that contains {code}.",
        "In which chapter of ICD-10-CM would you look for {code}?",
        "What is the title of the ICD-10-CM chapter with the code {code}?",
    ),
}
CHOICE_TYPES = ("description", "term")
EXACT_TYPES = ("chapter",)

_INSTRUCTION = re.compile(r"classif|should be|code first|\b[A-Z]\d[0-9A-Z]\b|[.:]$", re.IGNORECASE)


@dataclass(frozen=True)
class Code:
    """A category or subcategory: `category` is the part before the dot, `block` the nearest range around it."""

    code: str
    description: str
    category: str
    block: str
    chapter: str  # its title, without the range
    ancestors: tuple[str, ...]
    terms: tuple[str, ...]  # inclusion terms that are listed at no other code


@dataclass(frozen=True)
class Question:
    """One question about one code, with its only right answer."""

    row_id: str
    type: str  # a key of WORDINGS
    code: Code
    text: str
    answer: str


def load_codes() -> list[Code]:
    """Read the classification: every code of at most five characters with a title no other code has.

    A title or an inclusion term that is found twice has no single right code, so it is left out, and so are inclusion
    terms that are notes to the coder. Takes about 3 s, most of it the package reading its XML.
    """
    import simple_icd_10_cm as icd

    every = [code for code in icd.get_all_codes() if not icd.is_chapter_or_block(code)]
    titles = Counter(icd.get_description(code).casefold() for code in every)
    short = [code for code in every if len(code.replace(".", "")) <= LONGEST_CODE]
    listed = Counter(term.casefold() for code in short for term in set(icd.get_inclusion_term(code)))
    codes = []
    for code in short:
        description = icd.get_description(code)
        category = code.split(".")[0]
        if titles[description.casefold()] > 1 or len(description) > LONGEST_TEXT or category in description:
            continue
        ancestors = icd.get_ancestors(code)
        terms = {
            term
            for term in icd.get_inclusion_term(code)
            if listed[term.casefold()] == 1
            and term.casefold() not in titles
            and len(term) <= LONGEST_TEXT
            and not _INSTRUCTION.search(term)
        }
        codes.append(
            Code(
                code=code,
                description=description,
                category=category,
                block=next(item for item in ancestors if icd.is_block(item)),
                chapter=re.sub(r"\s*\([A-Z0-9-]+\)$", "", icd.get_description(ancestors[-1])),
                ancestors=tuple(ancestors),
                terms=tuple(sorted(terms)),
            )
        )
    return codes


def test_categories(codes: Sequence[Code], seed: int) -> set[str]:
    """The categories kept for testing: in each chapter the first quarter (at least one) in seeded hash order."""
    by_chapter: dict[str, set[str]] = {}
    for code in codes:
        by_chapter.setdefault(code.chapter, set()).add(code.category)
    held: set[str] = set()
    for categories in by_chapter.values():
        ordered = sorted(categories, key=lambda category: digest(seed, "category", category))
        held.update(ordered[: max(1, round(TEST_SHARE * len(ordered)))])
    return held


def questions(codes: Iterable[Code], seed: int) -> list[Question]:
    """Every question that can be asked about these codes, each in one seeded wording."""
    found = []
    for code in codes:
        asked = [("description", "", code.description), ("code", "", code.code), ("chapter", "", code.chapter)]
        asked += [("term", term, code.code) for term in code.terms]
        for kind, term, answer in asked:
            row_id = digest(SOURCE, kind, code.code, term)
            wording = WORDINGS[kind][seed_of(seed, row_id) % len(WORDINGS[kind])]
            text = wording.format(code=code.code, description=code.description, term=term)
            found.append(Question(row_id, kind, code, text, answer))
    return found


def deal(pool: Iterable[Question], types: Sequence[str], count: int, seed: int) -> list[Question]:
    """Take `count` questions in turn from every pair of chapter and type, each pair in seeded hash order.

    So chapters and types are level to within one as far as they reach, and a smaller count is a prefix of a larger one.
    Returns fewer where the pool is smaller.
    """
    piles: dict[tuple[str, str], list[Question]] = {}
    for question in pool:
        if question.type in types:
            piles.setdefault((question.code.chapter, question.type), []).append(question)
    for pile in piles.values():
        pile.sort(key=lambda question: digest(seed, "deal", question.row_id), reverse=True)
    chapters = sorted({chapter for chapter, _ in piles}, key=lambda chapter: digest(seed, "deal", chapter))
    laps, places = range(len(types)), range(len(chapters))
    turn = [(chapters[place], types[(place + lap) % len(types)]) for lap in laps for place in places]
    dealt: list[Question] = []
    while len(dealt) < count and any(piles.values()):
        for pair in turn:
            if len(dealt) < count and piles.get(pair):
                dealt.append(piles[pair].pop())
    return dealt


def distractors(question: Question, codes: Sequence[Code], seed: int) -> list[str]:
    """Three wrong options of the answer's kind: one near the right code, and two near each other from another chapter.

    So the options are two pairs: no odd one out gives the answer away, knowing the chapters leads to one half right,
    and the rest takes knowing the code. Near is the same category, then the same block, then the same chapter. The
    four codes have one length, since a likelihood prefers short ones.
    """
    right = question.code
    level = [code for code in codes if len(code.code) == len(right.code)]

    def neighbours(code: Code) -> list[Code]:
        # A code that contains the other, or is contained in it, would be half right.
        others = [
            other
            for other in level
            if other.chapter == code.chapter
            and other.code != code.code
            and other.code not in code.ancestors
            and code.code not in other.ancestors
        ]
        return sorted(
            others,
            key=lambda other: (
                other.category != code.category,
                other.block != code.block,
                digest(seed, question.row_id, other.code),
            ),
        )

    picked = neighbours(right)[:1]
    categories = {code.category for code in level if code.chapter != right.chapter}
    for category in sorted(categories, key=lambda category: digest(seed, question.row_id, category)):
        if len(picked) == CHOICES - 1:
            break
        inside = (code for code in level if code.category == category)
        anchor = min(inside, key=lambda code: digest(seed, question.row_id, code.code))
        picked += [anchor, *neighbours(anchor)][: CHOICES - 1 - len(picked)]
    picked.sort(key=lambda code: digest(seed, question.row_id, "place", code.code))
    return [code.description if question.type == "description" else code.code for code in picked]


def build(codes: Sequence[Code], train: int, test: int, seed: int, licence: str) -> tuple[list[dict[str, Any]], ...]:
    """Rows for `records.DOMAIN_TRAIN` (`train` of them) and `records.DOMAIN_TEST` (`test` of each kind).

    Raises `UserError` where the classification has fewer questions than asked for.
    """
    held = test_categories(codes, seed)
    tested = [code for code in codes if code.category in held]
    train_pool = questions((code for code in codes if code.category not in held), seed)
    test_pool = questions(tested, seed)

    rows = [
        {
            "row_id": question.row_id,
            "messages": _conversation(question),
            "category": question.code.category,
            "source": SOURCE,
            "licence": licence,
        }
        for question in _exactly(train, deal(train_pool, tuple(WORDINGS), train, seed), "train", len(train_pool))
    ]
    choice = deal(test_pool, CHOICE_TYPES, test, seed)
    exact = deal(test_pool, EXACT_TYPES, test, seed)
    used = {question.row_id for question in choice + exact}
    text = deal((question for question in test_pool if question.row_id not in used), tuple(WORDINGS), test, seed)
    least = min(len(choice), len(exact), len(text))

    items = []
    for kind, dealt in (("choice", choice), ("exact", exact), ("text", text)):
        for place, question in enumerate(sorted(_exactly(test, dealt, "test", least), key=lambda item: item.row_id)):
            item: dict[str, Any] = {
                "row_id": digest(kind, question.row_id),
                "kind": kind,
                "messages": _conversation(question)[: 2 if kind == "text" else 1],
                "choices": None,
                "gold": None,
                "answer": question.answer if kind == "exact" else None,
                "category": question.code.category,
            }
            if kind == "choice":
                options = distractors(question, tested, seed)
                item["gold"] = gold_position(place, seed)
                item["choices"] = [*options[: item["gold"]], question.answer, *options[item["gold"] :]]
            items.append(item)
    return rows, items


def gold_position(place: int, seed: int) -> int:
    """Where the right option of the `place`-th item stands: each four items use the four positions once, shuffled."""
    block, offset = divmod(place, CHOICES)
    return sorted(range(CHOICES), key=lambda position: digest(seed, "gold", block, position))[offset]


def _conversation(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]


def _exactly(count: int, dealt: list[Question], key: str, most: int) -> list[Question]:
    if len(dealt) < count:
        raise UserError(f"domain.{key}: {count} asked for, and ICD-10-CM gives at most {most}; lower domain.{key}")
    return dealt
