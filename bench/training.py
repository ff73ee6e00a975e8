"""What the choices in training buy, side by side in one run: CPU time of forward and backward passes on the target.

Run: make bench          (after `dvc repro models`; some minutes on two cores)
Each pair is measured in turns on the same examples. Figures are tokens a second of CPU time, best of three turns:
compare them inside a line.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anamnesis import params as settings
from anamnesis import ranks, training
from anamnesis.chat import Encoded, encode
from anamnesis.packing import IGNORE, Rows, lay_out, pack

TURNS = 3
CAPACITY = 256
QUESTION = "Which of these birds stands still in shallow water until a fish comes near, and what is it waiting for? "
ANSWER = "A heron: it waits for a small fish to swim within reach of its neck, and then it strikes without a sound. "


def conversations(tokenizer: Any, question: int, answers: list[int]) -> list[Encoded]:
    """A conversation for each length in `answers`: so many sentences, to a question of `question` sentences."""
    return [
        encode(
            tokenizer,
            [{"role": "user", "content": QUESTION * question}, {"role": "assistant", "content": ANSWER * answer}],
        )
        for answer in answers
    ]


def all_logits(model: Any, batch: Rows, device: str) -> Any:
    """`training.summed_loss` without its choice of positions."""
    import torch

    logits = model(
        input_ids=torch.tensor(batch.input_ids), position_ids=torch.tensor(batch.position_ids), use_cache=False
    ).logits
    labels = torch.tensor(batch.labels)
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )


def compare(name: str, tokens: int, ways: dict[str, tuple[Any, Callable[..., Any], list[Rows]]]) -> None:
    """Run every way in turns; print tokens a CPU second of its best turn and the ratio of the last to the first."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(TURNS):
        for way, (model, loss, batches) in ways.items():
            start = time.process_time()
            for batch in batches:
                loss(model, batch, "cpu").backward()
            best[way] = min(best[way], time.process_time() - start)
            model.zero_grad()
    rates = {way: tokens / seconds for way, seconds in best.items()}
    first, *_, last = rates.values()
    line = f"{name}: " + ", ".join(f"{way} {rate:.0f}" for way, rate in rates.items()) + f"; ratio {last / first:.2f}"
    print(line, flush=True)


def main() -> None:
    ranks.choose_accelerator()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path("models/pretrained") / settings.load().target
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fp32, bf16 = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").train()
        for dtype in (torch.float32, torch.bfloat16)
    )
    mixed, short = conversations(tokenizer, 1, [6, 1, 2, 1]), conversations(tokenizer, 4, [0, 1])
    mixed_sequences, short_sequences = (
        [
            [examples[index] for index in sequence]
            for sequence in pack([len(example.ids) for example in examples], CAPACITY)
        ]
        for examples in (mixed, short)
    )
    packed, short_packed = (
        [lay_out([sequence], 0) for sequence in sequences] for sequences in (mixed_sequences, short_sequences)
    )
    together, padded = [lay_out(mixed_sequences, 0)], [lay_out([[example] for example in mixed], 0)]
    tokens, short_tokens = (sum(len(example.ids) for example in examples) for examples in (mixed, short))
    print("tokens a CPU second, forward and backward")
    loss = training.summed_loss
    compare(
        "logits, answers long",
        tokens,
        {"all positions": (fp32, all_logits, packed), "with labels": (fp32, loss, packed)},
    )
    compare(
        "logits, answers short",
        short_tokens,
        {"all positions": (fp32, all_logits, short_packed), "with labels": (fp32, loss, short_packed)},
    )
    compare("rows of a forward pass", tokens, {"padded": (fp32, loss, padded), "packed": (fp32, loss, together)})
    compare("micro-batch", tokens, {"of one row": (fp32, loss, packed), "of all": (fp32, loss, together)})
    compare("precision", tokens, {"bf16": (bf16, loss, packed), "fp32": (fp32, loss, packed)})


if __name__ == "__main__":
    main()
