"""How alike two sets of instructions are: types, vectors, lengths, languages, and what the target finds likely.

Pure functions over one `Collection` a set. A figure that too few instructions would make meaningless is None. Every
draw is seeded by what it is for. Beside each distance between two sets stands the same one between halves of the
reconstructed set (`floor`): what chance alone makes of sets half that large.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anamnesis.instruction_types import TYPES
from anamnesis.records import digest, seed_of
from anamnesis.stats import CONFIDENCE

MIN_INSTRUCTIONS = 20  # of each set in a comparison, and with bits in a mean of them
FOLDS = 5
HALVINGS = 10
UNSURE = "unsure"  # too few letters to tell a language, or two that are equally likely
MIN_LETTERS = 20
LANGUAGE_CHARACTERS = 300
SURE = 0.8  # probability of a language


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Collection:
    """One set of instructions, a row each; `vectors` (rows x dimensions) have length 1."""

    ids: list[str]
    types: list[str]
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: Sequence[int]) -> "Collection":
        """The rows at these places."""
        return Collection([self.ids[i] for i in places], [self.types[i] for i in places], self.vectors[list(places)])


@dataclass(frozen=True)
class Distance:
    """How far two sets are apart; None where one of them has fewer than `MIN_INSTRUCTIONS`."""

    types_js: Estimate | None  # Jensen-Shannon divergence of the types in bits, 0 to 1
    auc: Estimate | None  # of a classifier that tells the sets apart by vectors: 0.5 is not at all, 1 is always
    mmd2: float | None  # squared maximum mean discrepancy of the vectors, unbiased: around 0 for like sets
    mmd_p: float | None  # chance of an mmd2 as large if the sets were drawn from one


@dataclass(frozen=True)
class Floor:
    """The greatest distance between random halves of one set, over `HALVINGS` ways to halve it."""

    types_js: float | None
    auc: float | None
    mmd2: float | None


# ------------------------------------------------------------------------------------------------------------ one set


def sample(texts: Mapping[str, str], count: int, seed: int) -> dict[str, str]:
    """At most `count` texts by id, in an order that depends on the seed and each id only."""
    chosen = sorted(texts, key=lambda key: (digest("distribution", seed, key), key))[:count]
    return {key: texts[key] for key in chosen}


def shares(values: Sequence[str], names: Sequence[str]) -> dict[str, Estimate]:
    """Share of each name among the values with Wilson's interval (Wilson 1927); empty without values."""
    from scipy.stats import binomtest

    counts = Counter(values)
    found = {}
    for name in names if values else ():
        interval = binomtest(counts[name], len(values)).proportion_ci(CONFIDENCE, method="wilson")
        found[name] = Estimate(counts[name] / len(values), float(interval.low), float(interval.high))
    return found


def language(text: str) -> str:
    """ISO 639-1 code of a text's language by its first characters (langdetect), or `unsure`."""
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it draws at random without this
    shown = text[:LANGUAGE_CHARACTERS]
    if sum(letter.isalpha() for letter in shown) < MIN_LETTERS:
        return UNSURE
    try:
        best = langdetect.detect_langs(shown)[0]
    except langdetect.LangDetectException:
        return UNSURE
    return str(best.lang) if best.prob >= SURE else UNSURE


