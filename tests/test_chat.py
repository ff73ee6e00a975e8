"""What a conversation is trained on: every assistant turn's content and the token that ends it, and nothing else."""

import copy
from typing import Any

import pytest
from chat_templates import CHATML, FAMILIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anamnesis.chat import Encoded, encode, render
from anamnesis.errors import UserError

TWO_TURNS = [
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Green, like the user's <b>leaf</b>."},
    {"role": "user", "content": "And another: one\nor two?"},
    {"role": "assistant", "content": "Naïve blue 🙂\n\n- sky\n- sea"},
]
SYSTEM = {"role": "system", "content": "Answer as the assistant."}
# What ends an assistant's turn in each family; `eos` is the tokenizer's own.
ENDS = {"chatml": "<|im_end|>", "qwen2.5": "<|im_end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>"}
PLAIN = (  # no added tokens at all: a line break is the only end there is
    "{% for m in messages %}{{ 'Q' if m.role == 'user' else 'A' }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
LAST_TURN_DIFFERS = (  # reasoning models: only the last answer keeps its thoughts
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}(thinking)\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLOSED_AT_THE_END = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
# The tokenizer has no token for some bytes, so not any text at all; what looks like a marker is among it.
TEXT = st.text(st.sampled_from("abz AZ09\n\t.,:<>|_'\"é🙂東"), max_size=40)
DATED = "Today is {{ strftime_now('%d %B %Y') }}.\n" + CHATML


def with_template(tokenizer: Any, template: str | None, special: tuple[str, ...] = (), bos: str | None = None) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    if bos:
        tokenizer.bos_token = bos
    return tokenizer


def supervised_runs(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The supervised text, a string for each unbroken run of tokens."""
    runs: list[list[int]] = []
    before = False
    for token, target in zip(encoded.ids, encoded.supervised, strict=True):
        if target and not before:
            runs.append([])
        if target:
            runs[-1].append(token)
        before = target
    return [tokenizer.decode(run) for run in runs]


def test_smollm2_two_turns(smollm2_tokenizer: Any) -> None:
    encoded = encode(smollm2_tokenizer, TWO_TURNS)
    assert supervised_runs(smollm2_tokenizer, encoded) == [
        "Green, like the user's <b>leaf</b>.<|im_end|>",
        "Naïve blue 🙂\n\n- sky\n- sea<|im_end|>",
    ]
    text = smollm2_tokenizer.decode(encoded.ids)
    assert text == render(smollm2_tokenizer, TWO_TURNS)
    assert text.startswith("<|im_start|>system\n")  # the template's own block, trained on by nobody


def test_the_end_of_turn_is_a_target_although_it_is_the_pad_token(smollm2_tokenizer: Any) -> None:
    assert smollm2_tokenizer.pad_token_id == smollm2_tokenizer.eos_token_id
    encoded = encode(smollm2_tokenizer, TWO_TURNS)
    ends = [
        target
        for token, target in zip(encoded.ids, encoded.supervised, strict=True)
        if token == smollm2_tokenizer.pad_token_id
    ]
    assert ends == [False, False, True, False, True]  # system, user, assistant, user, assistant


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [False, True])
def test_families(family: str, system: bool, smollm2_tokenizer: Any) -> None:
    case = FAMILIES[family]
    if system and case.with_system is None:
        pytest.skip("this family refuses system turns")
    tokenizer = with_template(smollm2_tokenizer, case.template, case.special, case.bos)
    encoded = encode(tokenizer, [SYSTEM, *TWO_TURNS] if system else TWO_TURNS)
    end = ENDS.get(family, tokenizer.eos_token)
    wanted = [turn["content"] + end for turn in TWO_TURNS if turn["role"] == "assistant"]
    assert [run.lstrip(" ") for run in supervised_runs(tokenizer, encoded)] == wanted
    if case.bos:
        assert encoded.ids.count(tokenizer.bos_token_id) == 1
        assert encoded.ids[0] == tokenizer.bos_token_id


def test_a_template_without_special_tokens(smollm2_tokenizer: Any) -> None:
    tokenizer = with_template(smollm2_tokenizer, PLAIN)
    assert supervised_runs(tokenizer, encode(tokenizer, TWO_TURNS[:2])) == [" " + TWO_TURNS[1]["content"] + "\n"]


def test_templates_that_trim(smollm2_tokenizer: Any) -> None:
    case = FAMILIES["llama-3"]
    tokenizer = with_template(smollm2_tokenizer, case.template, case.special, case.bos)
    spaced = [TWO_TURNS[0], {"role": "assistant", "content": "  Green.\n\n"}]
    assert supervised_runs(tokenizer, encode(tokenizer, spaced)) == ["Green.<|eot_id|>"]


def test_an_empty_answer_trains_the_end_of_turn(smollm2_tokenizer: Any) -> None:
    encoded = encode(smollm2_tokenizer, [TWO_TURNS[0], {"role": "assistant", "content": ""}])
    assert supervised_runs(smollm2_tokenizer, encoded) == ["<|im_end|>"]


def test_a_text_closed_once_at_its_end(smollm2_tokenizer: Any) -> None:
    tokenizer = with_template(smollm2_tokenizer, CLOSED_AT_THE_END)
    assert supervised_runs(tokenizer, encode(tokenizer, TWO_TURNS[:2])) == [TWO_TURNS[1]["content"] + "<|im_end|>"]


@pytest.mark.parametrize("template", [LAST_TURN_DIFFERS, CLOSED_AT_THE_END])
def test_a_template_that_is_not_prefix_stable_is_named(template: str, smollm2_tokenizer: Any) -> None:
    tokenizer = with_template(smollm2_tokenizer, template)
    tokenizer.name_or_path = "models/pretrained/thinker"
    with pytest.raises(UserError, match="models/pretrained/thinker: its chat template is not prefix-stable"):
        encode(tokenizer, TWO_TURNS)


@pytest.mark.parametrize(
    ("template", "messages", "what"),
    [
        (None, TWO_TURNS, "has no chat template"),
        (CHATML, TWO_TURNS[1:], "begins with an assistant turn"),
        (FAMILIES["gemma"].template, [SYSTEM, *TWO_TURNS], "refuses the turns system, user, .*: no system turns"),
    ],
)
def test_mistakes(template: str | None, messages: list[dict[str, str]], what: str, smollm2_tokenizer: Any) -> None:
    with pytest.raises(UserError, match=what):
        encode(with_template(smollm2_tokenizer, template), messages)


def test_a_template_that_prints_the_date_gives_the_same_text_tomorrow(smollm2_tokenizer: Any) -> None:
    tokenizer = with_template(smollm2_tokenizer, DATED)
    assert render(tokenizer, TWO_TURNS).startswith("Today is 01 January 2025.")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_any_text(turns: list[tuple[str, str]], smollm2_tokenizer: Any) -> None:
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    runs = supervised_runs(smollm2_tokenizer, encode(smollm2_tokenizer, messages))
    # Leading spaces share a token with the template's line break: what is trained on then begins with that.
    assert [run.lstrip() for run in runs] == [(answer + "<|im_end|>").lstrip() for _, answer in turns]
