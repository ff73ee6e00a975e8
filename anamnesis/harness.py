"""lm-eval's Hugging Face model, with one change: a multiple-choice context is read once for all its options.

Imports lm-eval, torch and transformers, so import it only where a model is asked.
"""

from collections.abc import Callable
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM


class SharedContextLM(HFLM):
    """An `HFLM` whose log-likelihood requests with equal contexts share one pass over it.

    The options then continue from its key-value cache. With four options of ten tokens after sixty that is a third of
    the tokens; the scores are those of `HFLM` to rounding (a test compares them). `advance` is called after every
    request.
    """

    def __init__(self, *args: Any, advance: Callable[[], None] = lambda: None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.set_cache_hook(_Counter(advance))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """`HFLM.loglikelihood` without its progress bars."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """`HFLM.generate_until` without its progress bar."""
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """For each (strings, context ids, continuation ids): the continuation's log-likelihood, and is it greedy.

        Falls back to `HFLM`'s own where the model's cache can't be repeated or a request is longer than its context.
        """
        if any(len(context) + len(continuation) > self.max_length for _, context, continuation in requests):
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch in self._batches(requests):
            scores = self._continuations(
                [requests[indices[0]][1] for indices in batch],
                [[requests[index][2] for index in indices] for indices in batch],
            )
            if scores is None:
                return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            for index, score in zip((index for indices in batch for index in indices), scores, strict=True):
                found[index] = score
                self.cache_hook.add_partial("loglikelihood", requests[index][0], score)
        return found

    def _batches(self, requests: list[Any]) -> list[list[list[int]]]:
        """Indices of requests by context, in batches of contexts of one length with equally many options."""
        by_context: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            by_context.setdefault(tuple(context), []).append(index)
        level: dict[tuple[int, int], list[list[int]]] = {}
        for context, indices in by_context.items():
            level.setdefault((len(context), len(indices)), []).append(indices)
        size = int(self.batch_size)
        return [level[key][at : at + size] for key in sorted(level) for at in range(0, len(level[key]), size)]

    def _continuations(
        self, contexts: list[list[int]], options: list[list[list[int]]]
    ) -> list[tuple[float, bool]] | None:
        """Score every option after its context, in the order given; None where the cache can't be repeated."""
        flat = [option for of_context in options for option in of_context]
        longest = max(map(len, flat))
        # Padded on the right, where nothing that counts can see it; the last token predicts nothing we need.
        ids = torch.zeros(len(flat), longest, dtype=torch.long)
        for place, option in enumerate(flat):
            ids[place, : len(option)] = torch.tensor(option)
        ids = ids.to(self.device)
        with torch.inference_mode():
            begun = self.model(torch.tensor(contexts, device=self.device), use_cache=True, logits_to_keep=1)
            cache = begun.past_key_values
            if not hasattr(cache, "batch_repeat_interleave"):
                return None
            each = len(options[0])
            scored = [_scores(begun.logits.repeat_interleave(each, dim=0), ids[:, :1])]
            if longest > 1:
                cache.batch_repeat_interleave(each)
                rest = self.model(ids[:, :-1], past_key_values=cache, use_cache=True).logits
                scored.append(_scores(rest, ids[:, 1:]))
        log_p = torch.cat([part for part, _ in scored], dim=1).tolist()
        greedy = torch.cat([part for _, part in scored], dim=1).tolist()
        return [
            (sum(log_p[place][: len(option)]), all(greedy[place][: len(option)])) for place, option in enumerate(flat)
        ]


def _scores(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `targets` [rows, length] by `logits` [rows, length, vocabulary]; is each the likeliest."""
    logits = logits.float()
    own = logits.gather(2, targets.unsqueeze(2)).squeeze(2)
    return own - logits.logsumexp(-1), logits.argmax(-1) == targets


class _Counter:
    """lm-eval tells its cache about every finished request; we only count them."""

    def __init__(self, advance: Callable[[], None]):
        self.advance = advance

    def add_partial(self, kind: str, request: Any, result: Any) -> None:
        self.advance()
