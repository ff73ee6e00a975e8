"""The two backends: lm-eval's Hugging Face model, and its client of a completions server, both with what we add.

`SharedContextLM` reads a multiple-choice context once for all its options, `ServedLM` renders and encodes prompts
exactly as the other does. Imports lm-eval, torch and transformers, so import it only where a model is asked.
"""

from collections.abc import Callable
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI

from anamnesis import chat
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.server import Endpoint

TEMPLATE_ARGUMENTS = {"strftime_now": chat.TODAY.strftime}


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


class ServedLM(LocalCompletionsAPI):
    """lm-eval's completions client against a server of ours: token ids go out, log-probabilities and texts come back.

    The chat template is applied here with the fixed date, and prompts are encoded as `HFLM` encodes them: a beginning
    token once, never twice.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: Any,
        max_length: int,
        concurrency: int,
        timeout_s: float,
        advance: Callable[[], None] = lambda: None,
    ):
        super().__init__(
            base_url=endpoint.base_urls[0] + "/completions",
            model=endpoint.model,
            tokenizer_backend="huggingface",
            tokenizer=tokenizer.name_or_path,
            num_concurrent=max(2, concurrency),  # 1 would be another code path, one request after the other
            max_length=max_length,
            timeout=int(timeout_s),
            header={"Authorization": f"Bearer {endpoint.api_key}"},
        )
        self.tokenizer = tokenizer
        self.endpoint = endpoint
        self.set_cache_hook(_Counter(advance))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """`HFLM.apply_chat_template`, of which the parent has a shorter one."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **TEMPLATE_ARGUMENTS,
        )

    def tok_encode(self, string: Any, left_truncate_len: int | None = None, **ignored: Any) -> Any:
        """`HFLM.tok_encode`, also for several texts."""
        if not isinstance(string, str):
            return [self.tok_encode(each, left_truncate_len) for each in string]
        begun = bool(self.tokenizer.bos_token) and string.startswith(self.tokenizer.bos_token)
        ids = self.tokenizer.encode(string, **({"add_special_tokens": False} if begun else {}))
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The parent's, with a server that died told in one line."""
        return self._or_told(super().loglikelihood, requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The parent's, with a server that died told in one line."""
        return self._or_told(super().generate_until, requests)

    def _or_told(self, method: Callable[..., Any], requests: list[Any]) -> Any:
        from aiohttp import ClientError

        try:
            return method(requests, disable_tqdm=True)
        except (ClientError, TimeoutError) as error:
            said = self.endpoint.ended() or f"model {self.endpoint.model}: {type(error).__name__}: {error}"
            raise UserError(f"evaluate.backend vllm: {said}", MODEL_UNAVAILABLE) from None


class _Counter:
    """lm-eval tells its cache about every finished request; we only count them."""

    def __init__(self, advance: Callable[[], None]):
        self.advance = advance

    def add_partial(self, kind: str, request: Any, result: Any) -> None:
        self.advance()


def from_model(model: Any, tokenizer: Any, batch_size: int) -> Callable[[Callable[[], None]], SharedContextLM]:
    """Backend hf: a model that is loaded here."""
    return lambda advance: SharedContextLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        chat_template_args=TEMPLATE_ARGUMENTS,
        advance=advance,
    )


def from_server(
    endpoint: Endpoint, tokenizer: Any, max_length: int, concurrency: int, timeout_s: float
) -> Callable[[Callable[[], None]], ServedLM]:
    """Backend vllm: a server of the stage."""
    return lambda advance: ServedLM(endpoint, tokenizer, max_length, concurrency, timeout_s, advance)
