"""Bits and KL: against slow loops written out here, on a tiny random model and (slow) on the real one."""

import math
import random

import pytest

from anamnesis import likelihood
from anamnesis.chat import Encoded, encode
from anamnesis.items import shipped

VOCABULARY = 61

EXPECTED_BYTES = [
    ([("user", "Hi"), ("assistant", "abc")], 3),
    ([("user", "long question"), ("assistant", "é")], 2),
    ([("user", "a"), ("assistant", "日本"), ("user", "b"), ("assistant", "x")], 7),
    ([("user", "a"), ("assistant", "")], 0),
]


@pytest.mark.parametrize(("turns", "size"), EXPECTED_BYTES)
def test_content_bytes(turns, size):
    assert likelihood.content_bytes([{"role": role, "content": content} for role, content in turns]) == size


def test_batches_hold_every_row_once_and_stay_in_the_budget(monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS", 100 * VOCABULARY)  # 100 padded positions
    lengths = [5, 40, 60, 20, 20, 5, 300, 5]
    found = likelihood.batches(lengths, VOCABULARY, batch_size=3)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert found[0] == [6]  # over the budget even alone: it still has its turn
    for batch in found[1:]:
        assert len(batch) <= 3
        assert len(batch) * max(lengths[index] for index in batch) <= 100


def tiny(seed, scale=1.0):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5 * scale,
    )
    return LlamaForCausalLM(config).eval()


def conversations(count, seed=1):
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [draw.randrange(VOCABULARY) for _ in range(draw.randint(4, 30))]
        made.append(Encoded(ids, [False, *(draw.random() < 0.5 for _ in ids[2:]), True]))
    return made


def by_hand(model, row, reference=None):
    """Bits and KL of one conversation: a pass a token, no batch, no padding, plain sums."""
    import torch

    bits = kl = 0.0
    for j, counts in enumerate(row.supervised):
        if counts:
            with torch.inference_mode():
                p = model(torch.tensor([row.ids[:j]])).logits[0, -1].double().softmax(-1)
                bits -= math.log2(p[row.ids[j]])
                if reference is not None:
                    q = reference(torch.tensor([row.ids[:j]])).logits[0, -1].double().softmax(-1)
                    kl += sum(float(b) * math.log(float(b) / float(a)) for a, b in zip(p, q, strict=True))
    return sum(row.supervised), bits, kl


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batched_equals_a_pass_a_token(batch_size):
    model, base = tiny(1), tiny(2)
    rows = conversations(7)
    counted = []
    found = likelihood.measure(model, rows, batch_size, base, counted.append)
    assert sum(counted) == len(rows)
    for row, scored in zip(rows, found, strict=True):
        tokens, bits, kl = by_hand(model, row, base)
        assert scored.tokens == tokens
        assert scored.bits == pytest.approx(bits, rel=1e-5)
        assert scored.kl == pytest.approx(kl, rel=1e-4)
        assert scored.kl > 0


def test_kl_has_a_direction():
    rows = conversations(3)
    ahead = likelihood.measure(tiny(1), rows, 4, tiny(2))
    back = likelihood.measure(tiny(2), rows, 4, tiny(1))
    assert max(abs(a.kl - b.kl) for a, b in zip(ahead, back, strict=True)) > 0.01


def test_without_a_reference_there_is_no_kl():
    assert [scored.kl for scored in likelihood.measure(tiny(1), conversations(2), 4)] == [None, None]


def test_a_uniform_model_needs_log2_of_the_vocabulary():
    import torch

    model = tiny(1)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for scored in likelihood.measure(model, conversations(3), 2):
        assert scored.bits == pytest.approx(scored.tokens * math.log2(VOCABULARY), rel=1e-6)


def test_context_counts_but_is_not_counted():
    # Another first token changes the surprise of the last one, and only the supervised last one is in the sum.
    one, two = (Encoded([first, 7, 9], [False, False, True]) for first in (3, 4))
    model = tiny(1)
    a, b = likelihood.measure(model, [one, two], 2)
    assert a.tokens == b.tokens == 1
    assert a.bits != pytest.approx(b.bits, rel=1e-3)


@pytest.mark.slow
def test_real_model_equals_a_pass_a_token_and_differs_from_itself_nowhere(smollm2_dir, smollm2_tokenizer):
    from anamnesis.evaluation import load_model

    model = load_model(smollm2_dir)
    rows = []
    for row in shipped("general")[:2]:
        whole = encode(smollm2_tokenizer, row["messages"])
        length = whole.supervised.index(True) + 8  # a pass a token is slow
        rows.append(Encoded(whole.ids[:length], whole.supervised[:length]))
    found = likelihood.measure(model, rows, 2, model)
    for row, scored in zip(rows, found, strict=True):
        tokens, bits, _ = by_hand(model, row)
        assert scored.tokens == tokens == 8
        assert scored.bits == pytest.approx(bits, rel=1e-4)
        assert abs(scored.kl) / scored.tokens < 1e-6
