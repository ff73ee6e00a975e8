"""Can the judges be trusted? The rows of `records.AGREEMENT` as tables and sentences, for the page and the Markdown.

Every sentence follows from a figure and its interval; one that is not defined is said to be so, with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from anamnesis.agreement import RATINGS
from anamnesis.controls import KINDS
from anamnesis.wording import signed

Row = Mapping[str, Any]
Key = tuple[str, str, str, str]
Standing = Literal["not defined", "no interval", "above", "below", "not shown"]

# Below it Krippendorff (Content Analysis, 2004, ch. 11) advises against any conclusion, below the second he calls
# conclusions tentative.
UNRELIABLE, TENTATIVE = 0.667, 0.8
ALPHAS = {
    "ordinal": "whole ratings, ordinal",
    "interval": "scores as they are, interval",
    "centred": "the same with each judge's own mean taken out",
}
UNCERTAIN = "too few or too uniform for an interval"
NOTHING: Row = {"value": None, "low": None, "high": None, "n": 0, "note": "there are no judgments"}


@dataclass(frozen=True)
class Mark:
    """One line of a figure: a value with its interval, and what simple baselines reach."""

    label: str
    value: float
    low: float | None
    high: float | None
    baselines: tuple[float | None, ...] = ()  # None: not defined


@dataclass(frozen=True)
class Table:
    """One table as text; the columns of `numbers` are set flush right."""

    name: str
    caption: str
    header: list[str]
    lines: list[list[str]]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trust:
    """The section as it is shown."""

    sentences: list[str]
    tables: list[Table]
    control_sentences: list[str]
    agreeing: list[Mark]  # pairs of judges: share of pairs of responses in the same order
    telling: list[Mark]  # judges and kinds of planted responses: AUC
    untold: list[str]  # judges and kinds that have no AUC, so that the figure can't show them


def told(row: Row, decimals: int = 2, sign: bool = False) -> str:
    """`0.32 [0.11, 0.50]`, the value alone where there is no interval, or why there is no value."""
    return _told(row, lambda end, digits: signed(end, digits) if sign else _number(end, digits), decimals, 0.0)


def _share(row: Row) -> str:
    """A share as `told`, in per cent."""
    return _told(row, lambda end, digits: f"{_number(100 * end, max(0, digits - 2))} %", 2, 0.5)


def _number(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # no negative zero


def _told(row: Row, text: Callable[[float, int], str], decimals: int, chance: float) -> str:
    """An estimate in `text`; an interval that leaves `chance` out gets as many decimals as it takes to see it."""
    if row["value"] is None:
        return f"not defined: {row['note']}"
    if row["low"] is None:
        return f"{text(row['value'], decimals)} [no interval]"
    low, high = row["low"], row["high"]
    if low > chance or high < chance:
        while decimals < 6 and round(low, decimals) <= chance <= round(high, decimals):
            decimals += 1
    return f"{text(row['value'], decimals)} [{text(low, decimals)}, {text(high, decimals)}]"


def standing(row: Row, chance: float) -> Standing:
    """Where a figure stands to chance; "not shown" takes an interval, and one that holds chance."""
    if row["value"] is None:
        return "not defined"
    if row["low"] is None:
        return "no interval"
    return "above" if above(row, chance) else "below" if below(row, chance) else "not shown"


def above(row: Row, level: float) -> bool:
    """Whether the whole interval lies above `level`; never without an interval."""
    return row["low"] is not None and row["low"] > level


def below(row: Row, level: float) -> bool:
    """Whether the whole interval lies below `level`; never without an interval."""
    return row["high"] is not None and row["high"] < level


class _Rows:
    """Rows by what they are about; a figure that nobody wrote is not defined."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = {(row["about"], row["subject"], row["other"], row["figure"]): row for row in rows}

    def get(self, about: str, figure: str, subject: str = "", other: str = "") -> Row:
        return self.rows.get((about, subject, other, figure), NOTHING)


