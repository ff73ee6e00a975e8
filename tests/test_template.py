"""The pre-query prefix and the stop ids come from the tokenizer's own template, whatever the family."""

import copy
from typing import Any

import pytest
from chat_templates import CHATML, FAMILIES

from anamnesis.chat import encode
from anamnesis.errors import UserError
from anamnesis.template import pre_query


def tokenizer_of(family: str, smollm2_tokenizer: Any) -> Any:
    """SmolLM2's tokenizer with the family's template, special tokens and BOS."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    case = FAMILIES[family]
    tokenizer.chat_template = case.template
    if case.special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(case.special)})
    if case.bos:
        tokenizer.bos_token = case.bos
    return tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_without_a_system_message(family: str, smollm2_tokenizer: Any) -> None:
    tokenizer = tokenizer_of(family, smollm2_tokenizer)
    derived = pre_query(tokenizer)
    assert tokenizer.decode(derived.ids) == FAMILIES[family].prefix


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_with_a_system_message(family: str, smollm2_tokenizer: Any) -> None:
    tokenizer = tokenizer_of(family, smollm2_tokenizer)
    wanted = FAMILIES[family].with_system
    if wanted is None:
        with pytest.raises(UserError, match="no system turns"):
            pre_query(tokenizer, system="Be kind.")
    else:
        assert tokenizer.decode(pre_query(tokenizer, system="Be kind.").ids) == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_a_users_turn_stops_the_model(family: str, smollm2_tokenizer: Any) -> None:
    tokenizer = tokenizer_of(family, smollm2_tokenizer)
    derived = pre_query(tokenizer)
    assert tokenizer.convert_tokens_to_ids(FAMILIES[family].stop) in derived.stop_ids
    assert tokenizer.eos_token_id in derived.stop_ids
    assert derived.stop_strings == []


@pytest.mark.parametrize("family", [name for name, case in FAMILIES.items() if case.bos])
def test_bos_stands_once(family: str, smollm2_tokenizer: Any) -> None:
    tokenizer = tokenizer_of(family, smollm2_tokenizer)
    derived = pre_query(tokenizer)
    assert derived.ids[0] == tokenizer.bos_token_id
    assert derived.ids.count(tokenizer.bos_token_id) == 1
    doubled = pre_query(tokenizer, prefix=FAMILIES[family].bos * 2 + "x")  # type: ignore[operator]
    assert doubled.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prefix_is_what_a_rendered_conversation_starts_with(family: str, smollm2_tokenizer: Any) -> None:
    tokenizer = tokenizer_of(family, smollm2_tokenizer)
    for text in ("Why is the sky blue?", "list three birds", "42"):
        messages = [{"role": "user", "content": text}]
        whole = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)[
            "input_ids"
        ]
        derived = pre_query(tokenizer)
        assert whole[: len(derived.ids)] == derived.ids


def test_a_template_without_a_token_for_the_end_gets_a_stop_string(smollm2_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n### end\n{% endfor %}"
    derived = pre_query(tokenizer)
    assert derived.text == "### user:\n"
    assert derived.stop_strings == ["### end"]


def test_the_real_default_has_its_system_block(smollm2_tokenizer: Any) -> None:
    derived = pre_query(smollm2_tokenizer)
    assert derived.text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert derived.text.endswith("<|im_end|>\n<|im_start|>user\n")
    assert derived.stop_ids == [smollm2_tokenizer.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.slow
def test_the_real_qwen_tokenizer(qwen_tokenizer: Any) -> None:
    """Its template writes a system block of its own, and it has another token for the end of a text."""
    end_of_turn, end_of_text = qwen_tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    default, own = pre_query(qwen_tokenizer), pre_query(qwen_tokenizer, system="Be kind.")
    assert default.text.startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    assert own.text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    for prefix in (default, own):
        assert prefix.text.endswith("<|im_end|>\n<|im_start|>user\n")
        assert qwen_tokenizer.decode(prefix.ids) == prefix.text
        assert end_of_turn in prefix.stop_ids
        assert end_of_text not in prefix.ids  # it has no BOS, and none is made up
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because of the wind."}]
    conversation = encode(qwen_tokenizer, messages)
    trained_on = [token for token, counts in zip(conversation.ids, conversation.supervised, strict=True) if counts]
    assert qwen_tokenizer.decode(trained_on) == "Because of the wind.<|im_end|>"


def test_a_prefix_of_the_users_own_replaces_the_derived_one(smollm2_tokenizer: Any) -> None:
    derived = pre_query(smollm2_tokenizer, prefix="<|im_start|>user\n")
    assert smollm2_tokenizer.decode(derived.ids) == "<|im_start|>user\n"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{{ 'fixed' }}", "shows the user's message 0 times"),
        ("{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}", "2 times"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "nothing stands before"),
        ("{{ raise_exception('not today') }}", "not today"),
        (CHATML.replace("endfor", "endfar"), "chat template refuses"),
    ],
)
def test_an_unusable_template_is_one_line(template: str | None, words: str, smollm2_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=words) as caught:
        pre_query(tokenizer)
    assert "\n" not in str(caught.value)
