"""Texts as vectors, offline: wordllama's 256 dimensions, a mean over trained token vectors of 16 MB.

The weights come inside the package, so nothing is downloaded. A vector knows which words a text holds and not their
order: close vectors mean texts on like subjects and of like kind, no more. Scaled to length 1, so that how long a text
is shows little.
"""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

DIMENSIONS = 256
READ_CHARACTERS = 1000  # what follows is mostly pasted text


@cache
def _model() -> Any:
    handlers, level = list(logging.root.handlers), logging.root.level
    import wordllama

    logging.root.handlers[:] = handlers  # it sets up the root logger when it is imported
    logging.root.setLevel(level)
    # Told where its own files are: with downloads off it looks for the tokenizer in the cache folder alone.
    return wordllama.WordLlama.load(dim=DIMENSIONS, cache_dir=Path(wordllama.__file__).parent, disable_download=True)


def embed(texts: Sequence[str], characters: int = READ_CHARACTERS) -> np.ndarray:
    """Unit vectors (texts x `DIMENSIONS`) of the first `characters` of each text; zeros for a text without tokens."""
    vectors = np.zeros((len(texts), DIMENSIONS))
    full = [i for i, text in enumerate(texts) if text[:characters].strip()]
    # A lone half of a surrogate pair can't be tokenised.
    shown = [texts[i][:characters].encode("utf-8", "replace").decode("utf-8") for i in full]
    if full:
        vectors[full] = _model().embed(shown)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
