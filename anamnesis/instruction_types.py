"""A rough type for an instruction, from keywords: one pattern a type, tried in order, the first that matches wins.

It shows which kinds of instruction a model recalled and what share each has. It reads English only, it can't tell what
a text means, and an instruction of two kinds gets the one that stands first here. Only the first `READ_CHARACTERS`
count: what follows is mostly pasted text, which says little about the task. Nothing is selected or dropped by it.
"""

import re
from collections import Counter
from collections.abc import Iterable

OTHER = "other"
READ_CHARACTERS = 300

_PATTERNS: dict[str, str] = {
    "code": r"""
        ```|\b(python|javascript|typescript|java|c\+\+|c\#|rust|golang|sql|html|css|bash|regex|php|kotlin|pandas|numpy)\b
        |\b(write|create|implement|develop|fix|debug|refactor|build)\b.{0,60}
         \b(code|function|program|script|class|algorithm|method|query|api|app)\b
        |\b(how\ to\ fix|what\ is\ wrong|error)\b.{0,80}\b(error|code|exception|function)\b
        |\b(source|pseudo)[ -]?code\b|\bdef\ \w+\(|\bunit\ tests?\b|\bstack\ trace\b|\bcompiler\b
    """,
    "maths": r"""
        \b(solve|calculate|compute|evaluate|simplify|factori[sz]e|integrate|differentiate)\b.{0,80}
         (\b(equations?|expressions?|integral|derivative|area|volume|perimeter|probability|percentage|sum|value|total
          |average|mean|median|fractions?|for\ [a-z]|distance|speed|interest)\b|\d)
        |\b(algebra|geometry|calculus|trigonometry|matrix|matrices|polynomial|prove\ that|theorem|triangle|quadratic
          |arithmetic|logarithm|prime\ numbers?|standard\ deviation)\b
        |\bhow\ (many|much)\b.{0,200}\d|\d.{0,200}\bhow\ (many|much)\b|\d\s*[-+*/^=x×÷]\s*\d
    """,
    "reasoning": r"""
        \b(puzzle|riddle|syllogism|fallacy|logical|logically|deduce|infer|premises?|conclusion|hypothes[ie]s)\b
        |\b(analy[sz]e|compare|contrast|evaluate|critique|assess|classify|categori[sz]e)\b
        |\bpros\ and\ cons\b|\badvantages\ and\ disadvantages\b|\bwhy\ (do|does|did|is|are|was|were|might|would)\b
        |\bstep[ -]by[ -]step\b.{0,40}\breason|\bcause\ and\ effect\b|\bwhat\ would\ happen\ if\b
    """,
    "role play and planning": r"""
        \b(act|behave|respond|answer)\ (as|like)\ (an?|the|if)\b|\b(pretend|imagine)\ (that\ )?(you|to\ be)\b
        |\byou\ are\ (an?|the)\b|\brole[ -]?play|\bplay\ the\ role\b
        |\b(plan|schedule|itinerary|agenda|roadmap|timetable|curriculum|syllabus|meal\ plan|budget)\b
        |\b(organi[sz]e|prepare\ for)\b.{0,40}\b(trip|event|party|wedding|week|day|project|meeting)\b
    """,
    "writing": r"""
        \b(write|compose|draft|craft|create|generate|pen)\b.{0,60}
         \b(story|stories|poem|haiku|sonnet|song|lyrics|essay|letter|email|e-mail|article|blog|post|speech|paragraph
          |dialogue|script|novel|scene|headline|slogan|caption|review|description|summary|report|biography|tweet|chapter
          |narrative|sentences?|proposal|press\ release|cover|character)\b
        |\b(rewrite|rephrase|paraphrase|proofread|summari[sz]e|edit|translate|reword|shorten)\b
        |\b(fictional|fantasy|science\ fiction|protagonist|plot)\b|\bbrainstorm|\bcome\ up\ with\b
    """,
    "advice": r"""
        \b(advice|advise|tips?|think\ of|ideas|suggest|suggestions?
          |recommend|recommendations?|best\ (way|ways|practices?|time|place))\b
        |\bshould\ (i|we|my)\b|\bhow\ (can|do|should|could)\ (i|we)\b
        |\b(help\ me|i\ (want|need|would\ like)\ to|i'm\ (trying|struggling|looking|planning|thinking))\b
    """,
    "information seeking": r"""
        ^\W*(how|what|who|whom|whose|when|where|which|is|are|do|does|did|was|were|has|have)\b
        |\b(explain|describe|define|definition|meaning\ of|tell\ me|list|name|identify|outline|discuss|give|provide
          |information|history\ of|difference\ between|overview)\b
        |\b(what|how|who|where|when|which)\b[^?]*\?
    """,
}
_COMPILED = {name: re.compile(pattern, re.VERBOSE | re.IGNORECASE | re.DOTALL) for name, pattern in _PATTERNS.items()}

TYPES = (*_PATTERNS, OTHER)


def instruction_type(text: str) -> str:
    """The type of one instruction: the first of `TYPES` whose keywords it holds, else `other`."""
    return next((name for name, pattern in _COMPILED.items() if pattern.search(text[:READ_CHARACTERS])), OTHER)


def count_types(texts: Iterable[str]) -> dict[str, int]:
    """How many instructions each type has, every type named, in the order of `TYPES`."""
    counts = Counter(map(instruction_type, texts))
    return {name: counts[name] for name in TYPES}
