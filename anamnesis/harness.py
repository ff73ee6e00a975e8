"""lm-eval's Hugging Face model, with one change: a multiple-choice context is read once for all its options.

Imports lm-eval, torch and transformers, so import it only where a model is asked.
"""

from collections.abc import Callable
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM


class SharedContextLM(HFLM):
    """An `HFLM` whose log-likelihood requests with equal contexts share one pass over it.

    The options then continue from its key-value cache. With four options of ten tokens after sixty that is a third of the
    tokens; the scores are those of `HFLM` to rounding (a test compares them). `advance` is called after every request.
    """

    def __init__(self, *args: Any, advance: Callable[[], None] = lambda: None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.set_cache_hook(_Counter(advance))

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """For each (strings, context ids, continuation ids): the continuation's log-likelihood, and whether it is greedy.

        Falls back to `HFLM`'s own where the model's cache can't be repeated or a request is longer than its context.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(index)
        if any(len(context) + len(continuation) > self.max_length for _, context, continuation in requests):
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for context, indices in groups.items():
            scores = self._continuations(context, [requests[index][2] for index in indices])
            if scores is None:
                return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            for index, score in zip(indices, scores, strict=True):
                found[index] = score
                self.cache_hook.add_partial("loglikelihood", requests[index][0], score)
        return found

    def _continuations(self, context: tuple[int, ...], options: list[list[int]]) -> list[tuple[float, bool]] | None:
        """Score every option after `context`; None where the cache can't be repeated."""
        with torch.inference_mode():
            begun = self.model(torch.tensor([context], device=self.device), use_cache=True, logits_to_keep=1)
            cache = begun.past_key_values
            if not hasattr(cache, "batch_repeat_interleave"):
                return None
            log_p = begun.logits[:, -1:].float().log_softmax(-1).expand(len(options), -1, -1)
            longest = max(map(len, options))
            if longest > 1:
                # Padded on the right, where nothing that counts can see it; the last token predicts nothing we need.
                ids = torch.zeros(len(options), longest - 1, dtype=torch.long, device=self.device)
                for place, option in enumerate(options):
                    ids[place, : len(option) - 1] = torch.tensor(option[:-1])
                cache.batch_repeat_interleave(len(options))
                rest = self.model(ids, past_key_values=cache, use_cache=True).logits.float().log_softmax(-1)
                log_p = torch.cat([log_p, rest], dim=1)  # [options, longest, vocabulary]
        scores = []
        for place, option in enumerate(options):
            targets = torch.tensor(option, device=self.device)
            own = log_p[place, : len(option)]
            greedy = bool((own.argmax(-1) == targets).all())
            scores.append((float(own.gather(1, targets.unsqueeze(1)).sum()), greedy))
        return scores


class _Counter:
    """lm-eval tells its cache about every finished request; we only count them."""

    def __init__(self, advance: Callable[[], None]):
        self.advance = advance

    def add_partial(self, kind: str, request: Any, result: Any) -> None:
        self.advance()
