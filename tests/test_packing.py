"""Packing loses nothing and leaks nothing; the real model's attention keeps packed examples apart."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anamnesis.chat import Encoded, encode
from anamnesis.packing import IGNORE, deal, lay_out, pack

PACKED = [  # (lengths, capacity) -> sequences, worked out by hand
    ([], 10, []),
    ([10], 10, [[0]]),
    ([3, 7, 5, 5], 10, [[1, 0], [2, 3]]),
    ([6, 5, 4, 3, 2], 10, [[0, 2], [1, 3, 4]]),
    ([4, 6, 5], 10, [[1, 0], [2]]),  # 4 goes where it fits best, behind 6 and not behind 5
    ([2, 2, 2], 5, [[0, 1], [2]]),  # ties by index
]


def example(length: int, start: int = 0, prompt: int = 1) -> Encoded:
    """`length` tokens from `start` up, of which the first `prompt` are not trained on."""
    return Encoded(list(range(start, start + length)), [index >= prompt for index in range(length)])


@pytest.mark.parametrize(("lengths", "capacity", "sequences"), PACKED)
def test_best_fit_decreasing(lengths: list[int], capacity: int, sequences: list[list[int]]) -> None:
    assert pack(lengths, capacity) == sequences


def test_an_example_longer_than_a_sequence() -> None:
    with pytest.raises(ValueError, match="example 1 has 11 tokens, a sequence 10"):
        pack([3, 11], 10)


@given(lengths=st.lists(st.integers(1, 64), max_size=80), spare=st.integers(0, 64))
def test_every_example_is_packed_once_and_fits(lengths: list[int], spare: int) -> None:
    capacity = max(lengths, default=1) + spare
    sequences = pack(lengths, capacity)
    assert sorted(index for sequence in sequences for index in sequence) == list(range(len(lengths)))
    fill = [sum(lengths[index] for index in sequence) for sequence in sequences]
    assert all(0 < tokens <= capacity for tokens in fill)
    # No sequence could have been spared by moving all of it elsewhere: any two of them exceed the capacity.
    assert all(fill[i] + fill[j] > capacity for i in range(len(fill)) for j in range(i))
    assert pack(lengths, capacity) == sequences


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40), micro_batch=st.integers(1, 4), world=st.integers(1, 4)
)
def test_a_batch_is_dealt_out_once(sizes: list[int], micro_batch: int, world: int) -> None:
    rounds = deal(sizes, micro_batch, world)
    shares = [share for shares in rounds for share in shares]
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    assert all(len(shares) == world for shares in rounds)
    assert all(len(share) <= micro_batch for share in shares)
    assert len(rounds) == -(-len(sizes) // (micro_batch * world))  # no round that could be spared


def test_rows() -> None:
    rows = lay_out([[example(3, 10), example(2, 20)], [example(4, 30, prompt=2)]], pad_id=99)
    assert rows.input_ids == [[10, 11, 12, 20, 21], [30, 31, 32, 33, 99]]
    assert rows.position_ids == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]  # the padding is a segment of its own
    assert rows.labels == [[11, 12, IGNORE, 21, IGNORE], [IGNORE, 32, 33, IGNORE, IGNORE]]


def test_rows_of_nothing() -> None:
    rows = lay_out([], pad_id=7)
    assert (rows.input_ids, rows.position_ids, rows.labels) == ([[7]], [[0]], [[IGNORE]])


@given(lengths=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_no_label_crosses_an_example(lengths: list[list[int]]) -> None:
    """Every token gets an id of its own, so a label tells which position may predict it: the one before, its own."""
    start = 0
    sequences = []
    for sequence in lengths:
        sequences.append([])
        for length in sequence:
            sequences[-1].append(example(length, start))
            start += length
    rows = lay_out(sequences, pad_id=10**6)
    labels = [
        (token, label)
        for ids, row in zip(rows.input_ids, rows.labels, strict=True)
        for token, label in zip(ids, row, strict=True)
        if label != IGNORE
    ]
    assert all(label == token + 1 for token, label in labels)
    supervised = sorted(label for _, label in labels)
    first_tokens = {example.ids[0] for sequence in sequences for example in sequence}
    assert supervised == [token for token in range(start) if token not in first_tokens]


@pytest.fixture(scope="module")
def model(smollm2_dir: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def three(smollm2_tokenizer: Any) -> list[Encoded]:
    pairs = [("What is a heron?", "A grey bird that stands in water."), ("2 + 2?", "4"), ("Say it", "It, it and it.")]
    return [
        encode(smollm2_tokenizer, [{"role": "user", "content": q}, {"role": "assistant", "content": a}])
        for q, a in pairs
    ]


@pytest.mark.slow
def test_packed_logits_are_those_of_each_example_alone(model: Any, three: list[Encoded]) -> None:
    import torch

    rows = lay_out([three], pad_id=2)
    inputs = {"input_ids": torch.tensor(rows.input_ids), "position_ids": torch.tensor(rows.position_ids)}
    with torch.no_grad():
        packed = model(**inputs, use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0] for one in three])
        masked = model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), use_cache=False).logits[0]
    assert float((packed - alone).abs().max()) < 1e-3
    # Why a batch has no attention_mask: one of ones switches the blocks off, and nothing says so.
    assert float((masked - alone).abs().max()) > 1


@pytest.mark.slow
def test_padding_changes_no_logit(model: Any, three: list[Encoded]) -> None:
    import torch

    rows = lay_out([[one] for one in three], pad_id=2)
    with torch.no_grad():
        padded = model(
            input_ids=torch.tensor(rows.input_ids), position_ids=torch.tensor(rows.position_ids), use_cache=False
        ).logits
        for row, one in zip(padded, three, strict=True):
            alone = model(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0]
            assert float((row[: len(one.ids)] - alone).abs().max()) < 1e-3
