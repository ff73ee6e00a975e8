"""How many of a whole a fraction is: the one way of rounding, and the parts of a training set."""

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal

DOMAIN = "domain"  # the part of a mix, and the source, of the domain's rows; another domain's is domain:<name>
REHEARSAL = "rehearsal"  # the part of all other rows


def share(count: int, fraction: float) -> int:
    """`count` x `fraction` rounded half up, on the decimal number that was written (0.35 x 10 is 3.5, so 4)."""
    return int((Decimal(count) * Decimal(repr(fraction))).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def needs(total: int, fractions: Mapping[str, float], rehearses: bool) -> dict[str, int]:
    """How much of `total` each part is: the domains in the order of `fractions`, and rehearsal where there is any.

    A variant without rehearsal is all domain, its domains in the proportion of their fractions; the first one alone
    where these are 0. Rounded half up on the running sum, so that the parts add up exactly.
    """
    found, before, running = {}, 0, 0.0
    whole = 1.0 if rehearses else sum(fractions.values()) or 1.0
    for part, fraction in fractions.items():
        running += fraction
        upto = share(total, round(running / whole, 12))
        found[part], before = upto - before, upto
    if rehearses:
        return {**found, REHEARSAL: total - before}
    return found if before else {**found, next(iter(found)): total}
