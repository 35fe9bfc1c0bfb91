"""The book's functions for OpenAI's weights (chapter 5): its names and signatures, on the package's own readers.

New code uses ``convert(open_weights(folder), target)``, which needs no numpy arrays of all weights in between.

Shapes of ``params``, numpy arrays in dicts: wte (V, E), wpe (C, E), g (E,), b (E,), and under "blocks" a list with for
each block attn.c_attn.w (E, 3E), attn.c_attn.b (3E,), attn.c_proj.w (E, E), mlp.c_fc.w (E, 4E), mlp.c_proj.w (4E, E),
their b, and ln_1 and ln_2 with g and b (E,). V vocabulary, C context, E embedding width.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt_core import GPTModel, GPTModelFast
from gpt_weights.download import RemoteFile, fetch
from gpt_weights.errors import WeightsError
from gpt_weights.files import Job, stream
from gpt_weights.infer import recognize
from gpt_weights.json_file import read_json
from gpt_weights.mapping import FAST, OPENAI, OURS, Link, links
from gpt_weights.openai_files import openai_files
from gpt_weights.openai_tf import TensorBundle, checkpoint_prefix, hints_of, import_tensorflow
from gpt_weights.progress import ProgressLine

_Params = dict[str, Any]


def download_and_load_gpt2(model_size: str, models_dir: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings (``hparams.json``) and parameters of OpenAI's "124M", "355M", "774M" or "1558M".

    Its seven files are fetched into ``models_dir / model_size`` unless they are there. Raises ValueError for another
    size, ImportError if tensorflow is missing, before anything is fetched; then the errors of ``fetch`` and
    ``load_gpt2_params_from_tf_ckpt``.
    """
    files = openai_files(model_size)
    import_tensorflow()
    folder = Path(models_dir) / model_size
    with ProgressLine() as progress:
        for file in files:
            fetch(file, folder, progress=progress)
    settings = read_json(folder / "hparams.json")
    return settings, load_gpt2_params_from_tf_ckpt(checkpoint_prefix(folder), settings)


def download_file(url: str, destination: Path | str, backup_url: str | None = None) -> None:
    """Fetch ``url``, or if that fails ``backup_url``, to the file ``destination``.

    The file gets its name when it is whole: one that is there is left alone, without a request. Raises the errors of
    ``fetch``, where the book's prints them.
    """
    destination = Path(destination)
    urls = (url,) if backup_url is None else (url, backup_url)
    with ProgressLine() as progress:
        fetch(RemoteFile(name=destination.name, urls=urls), destination.parent, progress=progress)


