"""Examples of different lengths laid into sequences of one length, with nothing lost and nothing leaking.

In: examples as token ids and masks. Out: sequences (lists of examples) and the padded rows of a batch.
A packed sequence holds several examples; each restarts its position ids at 0, and from that alone transformers builds
the block-diagonal attention mask. **A batch therefore has no attention_mask**: with one, even all ones, the model takes
the positions but not the blocks, and examples see each other without any error.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from anamnesis.chat import Encoded

IGNORE = -100  # the label of a position that predicts nothing


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of examples, a list a sequence, none longer than `capacity` tokens together.

    The longest example goes first, each into the fullest sequence that still has room for it. Ties go to the smaller
    index and the older sequence, so equal input gives equal output. Raises `ValueError` for one that fits nowhere.
    """
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, sequence), sorted
    for example in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[example]
        if length > capacity:
            raise ValueError(f"example {example} has {length} tokens, a sequence {capacity}")
        place = bisect.bisect_left(room, (length, -1))
        if place < len(room):
            left, sequence = room.pop(place)
        else:
            left, sequence = capacity, len(sequences)
            sequences.append([])
        sequences[sequence].append(example)
        bisect.insort(room, (left - length, sequence))
    return sequences


@dataclass(frozen=True)
class Rows:
    """A micro-batch: three lists of equally long rows. `labels[i][j]` is the token that position j must predict."""

    input_ids: list[list[int]]
    position_ids: list[list[int]]
    labels: list[list[int]]


def lay_out(sequences: Sequence[Sequence[Encoded]], pad_id: int) -> Rows:
    """Sequences as rows, padded to the longest of them.

    Labels are shifted here, inside each example, so an example's first token is nobody's label. The padding is a
    segment of its own without labels; which id pads doesn't matter. No sequences at all give one row of one token that
    predicts nothing: a rank without work must still take part in the step.
    """
    width = max((sum(len(example.ids) for example in sequence) for sequence in sequences), default=1)
    rows = Rows([], [], [])
    for sequence in sequences or [[]]:
        ids: list[int] = []
        positions: list[int] = []
        labels: list[int] = []
        for example in sequence:
            ids += example.ids
            positions += range(len(example.ids))
            labels += [
                token if target else IGNORE
                for token, target in zip(example.ids[1:], example.supervised[1:], strict=True)
            ]
            labels.append(IGNORE)
        padding = width - len(ids)
        rows.input_ids.append(ids + [pad_id] * padding)
        rows.position_ids.append(positions + list(range(padding)))
        rows.labels.append(labels + [IGNORE] * padding)
    return rows


def end_to_end(rows: Rows) -> Rows:
    """The rows of a micro-batch as a single one: every example, and every padding, restarts its position ids anyway."""
    return Rows(*([list(chain(*lists))] for lists in (rows.input_ids, rows.position_ids, rows.labels)))


def deal(sizes: Sequence[int], micro_batch: int, world: int) -> list[list[list[int]]]:
    """Share one global batch out: `result[round][rank]` are the sequences of that rank's micro-batch, perhaps none.

    `sizes` are the sequences' tokens. Sequences of like length share a micro-batch, and the ranks of one round get like
    lengths. There are as few rounds as will do, and every sequence is dealt exactly once.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    shares = [order[start : start + micro_batch] for start in range(0, len(order), micro_batch)]
    shares += [[] for _ in range(-len(shares) % world)]
    return [shares[start : start + world] for start in range(0, len(shares), world)]