def trust(rows: Sequence[Row], judges: Sequence[str], members: Sequence[str]) -> Trust:
    """The section from rows of `records.AGREEMENT`, judges and members in the order of params.yaml."""
    found = _Rows(rows)
    planted = [(judge, kind) for judge in judges for kind in KINDS if ("control", judge, kind, "auc") in found.rows]
    sentences = [_alpha_sentence(found), *_agreement_sentences(found, judges)]
    sentences += [_judge_sentence(found, judge) for judge in judges]
    sentences += [
        _sum_sentence(row, *pair)
        for pair in combinations(judges, 2)
        if (row := found.get("pair", "self_preference_sum", *pair)) is not NOTHING
    ]
    if judges:
        sentences += [_member_sentence(found, member) for member in members]
    tables = [_alphas(found), _pairs(found, judges), _ratings(found, judges), _preferences(found, judges)]
    tables += [_members(found, members), _controls(found, planted)]
    return Trust(
        sentences=sentences,
        tables=[table for table in tables if table.lines],
        control_sentences=[str(found.get("control", "auc", *pair)["note"]) for pair in planted],
        agreeing=[
            Mark(f"{one} – {two}", row["value"], row["low"], row["high"])
            for one, two in combinations(judges, 2)
            if (row := found.get("pair", "same_order", one, two))["value"] is not None
        ],
        telling=[
            Mark(
                f"{judge}: {kind.replace('_', ' ')}",
                row["value"],
                row["low"],
                row["high"],
                _baselines(found, judge, kind),
            )
            for judge, kind in planted
            if (row := found.get("control", "auc", judge, kind))["value"] is not None
        ],
        untold=[
            f"{judge}: {kind.replace('_', ' ')}"
            for judge in judges
            for kind in KINDS
            if planted and found.get("control", "auc", judge, kind)["value"] is None
        ],
    )


def summary(rows: Sequence[Row], judges: Sequence[str], members: Sequence[str]) -> list[str]:
    """The section in short lines: agreement, weight and self-preference, and what the control says."""
    found = _Rows(rows)
    lines = [f"alpha, {label}: {told(found.get('alpha', name))}" for name, label in ALPHAS.items()]
    for one, two in combinations(judges, 2):
        names = ("kappa", "same_order", "self_preference_sum")
        kappa, order, both = (found.get("pair", name, one, two) for name in names)
        lines.append(f"{one} and {two}: kappa {told(kappa)}, same order {_share(order)}")
        lines += [] if both is NOTHING else [_sum_sentence(both, one, two)]
    for judge in judges:
        flip, own = (found.get("judge", name, judge) for name in ("flip", "self_preference"))
        lines.append(f"{judge}: winners changed without it {_share(flip)}, self-preference {told(own, sign=True)}")
    return lines + trust(rows, judges, members).control_sentences


def _baselines(found: _Rows, judge: str, kind: str) -> tuple[float | None, ...]:
    return tuple(found.get("control", name, judge, kind)["value"] for name in ("length_auc", "overlap_auc"))


# --------------------------------------------------------------------------------------------------------- sentences


def _alpha_sentence(found: _Rows) -> str:
    ordinal, interval, centred = (found.get("alpha", name) for name in ALPHAS)
    if interval["value"] is None:
        return f"Whether judges agree is not defined: {interval['note']}."
    text = (
        f"Krippendorff's alpha of the scores is {told(interval)}, of whole ratings {told(ordinal)}, and with each "
        f"judge's own mean taken out {told(centred)}."
    )
    match standing(centred, 0):
        case "not defined":
            return f"{text} Whether they agree apart from how strict each of them is can't be said."
        case "no interval":
            return f"{text} The votes are {UNCERTAIN}: agreement is neither shown nor ruled out."
        case "below":
            return f"{text} They disagree more than by chance."
        case "not shown":
            return f"{text} No agreement beyond chance is shown."
    if centred["value"] < UNRELIABLE:
        return f"{text} That is more than chance, and less than the {UNRELIABLE} that conclusions should rest on."
    if centred["value"] < TENTATIVE:
        return f"{text} That allows tentative conclusions."
    return f"{text} Apart from how strict each of them is, the judges agree well."


def _agreement_sentences(found: _Rows, judges: Sequence[str]) -> list[str]:
    """Who agrees with whom on the order of two responses to one instruction: all that selection uses."""
    if len(judges) < 2:
        return []
    rows = {(one, two): found.get("pair", "same_order", one, two) for one, two in combinations(judges, 2)}
    if len(judges) == 2:
        return [_order_sentence(rows[judges[0], judges[1]], *judges)]
    return [
        _company_sentence(
            judge, {one if two == judge else two: row for (one, two), row in rows.items() if judge in (one, two)}
        )
        for judge in judges
    ]