# ----------------------------------------------------------------------------------------------------------- two sets


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in bits of two distributions or of many (rows), given as counts.

    JS = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2 (Lin 1991), 0 for equal ones and 1 for disjoint ones.
    """
    from scipy.spatial.distance import jensenshannon

    return np.asarray(jensenshannon(p, q, base=2, axis=-1)) ** 2


def _type_counts(types: Sequence[str]) -> np.ndarray:
    counts = Counter(types)
    return np.array([counts[name] for name in TYPES], float)


def types_js(a: Collection, b: Collection, resamples: int, seed: int) -> Estimate:
    """Divergence of two sets' types with a percentile bootstrap interval: both sets are drawn anew.

    The divergence of samples is above 0 by chance even where both come from one source, and that of resamples more so:
    hold the figure against the halves', not against 0.
    """
    p, q = _type_counts(a.types), _type_counts(b.types)
    draw = np.random.default_rng(seed)
    again = divergence(
        draw.multinomial(len(a), p / p.sum(), resamples), draw.multinomial(len(b), q / q.sum(), resamples)
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(again, [tail, 1 - tail])
    return Estimate(float(divergence(p, q)), float(low), float(high))


def classifier_auc(a: Collection, b: Collection, resamples: int, seed: int) -> Estimate:
    """How well a logistic regression on vectors tells the sets apart on rows it was not fitted on.

    A classifier two-sample test (Lopez-Paz & Oquab 2017), with the area under the ROC curve in place of accuracy, so
    that sets of unequal size compare. Mean over `FOLDS` folds; the interval draws the held-out rows of each fold anew
    and leaves out that another fit would score otherwise. Equal ids stay in one fold: a twin in the other set
    would give a row's side away.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    x, groups = np.vstack([a.vectors, b.vectors]), np.array([*a.ids, *b.ids])
    side = np.repeat([0, 1], [len(a), len(b)])
    draw = np.random.default_rng(seed)
    values, again = [], np.zeros(resamples)
    for fitted, held in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(x, side, groups):
        scores = np.full(len(held), 0.0)
        if len(set(side[fitted])) == 2:
            model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(x[fitted], side[fitted])
            scores = np.round(model.decision_function(x[held]), 9)  # equal rows tie
        first, second = scores[side[held] == 0], scores[side[held] == 1]
        if not len(first) or not len(second):
            continue
        wins = (second[:, None] > first).astype(float) + 0.5 * (second[:, None] == first)  # Mann-Whitney's U, by pair
        values.append(wins.mean())
        m, n = wins.shape
        rows, columns = (
            draw.multinomial(m, np.full(m, 1 / m), resamples),
            draw.multinomial(n, np.full(n, 1 / n), resamples),
        )
        again += ((rows @ wins) * columns).sum(axis=1) / (m * n)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(again / len(values), [tail, 1 - tail])
    return Estimate(float(np.mean(values)), float(low), float(high))


def mmd(a: Collection, b: Collection, permutations: int, seed: int) -> tuple[float, float]:
    """Squared maximum mean discrepancy of the vectors, and its permutation p-value.

    The unbiased estimate of Gretton et al. (2012, eq. 3) with the kernel exp(-d^2 / 2 s^2); s is the median distance
    between rows of both sets together. p = (1 + permutations at least as large) / (1 + permutations)
    (Phipson & Smyth 2010).
    """
    from scipy.spatial.distance import pdist, squareform

    squared = pdist(np.vstack([a.vectors, b.vectors]), "sqeuclidean")
    middle = float(np.median(squared))
    kernel = squareform(np.exp(-squared / (2 * middle if middle > 0 else 1.0)))  # zeros on its diagonal
    m, n = len(a), len(b)
    draw = np.random.default_rng(seed)
    chosen = np.zeros((permutations + 1, m + n))
    chosen[0, :m] = 1
    for row in chosen[1:]:
        row[draw.permutation(m + n)[:m]] = 1
    with_first = chosen @ kernel
    within_first = (with_first * chosen).sum(axis=1)
    between = with_first.sum(axis=1) - within_first
    within_second = kernel.sum() - within_first - 2 * between
    found = within_first / (m * (m - 1)) + within_second / (n * (n - 1)) - 2 * between / (m * n)
    as_large = int((found[1:] >= found[0] - 1e-12).sum())
    return float(found[0]), (1 + as_large) / (1 + permutations)


def distance(a: Collection, b: Collection, resamples: int, seed: int) -> Distance:
    """Every distance between two sets, where both are large enough."""
    if min(len(a), len(b)) < MIN_INSTRUCTIONS:
        return Distance(None, None, None, None)
    mmd2, p = mmd(a, b, resamples, seed_of("mmd", seed))
    return Distance(
        types_js(a, b, resamples, seed_of("types", seed)),
        classifier_auc(a, b, resamples, seed_of("classifier", seed)),
        mmd2,
        p,
    )


def floor(whole: Collection, seed: int) -> Floor:
    """The greatest distances between random halves of one set; None where a half is too small."""
    found = []
    for turn in range(HALVINGS):
        order = sorted(range(len(whole)), key=lambda i: (digest("half", seed, turn, whole.ids[i]), whole.ids[i]))
        halves = whole.take(order[::2]), whole.take(order[1::2])
        if min(map(len, halves)) < MIN_INSTRUCTIONS:
            return Floor(None, None, None)
        found.append(
            (
                float(divergence(*(_type_counts(half.types) for half in halves))),
                classifier_auc(*halves, 1, seed_of("half", seed, turn)).value,
                mmd(*halves, 0, 0)[0],
            )
        )
    return Floor(*(max(column) for column in zip(*found, strict=True)))
