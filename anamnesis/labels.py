"""Where labels of a figure go: moved apart along a line, or around their points where they cover least."""

from collections.abc import Sequence
from itertools import pairwise


def spread(
    positions: Sequence[float], gap: float, low: float = float("-inf"), high: float = float("inf")
) -> list[float]:
    """Positions moved apart to at least `gap`, in their order, their middle kept where they fit in `low` to `high`."""
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    placed = [positions[i] for i in order]
    for _ in range(100):
        moved = False
        for a, b in pairwise(range(len(placed))):
            if (overlap := gap - (placed[b] - placed[a])) > 1e-6:
                placed[a], placed[b] = placed[a] - overlap / 2, placed[b] + overlap / 2
                moved = True
        if not moved:
            break
    if placed:
        push = max(0.0, low - placed[0]) - max(0.0, placed[-1] - high)
        placed = [value + push for value in placed]
    return [value for _, value in sorted(zip(order, placed, strict=True))]


Box = tuple[float, float, float, float]  # left, bottom, right, top

_AROUND = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
_REACHES = (7.0, 13.0, 20.0, 30.0)


def _overlap(one: Box, two: Box) -> float:
    """The area that two boxes share."""
    across = min(one[2], two[2]) - max(one[0], two[0])
    up = min(one[3], two[3]) - max(one[1], two[1])
    return max(0.0, across) * max(0.0, up)


def place(points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[Box],
          frame: Box) -> list[tuple[float, float]]:  # fmt: skip
    """The middle of each point's label: beside or above it, as near as covers nothing, within `frame`.

    `sizes` are widths and heights, `taken` what should stay visible. Labels are placed in the order of the points, and
    each counts as taken for the next; where every place covers something, the one that covers least is used.
    """
    covered = list(taken)
    found = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        places = []
        for reach in _REACHES:
            for order, (dx, dy) in enumerate(_AROUND):
                middle = (x + dx * (reach + width / 2), y + dy * (reach + height / 2))
                box = (middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2)
                outside = width * height - _overlap(box, frame)
                cost = sum(_overlap(box, other) for other in covered) + 3 * outside
                places.append((round(cost, 3) + 0.4 * reach, order, middle, box))
        _, _, middle, box = min(places)
        found.append(middle)
        covered.append(box)
    return found
