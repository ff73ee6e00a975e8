"""Chat templates in the style of well-known families, written for these tests; each with the tokens it needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A template; what a probe must continue, with and without a system message; and what ends the turn."""

    template: str
    special: tuple[str, ...]
    prefix: str  # rendered from a user's turn alone
    with_system: str | None  # rendered behind the system message "Be kind."; None where the template refuses one
    stop: str  # the token that ends a user's turn
    bos: str | None = None


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Owl, a helpful assistant.<|im_end|>\n{% endif %}"
    + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {{ ns.system }}{{ m.content }} [/INST]{% set ns.system = '' %}"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)

FAMILIES = {
    "chatml": Family(
        CHATML,
        (),
        "<|im_start|>user\n",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>",
    ),
    "qwen2.5": Family(
        QWEN,
        (),
        "<|im_start|>system\nYou are Owl, a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>",
    ),
    "llama-3": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|begin_of_text|>",
    ),
    "gemma": Family(
        GEMMA,
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\n",
        None,
        "<end_of_turn>",
        "<bos>",
    ),
    "mistral": Family(
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "<s>[INST]",  # the space behind belongs to the first word's token
        "<s>[INST] Be kind.\n\n",
        "[/INST]",
        "<s>",
    ),
}