def load_gpt2_params_from_tf_ckpt(ckpt_path: Path | str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the TensorFlow checkpoint ``ckpt_path``, such as "gpt2/124M/model.ckpt".

    ``settings`` has OpenAI's n_vocab, n_ctx, n_embd, n_head and n_layer. Raises WeightsError, before a value is read,
    if names or shapes are not those of such a GPT-2; later if a value is damaged; ImportError if tensorflow is missing.
    """
    files = TensorBundle(Path(ckpt_path))
    contents = recognize(files, hints_of(settings, "settings"), vocab_size=None, has_lora_scale=False)
    if contents.layout != OPENAI:
        raise WeightsError(f"{files.path} holds tensors under the names of {contents.layout.name}, not OpenAI's")
    params: _Params = {"blocks": [{} for _ in range(contents.config.n_layers)]}
    for name, tensor in stream(files, [_job(link, contents.names[link.theirs]) for link in contents.links]):
        _put(params, name, tensor.numpy())
    return params


def load_weights_into_gpt(gpt: GPTModel, params: Mapping[str, Any]) -> None:
    """Copy ``params`` into the model's own parameters, on their device and in their type.

    An output head that is not tied gets a copy of wte; a classifier's, which OpenAI has none for, is left as it is.
    Names and shapes are compared first: ValueError lists what was expected and found, and nothing is copied.
    """
    if not isinstance(gpt, GPTModel):
        raise ValueError(f"load_weights_into_gpt fills a GPTModel or a GPTModelFast, got a {type(gpt).__name__}")
    config, found = gpt.config, dict(_named(params))
    if not config.qkv_bias and any(name.endswith("attn/c_attn/b") for name in found):
        raise ValueError("the model has qkv_bias=False, but params have biases for it; build it with qkv_bias=True")
    theirs = links(OPENAI, dataclasses.replace(config, n_classes=None, tie_weights=True))
    if problem := _mismatch(found, {link.theirs: link.shape for link in theirs}):
        raise WeightsError(f"params are not those of the model's config: {problem}")
    parameters = dict(gpt.named_parameters())
    wanted = links(FAST if isinstance(gpt, GPTModelFast) else OURS, config)
    if config.n_classes is not None:
        wanted = [link for link in wanted if not link.theirs.startswith("out_head.")]
    if problem := _mismatch(parameters, {link.theirs: link.shape for link in wanted}, may_have_more=True):
        raise ValueError(f"the model is not as its config says: {problem}; load the weights before changing its layers")
    ours: dict[str, Tensor] = {}
    for link in theirs:
        ours |= zip(link.ours, link.to_ours(_tensor(found[link.theirs])), strict=True)
    ours.setdefault("out_head.weight", ours["tok_emb.weight"])
    with torch.no_grad():
        for link in wanted:
            parameters[link.theirs].copy_(link.to_theirs([ours[name] for name in link.ours]))


def assign(left: Tensor, right: Any) -> nn.Parameter:
    """Return a new parameter with the values and type of the array ``right``, on the device of ``left``.

    Raises ValueError if their shapes differ.
    """
    if tuple(left.shape) != tuple(right.shape):
        raise ValueError(f"Shape mismatch. Left: {tuple(left.shape)}, Right: {tuple(right.shape)}")
    return nn.Parameter(_tensor(right).detach().to(left.device, copy=True))


def _job(link: Link, reads: tuple[str, ...]) -> Job:
    def make(tensors: Sequence[Tensor]) -> Iterable[tuple[str, Tensor]]:
        # OpenAI's matrices have a third axis of 1 in front; tensorflow's memory is not kept.
        return [(link.theirs, tensors[0].reshape(link.shape).clone())]

    return Job(reads, make)


def _put(params: _Params, name: str, array: Any) -> None:
    """Put the array where the book has it: "h0/attn/c_attn/w" at blocks[0].attn.c_attn.w, "ln_f/g" at g."""
    keys = name.removeprefix("ln_f/").split("/")
    place = params
    if match := re.fullmatch(r"h(\d+)", keys[0]):
        place, keys = params["blocks"][int(match[1])], keys[1:]
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = array


def _named(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield OpenAI's name and the array of each: what ``_put`` has put there."""
    for key, value in params.items():
        if not prefix and key == "blocks" and isinstance(value, Sequence):
            for n, block in enumerate(value):
                yield from _named(block, f"h{n}/")
        elif isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{key}/")
        else:
            yield (f"ln_f/{key}" if not prefix and key in ("g", "b") else f"{prefix}{key}"), value


def _tensor(array: Any) -> Tensor:
    """Return a tensor of the array, with its memory where torch can share it."""
    if isinstance(array, Tensor):
        return array
    array = np.asarray(array, order="C")
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _mismatch(
    found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, may_have_more: bool = False
) -> str:
    """Say how the arrays differ from floats of these names and shapes; "" if not at all."""
    problems = []
    if missing := [name for name in shapes if name not in found]:
        problems.append(f"{len(missing)} of {len(shapes)} expected arrays are missing ({', '.join(missing[:3])}, ...)")
    if not may_have_more and (unknown := [name for name in found if name not in shapes]):
        near = difflib.get_close_matches(unknown[0], missing or shapes, n=1)
        hint = f"; nearest to {unknown[0]} is {near[0]}" if near else ""
        problems.append(f"{len(unknown)} arrays are not expected ({', '.join(unknown[:3])}, ...{hint})")
    for name, shape in shapes.items():
        if name in found and np.shape(found[name]) != shape:
            problems.append(f"{name} has shape {tuple(np.shape(found[name]))}, expected {shape}")
        elif name in found and "float" not in str(getattr(found[name], "dtype", None)):
            problems.append(f"{name} is no array of floating-point numbers")
    return "; ".join(problems[:4])
