"""The files of OpenAI's GPT-2 checkpoints: their names, where they lie, and what is known of their content."""

from __future__ import annotations

import difflib

from gpt_core import gpt2_config
from gpt_weights.remote_file import RemoteFile

OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
MIRROR_URL = "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2"

NAMES = (
    "checkpoint", "encoder.json", "hparams.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index",
    "model.ckpt.meta", "vocab.bpe",
)
"""The files of each size, under OpenAI's names."""

# Bytes. Of data: four for each parameter.
_SIZES = {
    "124M": {"model.ckpt.data-00000-of-00001": 497_759_232, "model.ckpt.index": 5_215},
    "355M": {"model.ckpt.data-00000-of-00001": 1_419_292_672, "model.ckpt.index": 10_399},
    "774M": {"model.ckpt.data-00000-of-00001": 3_096_120_320},
    "1558M": {"model.ckpt.data-00000-of-00001": 6_230_444_800},
}
# All sizes have the same tokenizer.
_TOKENIZER = {
    "encoder.json": (1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "vocab.bpe": (456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}


def openai_files(model_size: str) -> tuple[RemoteFile, ...]:
    """Return the files of OpenAI's GPT-2 "124M", "355M", "774M" or "1558M", each at OpenAI's address and a mirror's.

    Raises ValueError naming the nearest of the four for any other size.
    """
    if model_size not in _SIZES:
        raise ValueError(f"model_size must be one of {', '.join(_SIZES)}, got {model_size!r}{_meant(model_size)}")
    files = []
    for name in NAMES:
        size, sha256 = _TOKENIZER.get(name, (_SIZES[model_size].get(name), None))
        urls = (f"{OPENAI_URL}/{model_size}/{name}", f"{MIRROR_URL}/{model_size}/{name}")
        files.append(RemoteFile(name=name, urls=urls, size=size, sha256=sha256))
    return tuple(files)


def _meant(model_size: object) -> str:
    try:
        config = gpt2_config(str(model_size))
    except ValueError:
        near = difflib.get_close_matches(str(model_size), _SIZES, n=1)
    else:  # "117M", "gpt2-xl", ...
        near = [size for size in _SIZES if gpt2_config(size) == config]
    return f"; did you mean {near[0]!r}?" if near else ""
