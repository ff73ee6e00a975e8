"""What stage distribution found, as flat metrics and back, and in sentences: the page and the terminal tell the same.

Keys (docs/distribution.md): `<set>.instructions`, `<set>.types.<type>.value|low|high`, … of each set,
`<set>.against.…` of a set against the reconstructed one, `halves.…` of the reconstructed one against itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anamnesis.distribution import HALVINGS, MIN_INSTRUCTIONS, Distance, Estimate, Floor

RECONSTRUCTED = "reconstructed"
DIGITS = 4
TOO_FEW = f"too few instructions: a comparison needs {MIN_INSTRUCTIONS} of each set"
TOO_FEW_HALVES = f"too few instructions to halve: that needs {2 * MIN_INSTRUCTIONS}"

Metrics = Mapping[str, float | int]


@dataclass(frozen=True)
class Portrait:
    """One set of instructions: counts, shares of types and languages, lengths, and what the target finds likely."""

    instructions: int
    types: dict[str, Estimate]
    languages: dict[str, float]  # shares, the most frequent first
    tokens: dict[str, float]  # quartiles by the target's tokenizer: `low`, `median`, `high`
    bits_per_byte: Estimate | None  # None with too few texts
    texts: int  # that the bits were measured on


@dataclass(frozen=True)
class Likeness:
    """Every set by name, the reconstructed one first; distances by the name of the other set."""

    portraits: dict[str, Portrait]
    distances: dict[str, Distance]
    floor: Floor


def _estimate(key: str, found: Estimate | None) -> dict[str, float]:
    return {} if found is None else {f"{key}.{part}": value for part, value in vars(found).items()}


def flat(likeness: Likeness) -> dict[str, float | int]:
    """Flat metrics; what too few instructions leave out has no key."""
    found: dict[str, float | int | None] = {}
    for name, one in likeness.portraits.items():
        found[f"{name}.instructions"] = one.instructions
        for kind, share in one.types.items():
            found |= _estimate(f"{name}.types.{kind.replace(' ', '_')}", share)
        found |= {f"{name}.languages.{code}": share for code, share in one.languages.items()}
        found |= {f"{name}.tokens.{part}": value for part, value in one.tokens.items()}
        found[f"{name}.bits_per_byte.texts"] = one.texts
        found |= _estimate(f"{name}.bits_per_byte", one.bits_per_byte)
    for name, apart in likeness.distances.items():
        found |= _estimate(f"{name}.against.types_js", apart.types_js) | _estimate(f"{name}.against.auc", apart.auc)
        found |= {f"{name}.against.mmd2": apart.mmd2, f"{name}.against.mmd_p": apart.mmd_p}
    found |= {f"halves.{key}": value for key, value in vars(likeness.floor).items()}
    return {
        key: round(value, 6 if "mmd2" in key else DIGITS) + 0.0 if isinstance(value, float) else value
        for key, value in found.items()
        if value is not None
    }


def read(metrics: Metrics) -> Likeness:
    """The metrics of `flat` as it was given, rounded."""
    tree: dict[str, Any] = {}
    for key, value in metrics.items():
        *path, last = key.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value

    def estimate(found: Mapping[str, float]) -> Estimate | None:
        return Estimate(found["value"], found["low"], found["high"]) if "value" in found else None

    halves = tree.pop("halves", {})
    portraits, distances = {}, {}
    for name, one in tree.items():
        types = {kind.replace("_", " "): Estimate(**share) for kind, share in one.get("types", {}).items()}
        bits = one["bits_per_byte"]
        portraits[name] = Portrait(
            one["instructions"],
            types,
            one.get("languages", {}),
            one.get("tokens", {}),
            estimate(bits),
            bits["texts"],
        )
        if name != RECONSTRUCTED:
            apart = one.get("against", {})
            distances[name] = Distance(
                estimate(apart.get("types_js", {})),
                estimate(apart.get("auc", {})),
                apart.get("mmd2"),
                apart.get("mmd_p"),
            )
    return Likeness(portraits, distances, Floor(halves.get("types_js"), halves.get("auc"), halves.get("mmd2")))


TYPES = ("set", "type", "value", "low", "high", "instructions")


def type_lines(likeness: Likeness) -> list[dict[str, Any]]:
    """Shares of types by set, a line each, for `dvc plots`; the reconstructed set's with zeros where there is none."""
    lines = [
        {"set": name, "type": kind, **vars(share), "instructions": one.instructions}
        for name, one in likeness.portraits.items()
        for kind, share in one.types.items()
    ]
    nothing = {"set": RECONSTRUCTED, "type": "other", "value": 0.0, "low": 0.0, "high": 0.0, "instructions": 0}
    return lines or [nothing]


# ---------------------------------------------------------------------------------------------------------- sentences


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _between(found: Estimate, digits: int = 2) -> str:
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def portrait_sentence(name: str, one: Portrait) -> str:
    """Types, length, languages and likelihood of one set in one sentence or two."""
    if not one.instructions:
        return f"{name}: no instruction."
    leading = sorted(one.types.items(), key=lambda item: (-item[1].value, item[0]))[:3]
    told = ", ".join(f"{kind} {_percent(share.value)}" for kind, share in leading if share.value)
    spoken = ", ".join(f"{code} {_percent(share)}" for code, share in list(one.languages.items())[:3] if share >= 0.005)
    told += f"; half of them have {one.tokens['low']:g} to {one.tokens['high']:g} tokens; language {spoken}"
    if one.bits_per_byte is None:
        return f"{name}: {one.instructions} instructions, most often {told}. Bits per byte: too few texts."
    return (
        f"{name}: {one.instructions} instructions, most often {told}. "
        f"The target takes {_between(one.bits_per_byte)} bits a byte to write them ({one.texts} texts)."
    )


def distance_sentence(name: str, apart: Distance, floor: Floor) -> str:
    """How far one set is from the reconstructed one, in words first."""
    if apart.types_js is None or apart.auc is None or apart.mmd2 is None or apart.mmd_p is None:
        return f"{name} against reconstructed: {TOO_FEW}."
    told = "can't tell" if apart.auc.low <= 0.5 else "tells"
    words = "are not shown to differ" if apart.mmd_p > 0.05 else "differ"
    halves = (
        TOO_FEW_HALVES[0].upper() + TOO_FEW_HALVES[1:]
        if floor.types_js is None or floor.auc is None or floor.mmd2 is None
        else f"Halves of the reconstructed set differ by up to {floor.types_js:.2f}, {floor.auc:.2f} "
        f"and {floor.mmd2:.4f} ({HALVINGS} ways to halve it)"
    )
    return (
        f"{name} against reconstructed: a classifier {told} them apart by their words "
        f"(AUC {_between(apart.auc)}; 0.5 is a coin toss); the types are {_between(apart.types_js)} bits apart; "
        f"the vectors {words} (MMD² {apart.mmd2:.4f}, p {apart.mmd_p:.3f}). {halves}."
    )


def sentences(likeness: Likeness) -> list[str]:
    """Everything in plain words: each set, then each distance."""
    return [
        *(portrait_sentence(name, one) for name, one in likeness.portraits.items()),
        *(distance_sentence(name, apart, likeness.floor) for name, apart in likeness.distances.items()),
    ]
