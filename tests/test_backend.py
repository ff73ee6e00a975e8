"""Backend vllm beside hf: the same prompts go out, the same scores come back; a server that dies is one line."""

from pathlib import Path
from typing import Any

import pytest

from anamnesis import chat, evaluation, measuring
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.params import Params
from anamnesis.server import Endpoint

QUESTIONS = [
    "Name a colour of the rainbow.",
    "What is the capital of Italy?",
    "Write one sentence about rain.",
    "How many legs does a spider have?",
    "Give me a rhyme on moon.",
    "What do bees make?",
    "Which month comes after March?",
    "Say hello in French.",
]
OPTIONS = [" green", " a heavy wooden table", "No.", "The answer is not known to me, since nobody wrote it down."]
# Both compute in fp32 with other kernels and in another order. Measured: sums over an option differ by up to 2e-4,
# where the options' scores lie whole nats apart.
TOLERANCE = 2e-3


@pytest.fixture(autouse=True)
def quiet() -> None:
    evaluation.be_quiet()


def served(tokenizer: Any, ended: str = "", port: int = 9) -> Any:
    from anamnesis.harness import from_server

    endpoint = Endpoint((f"http://127.0.0.1:{port}/v1",), "m", "m", "key", lambda: ended)
    return from_server(endpoint, tokenizer, 2048, 4, 5.0)(lambda: None)


def test_prompts_are_rendered_and_encoded_as_in_training(smollm2_tokenizer: Any) -> None:
    lm = served(smollm2_tokenizer)
    turns = [{"role": "user", "content": "Hi"}]
    prompt = chat.render(smollm2_tokenizer, turns, generate=True)
    assert lm.apply_chat_template(turns) == prompt
    ids = smollm2_tokenizer(prompt, add_special_tokens=False).input_ids
    assert lm.tok_encode(prompt) == ids
    assert lm.tok_encode([prompt, "and"]) == [ids, smollm2_tokenizer("and").input_ids]
    assert lm.tok_encode(prompt, left_truncate_len=3) == ids[-3:]


def test_a_server_that_ended_is_one_line(smollm2_tokenizer: Any) -> None:
    from lm_eval.api.instance import Instance

    lm = served(smollm2_tokenizer, "server of m: killed, probably out of memory")
    request = Instance("generate_until", {}, ("Hi", {"until": [], "max_gen_toks": 4}), 0)
    with pytest.raises(UserError, match=r"evaluate.backend vllm: server of m: killed, probably") as raised:
        lm.generate_until([request])
    assert raised.value.code == MODEL_UNAVAILABLE


@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_a_model_that_is_not_there_is_one_line(
    backend: str, default_params: dict[str, Any], smollm2_dir: Path, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    default_params["evaluate"]["backend"] = backend
    params, place = Params.model_validate(default_params), str(tmp_path / "tuned")
    asked = measuring._model(params, "x", str(smollm2_dir), place, smollm2_tokenizer)
    with pytest.raises(UserError, match=r"tuned: can't be loaded: ") as raised, asked:
        raise AssertionError("it must not come that far")
    assert raised.value.code == MODEL_UNAVAILABLE
    assert "\n" not in str(raised.value)


def test_the_context_is_the_configuration_s(smollm2_dir: Path) -> None:
    assert evaluation.context_of(smollm2_dir) == 8192


@pytest.mark.slow
def test_both_backends_score_and_write_the_same(
    smollm2_dir: Path,
    smollm2_tokenizer: Any,
    default_params: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval.api.instance import Instance

    monkeypatch.chdir(tmp_path)
    prompts = [
        chat.render(smollm2_tokenizer, [{"role": "user", "content": question}], generate=True) for question in QUESTIONS
    ]
    found: dict[str, tuple[list[tuple[float, bool]], list[str]]] = {}
    for backend in ("hf", "vllm"):
        default_params["evaluate"]["backend"] = backend
        params = Params.model_validate(default_params)
        place = str(smollm2_dir)
        with measuring._model(params, "base", place, place, smollm2_tokenizer) as (make, _):
            counted: list[int] = []
            lm = make(lambda counted=counted: counted.append(1))
            scored = lm.loglikelihood(
                [Instance("loglikelihood", {}, (p, option), i) for p in prompts for i, option in enumerate(OPTIONS)]
            )
            stops = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 24}
            written = lm.generate_until([Instance("generate_until", {}, (p, dict(stops)), 0) for p in prompts])
            assert len(counted) == len(scored) + len(written)
        found[backend] = (scored, written)
    (hf, hf_texts), (vllm, vllm_texts) = found["hf"], found["vllm"]
    print("largest difference", max(abs(a - b) for (a, _), (b, _) in zip(hf, vllm, strict=True)))
    assert [score for score, _ in vllm] == pytest.approx([score for score, _ in hf], abs=TOLERANCE)
    assert [greedy for _, greedy in vllm] == [greedy for _, greedy in hf]
    for start in range(0, len(hf), len(OPTIONS)):  # and so the picks
        picks = [max(range(len(OPTIONS)), key=lambda i: scores[start + i][0]) for scores in (hf, vllm)]
        assert picks[0] == picks[1]
    assert vllm_texts == hf_texts
