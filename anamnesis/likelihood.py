"""How likely a model finds given answers: bits per byte, and KL divergence from base, in batched forward passes.

In: a causal language model and conversations encoded by `chat.encode`. Only supervised tokens count: the assistant's
content and the token that ends its turn. Everything up to them is context.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anamnesis.chat import Encoded

# Elements of one pass's logits (sequences x positions x vocabulary): 256 MiB in fp32, twice that with a reference.
LOGITS = 2**26


@dataclass(frozen=True)
class Likelihood:
    """One conversation: its supervised tokens' surprise in bits, and KL(reference || model) summed in nats."""

    tokens: int
    bits: float
    kl: float | None  # None without a reference


def batches(lengths: Sequence[int], vocabulary: int, batch_size: int) -> list[list[int]]:
    """Indices of sequences, longest first, in batches of at most `batch_size` whose padded logits fit in `LOGITS`."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    found: list[list[int]] = []
    for index in order:
        rows = len(found[-1]) + 1 if found else 0
        if 0 < rows <= batch_size and rows * lengths[found[-1][0]] * vocabulary <= LOGITS:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def measure(
    model: Any,
    encoded: Sequence[Encoded],
    batch_size: int,
    reference: Any = None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Likelihood]:
    """The likelihood of each conversation under `model`, in the order given; `advance(n)` after every batch of n.

    Bits: minus the sum of log2 p(token | everything before). KL: for each supervised position the sum over the whole
    vocabulary of p_ref (ln p_ref - ln p), never below zero except by rounding. Both models must share the vocabulary.
    """
    import torch

    found: list[Likelihood | None] = [None] * len(encoded)
    device = next(model.parameters()).device
    for batch in batches([len(row.ids) for row in encoded], model.config.get_text_config().vocab_size, batch_size):
        # Padded on the right and without a mask: in a causal model nothing before the padding can see it.
        ids = torch.zeros(len(batch), len(encoded[batch[0]].ids), dtype=torch.long)
        for place, index in enumerate(batch):
            ids[place, : len(encoded[index].ids)] = torch.tensor(encoded[index].ids)
        ids = ids.to(device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits
            other = None if reference is None else reference(input_ids=ids, use_cache=False).logits
            for place, index in enumerate(batch):
                targets = [j for j, counts in enumerate(encoded[index].supervised) if counts and j > 0]
                before = torch.tensor(targets, device=device) - 1  # position j - 1 predicts token j
                log_p = logits[place, before].float().log_softmax(-1)
                nats = -log_p.gather(1, ids[place, targets].unsqueeze(1)).double().sum()
                kl = None
                if other is not None:
                    log_ref = other[place, before].float().log_softmax(-1)
                    kl = float((log_ref.exp() * (log_ref - log_p)).sum(-1).double().sum())
                found[index] = Likelihood(len(targets), float(nats) / math.log(2), kl)
        advance(len(batch))
    return [likelihood for likelihood in found if likelihood is not None]


def content_bytes(messages: Sequence[dict[str, str]]) -> int:
    """UTF-8 bytes of what the assistant says in a conversation: the denominator of bits per byte."""
    return sum(len(message["content"].encode("utf-8")) for message in messages if message["role"] == "assistant")
