"""A GGUF file becomes a Hugging Face directory: bf16 safetensors, config, tokenizer with its chat template.

In: one .gguf file. Out: files that depend on its bytes and the pinned libraries only: equal input gives equal bytes.

Why bf16: many weights dequantised from Q4_1 lie exactly half-way between two bf16 values. A model trained in bf16 from
the unrounded ones jumps at the first tiny step, before it learns anything.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anamnesis.errors import MODEL_UNAVAILABLE, UserError

MAGIC = b"GGUF"
END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# Spaces, digits, accents, scripts, an emoji, code and chat markers: where two tokenizers part ways if they differ.
PROBES = (
    "Hello world",
    "  two spaces\tand a tab\n\nand a blank line ",
    "it's 3.14159, 1,000,000 and 2024-02-29; naïve café, größer, 東京, Привет, مرحبا 🙂",
    "def f(x):\n    return {'a': [x ** 2, not x]}  # <b>&amp;</b>",
    "<|im_start|>user\nWhat is ICD-10-CM?<|im_end|>\n",
)


def is_gguf(path: Path) -> bool:
    """Whether a file begins like a GGUF file."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' and gguf's own progress bars and notes out of a stage's output."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _end_ids(gguf: Path, tokenizer: Any) -> list[int]:
    """The ids that end a turn: the tokenizer's eos and what the file's metadata lists beside it, without doubles."""
    from transformers.integrations.gguf.reader import read_gguf_metadata  # ten times as fast as gguf.GGUFReader

    metadata, _ = read_gguf_metadata(str(gguf))
    listed = [int(metadata[key]) for key in END_KEYS if metadata.get(key) is not None]
    return list(dict.fromkeys([*([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]), *listed]))


def _check_tokenizer(tokenizer: Any, target: Path, gguf: Path) -> None:
    """Encode probe texts with the tokenizer read from the file and the one saved; both must agree."""
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(target)
    if saved.chat_template != tokenizer.chat_template:
        raise UserError(f"{gguf}: the chat template was lost in conversion; use an HF directory", MODEL_UNAVAILABLE)
    for text in PROBES:
        if saved(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise UserError(
                f"{gguf}: the saved tokenizer encodes {text!r} differently; use an HF directory of this model",
                MODEL_UNAVAILABLE,
            )


def gguf_to_safetensors(gguf: Path, target: Path) -> None:
    """Write `gguf` to the directory `target` as bf16 safetensors, config, generation config and tokenizer.

    Output head and input embedding stay apart where the file has both (their quantisations differ), and the config says
    which it is. Raises `UserError` (exit code 3) where transformers can't read the file or the tokenizer changes.
    """
    # The Rust tokenizer's threads and a later fork of the caller don't mix.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    if not is_gguf(gguf):
        raise UserError(f"{gguf}: not a GGUF file", MODEL_UNAVAILABLE)
    folder, name = str(gguf.parent), gguf.name
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(folder, gguf_file=name)  # once: parsing the file takes seconds
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, config=config)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=name,
                config=config,
                dtype=torch.bfloat16,  # each weight is dequantised in fp32 and rounded once
                quantization_config=GgufConfig(gguf_file=name, dequantize=True),
            )
        except (ValueError, KeyError, NotImplementedError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{gguf}: transformers can't read this GGUF file: {reason}", MODEL_UNAVAILABLE) from error
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        model.config.tie_word_embeddings = head.weight.data_ptr() == embedding.weight.data_ptr()
        # A fixed bos, eos and pad, and no sampling defaults: those come from params.yaml.
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=_end_ids(gguf, tokenizer) or None,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(target, safe_serialization=True)
        tokenizer.save_pretrained(target)
        for file in target.iterdir():
            file.chmod(0o644)  # safetensors writes 0600
        _check_tokenizer(tokenizer, target, gguf)
