"""A type for an instruction: code, maths, writing and so on, from keywords and word vectors together.

Two readers that miss different things: keyword patterns, in English, one a type, tried in order (`keyword_type`), and
the vector of the first words, compared with sentences of ours for each type (`prototypes.py`). A logistic regression
weighs both; it is fitted on the prototypes in a moment, offline, whenever types are asked for. How often it is right,
type by type: docs/distribution.md, from `python -m bench.types`. It shows gross shares: nothing is selected by it.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from anamnesis.embedding import embed
from anamnesis.prototypes import prototypes

OTHER = "other"
KEYWORD_CHARACTERS = 300  # of an instruction; what follows is mostly pasted text
VECTOR_CHARACTERS = 150
# Chosen on half of the labelled sample (bench/type_labels.tsv): docs/distribution.md.
KEYWORD_WEIGHT = 0.3  # of a keyword's match beside a vector of length 1
INVERSE_PENALTY = 3.0  # `C` of the regression
UNSURE = 0.2  # a best type less likely than that is none

_PATTERNS: dict[str, str] = {
    "code": r"""
        ```|\b(python|javascript|typescript|java|c\+\+|c\#|rust|golang|sql|html|css|bash|shell|regex|php|ruby|kotlin|swift
          |perl|powershell|linux|docker|git|django|laravel|react|pandas|numpy|json|api|vue|jax|terraform)\b
        |\b(write|create|implement|develop|fix|debug|refactor|build|design)\b.{0,60}
         \b(code|function|program|script|class|algorithm|method|query|api|app|compiler|kernel|database)\b
        |\b(source|pseudo)[ -]?code\b|\bcode\ snippet\b|\bdef\ \w+\(|\#include|\bunit\ tests?\b|\bstack\ trace\b
        |[;{}]\s*\n|\w\(\)
    """,
    "maths": r"""
        \b(solve|calculate|compute|evaluate|simplify|factori[sz]e|integrate|differentiate)\b.{0,80}
         (\b(equations?|expressions?|integral|derivative|area|volume|perimeter|probability|percentage|sum|value|total
          |average|mean|median|fractions?|for\ [a-z]|distance|speed|interest)\b|\d)
        |\b(algebra|geometry|calculus|trigonometry|matrix|matrices|polynomial|prove\ that|theorem|triangle|quadratic
          |arithmetic|logarithm|prime\ numbers?|irrational|standard\ deviation)\b
        |\bhow\ (many|much|old|far|long)\b.{0,200}\d|\d.{0,200}\bhow\ (many|much|old|far|long)\b
        |\d\s*[-+*/^=x×÷]\s*\d|\\(frac|sqrt|int|sum)\b
    """,
    "text work": r"""
        \b(summari[sz]e|translate|paraphrase|proofread|rephrase|rewrite|reword|shorten)\b|\bsummary\ of\ the\b
        |\b(correct|fix|check)\b.{0,30}\b(grammar|spelling|typos|punctuation)\b
        |\b(given|from|based\ on|using|according\ to|read|in)\b.{0,40}\b(passage
          |paragraph|(reference\ )?text|article|excerpt)\b
        |\b(following|this|the)\ (passage|paragraph|text|article|sentence|excerpt)\b|\b(text|sentence)\ (above|below)\b
        |\b(extract|pull)\b.{0,60}\bfrom\b
    """,
    "reasoning": r"""
        \b(puzzle|riddle|syllogism|fallacy|logical|logically|deduce|infer|premises?|conclusion|hypothes[ie]s)\b
        |\b(analy[sz]e|compare|contrast|evaluate|critique|assess|classify|categori[sz]e)\b
        |\bpros\ and\ cons\b|\badvantages\ and\ disadvantages\b|\bstep[ -]by[ -]step\b.{0,40}\breason
        |\b(identify|tell\ me|decide|determine)\ (which|whether)\b|\bwhich\ of\ the(se|\ following)\b
        |\bcause\ and\ effect\b|\bwhat\ would\ happen\ if\b
    """,
    "role play": r"""
        \b(act|behave|respond|answer|speak)\ (as|like)\ (if|an?|the)\b|\brole[ -]?play|\bpersona\b
        |\b(pretend|imagine)\ (that\ )?(you|to\ be|yourself)\b|^\W*you\ are\b|^\W*as\ an?\b
        |\b(play|take)\ (on\ )?the\ (role|character)\b
    """,
    "writing": r"""
        \b(write|compose|draft|craft|create|generate|pen|make)\b.{0,60}
         \b(story|stories|poem|haiku|limerick|sonnet|song|lyrics|essay|letter|e-?mail|article|blog|post|speech|paragraph
          |dialog(ue)?|screenplay|novel|scene|headline|slogan|tagline|caption|review|description|report|biography|tweet
          |chapter|narrative|sentences?|proposal|press\ release|resume|joke|riddle|paper|advertisement|template|ad)\b
        |\b(fictional|fantasy|science\ fiction|protagonist|plot)\b
    """,
    "advice and planning": r"""
        \b(advice|advise|tips?|think\ of|ideas|suggest|suggestions?|recommend|recommendations?|brainstorm
          |best\ (way|ways|practices?|time|place))\b|\bways\ to\b|\bcome\ up\ with\b
        |\bshould\ (i|we|my)\b|\bhow\ (can|do|should|could)\ (i|we|my)\b
        |\b(help\ me|i\ (want|need|would\ like)\ to|i'm\ (trying|struggling|looking|planning|thinking))\b
        |\b(plan|schedule|itinerary|agenda|roadmap|timetable|curriculum|syllabus|meal\ plan|budget)\b
        |\b(organi[sz]e|prepare\ for)\b.{0,40}\b(trip|event|party|wedding|week|day|project|meeting)\b
    """,
    "information seeking": r"""
        ^\W*(how|what|who|whom|whose|when|where|which|why|is|are|do|does|did|was|were|has|have)\b
        |\b(explain|describe|define|definition|meaning\ of|tell\ me\ about|list|name|outline|discuss
          |information|history\ of|difference\ between|overview)\b
        |\b(what|how|who|where|when|which)\b[^?]*\?
    """,
}
_COMPILED = {name: re.compile(pattern, re.VERBOSE | re.IGNORECASE | re.DOTALL) for name, pattern in _PATTERNS.items()}

TYPES = (*_PATTERNS, OTHER)


def keyword_type(text: str) -> str:
    """The first of `TYPES` whose keywords the text holds, else `other`."""
    return next((name for name, pattern in _COMPILED.items() if pattern.search(text[:KEYWORD_CHARACTERS])), OTHER)


def _features(texts: Sequence[str]) -> np.ndarray:
    """Texts x (dimensions + types): the vector of the first words, and which type the keywords say."""
    said = np.array([[keyword_type(text) == name for name in _PATTERNS] for text in texts], float)
    return np.hstack([embed(texts, VECTOR_CHARACTERS), KEYWORD_WEIGHT * said.reshape(len(texts), len(_PATTERNS))])


@cache
def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression

    kinds, sentences = zip(*prototypes(), strict=True)
    fitted = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=3000)
    return fitted.fit(_features(sentences), kinds)


def instruction_types(texts: Sequence[str]) -> list[str]:
    """The type of each instruction; `other` where no type is likely or there is no word to read."""
    if not texts:
        return []
    classifier = _classifier()
    likely = classifier.predict_proba(_features(texts))
    best = likely.argmax(axis=1)
    return [
        str(classifier.classes_[place])
        if row[place] >= UNSURE and re.search(r"\w", text[:KEYWORD_CHARACTERS])
        else OTHER
        for text, row, place in zip(texts, likely, best, strict=True)
    ]