def _order_sentence(row: Row, one: str, two: str) -> str:
    """Two judges alone."""
    if row["value"] is None:
        return f"How {one} and {two} order responses can't be compared: {row['note']}."
    text = (
        f"Of two responses to one instruction, {one} and {two} prefer the same one in {_share(row)} of cases; chance "
        "is 50 %."
    )
    match standing(row, 0.5):
        case "below":
            return f"{text} They tend to prefer opposite ones."
        case "no interval":
            return f"{text} The cases are {UNCERTAIN}: agreement is neither shown nor ruled out."
        case "not shown":
            return f"{text} No agreement is shown: the votes of one of them, or of both, may be noise."
    return text


def _company_sentence(judge: str, rows: Mapping[str, Row]) -> str:
    """One judge among several; `rows` are its pairs by the other judge."""
    by: dict[str, list[str]] = {}
    for other, row in rows.items():
        by.setdefault(standing(row, 0.5), []).append(other)
    same_as = (("above", "the same one as"), ("below", "the other one than"))
    if tends := [f"prefer {which} {' and '.join(by[key])}" for key, which in same_as if key in by]:
        return f"Of two responses to one instruction, {judge} tends to {' and to '.join(tends)}."
    if set(by) == {"not shown"}:
        return (
            f"Judge {judge} agrees with no other judge beyond chance on the order of two responses: its votes are "
            "noise, or something that no other judge sees."
        )
    reasons = {
        "not shown": "no agreement is shown",
        "no interval": f"the cases are {UNCERTAIN}",
        "not defined": f"not defined: {'; '.join(sorted({str(row['note']) for row in rows.values() if row['note']}))}",
    }
    told_by = [f"with {' and '.join(by[key])} {reason}" for key, reason in reasons.items() if key in by]
    return f"Whether judge {judge} orders two responses as others do can't be said: {'; '.join(told_by)}."


def _judge_sentence(found: _Rows, judge: str) -> str:
    own, length, flip, random = (
        found.get("judge", name, judge) for name in ("self_preference", "length_slope", "flip", "flip_at_random")
    )
    if own["value"] is None:
        text = f"Judge {judge}: self-preference is not defined ({own['note']})"
    elif above(own, 0):
        text = f"Judge {judge} prefers its own responses, by {told(own, sign=True)} points"
    elif below(own, 0):
        text = f"Judge {judge} scores its own responses lower, by {told(own, sign=True)} points"
    else:
        text = f"Judge {judge}: no self-preference shown ({told(own, sign=True)} points{_unless_interval(own)})"
    if length["value"] is None:
        text += f"; taste for length not defined ({length['note']})"
    elif above(length, 0) or below(length, 0):
        more = "longer" if length["value"] > 0 else "shorter"
        text += f"; it scores {more} responses higher ({told(length, 3, sign=True)} points for twice the length)"
    else:
        points = f"{told(length, 3, sign=True)} points for twice the length{_unless_interval(length)}"
        text += f"; no taste for length shown ({points})"
    if flip["value"] is None:
        return f"{text}; its weight in the picks is not defined ({flip['note']})."
    return f"{text}; without it {_share(flip)} of the winners change (picked at random: {100 * random['value']:.0f} %)."


def _unless_interval(row: Row) -> str:
    """Why a figure shows nothing, where it is for want of an interval."""
    return f", {UNCERTAIN}" if standing(row, 0) == "no interval" else ""


def _sum_sentence(row: Row, one: str, two: str) -> str:
    """Two judges whose self-preferences are known as a sum alone."""
    match standing(row, 0):
        case "not defined":
            return f"What {one} and {two} together favour their own by is not defined ({row['note']})."
        case "no interval" | "not shown":
            points = f"{told(row, sign=True)} points added up{_unless_interval(row)}"
            return f"No preference of {one} and {two} together for their own is shown ({points})."
    verb = "favour" if row["value"] > 0 else "disfavour"
    return f"{one} and {two} together {verb} their own by {told(row, sign=True)} points; which of them can't be told."


def _member_sentence(found: _Rows, member: str) -> str:
    share, chance, excess = (found.get("member", name, member) for name in ("win_share", "win_chance", "win_excess"))
    if share["value"] is None:
        return f"Member {member}: share of the picks not defined ({share['note']})."
    text = (
        f"Member {member} wrote {100 * share['value']:.0f} % of the winners and {100 * chance['value']:.0f} % of their "
        "candidates"
    )
    if above(excess, 0) or below(excess, 0):
        return f"{text}: picked {'more' if excess['value'] > 0 else 'less'} often than by chance."
    return f"{text}: no difference to chance shown{_unless_interval(excess)}."


# ------------------------------------------------------------------------------------------------------------ tables


def _alphas(found: _Rows) -> Table:
    lines = [
        [label, str(row["n"]), told(row)] for name, label in ALPHAS.items() if (row := found.get("alpha", name))["n"]
    ]
    caption = "Krippendorff's alpha over all judges: 1 is agreement, 0 is chance, below 0 is worse than chance"
    return Table("alpha", caption, ["alpha of", "responses", "value [95 %]"], lines, (1,))


def _pairs(found: _Rows, judges: Sequence[str]) -> Table:
    lines = []
    for one, two in combinations(judges, 2):
        kappa, ranks, order = (found.get("pair", name, one, two) for name in ("kappa", "spearman", "same_order"))
        lines.append([one, two, str(kappa["n"]), told(kappa), told(ranks), _share(order)])
    header = ["judge", "judge", "responses", "weighted kappa", "rank correlation", "same order"]
    caption = (
        "Pairs of judges. Kappa is of whole ratings, with quadratic weights; same order is the share of pairs of "
        "responses to one instruction of which both prefer the same one (chance: 50 %)"
    )
    return Table("agreement", caption, header, lines, (2,))


def _ratings(found: _Rows, judges: Sequence[str]) -> Table:
    lines = []
    for judge in judges:
        counts = [f"{found.get('judge', f'rating.{rating}', judge)['value'] or 0:.0f}" for rating in RATINGS]
        mean, spread = (found.get("judge", name, judge)["value"] for name in ("mean", "spread"))
        shown = "–" if mean is None else f"{mean:.2f} ± {spread:.2f}"
        lines.append([judge, _share(found.get("judge", "parse_rate", judge)), *counts, shown])
    header = ["judge", "votes read", *map(str, RATINGS), "mean ± deviation"]
    caption = "How many scores round to each rating (half a point up), and the share of votes that could be read"
    return Table("ratings", caption, header, lines, tuple(range(2, len(header))))


def _preferences(found: _Rows, judges: Sequence[str]) -> Table:
    lines = []
    for judge in judges:
        own, plain, length, flip, random = (
            found.get("judge", name, judge)
            for name in ("self_preference", "own_minus_others", "length_slope", "flip", "flip_at_random")
        )
        chance = "–" if random["value"] is None else f"{100 * random['value']:.0f} %"
        moved = [told(row, sign=True) for row in (own, plain)]
        lines.append([judge, *moved, told(length, 3, sign=True), _share(flip), chance])
    header = ["judge", "self-preference", "own - others' score", "for twice the length"]
    header += ["winners changed", "at random"]
    caption = (
        "What moves a judge, in points of its score, and how many winners change without its votes (rule mean). Its "
        "score of its own responses minus that of the others is higher for a generous judge too"
    )
    return Table("preferences", caption, header, lines, (5,))


def _members(found: _Rows, members: Sequence[str]) -> Table:
    rows = {member: found.get("member", "win_excess", member) for member in members}
    order = sorted(members, key=lambda member: -(rows[member]["value"] or 0.0))
    lines = []
    for member in order:
        share, chance = (found.get("member", name, member) for name in ("win_share", "win_chance"))
        if share["value"] is not None:
            found_by_chance = f"{100 * chance['value']:.0f} %"
            lines.append([member, _share(share), found_by_chance, told(rows[member], sign=True)])
    among = next((row["n"] for row in (found.get("member", "win_share", member) for member in order) if row["n"]), 0)
    header = ["member", "wrote of the winners", "of the candidates", "difference of the shares"]
    caption = f"Who wins under rule mean, all judges and all members together: {among} winners, most favoured first"
    return Table("favoured", caption, header, lines, (2,))


def _controls(found: _Rows, planted: Sequence[tuple[str, str]]) -> Table:
    lines = []
    for judge, kind in planted:
        row = found.get("control", "auc", judge, kind)
        by = [found.get("control", name, judge, kind)["value"] for name in ("length_auc", "overlap_auc")]
        auc = "–" if row["value"] is None else told(row)
        baselines = ["–" if value is None else f"{value:.2f}" for value in by]
        lines.append([judge, kind.replace("_", " "), str(row["n"]), auc, *baselines, str(row["note"])])
    header = ["judge", "planted", "pairs", "AUC [95 %]", "by length", "by overlap", "in words"]
    caption = (
        "Planted responses, known to be worse: the chance that a judge scores the genuine one higher (0.5 is a coin). "
        "Beside it what the number of characters, and the words shared with the instruction, would have told"
    )
    return Table("controls", caption, header, lines, (2, 4, 5))
