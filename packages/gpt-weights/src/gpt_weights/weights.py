"""GPT-2 weights wherever they lie: opened, recognised and checked whole before the first value is read."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gpt_core import GPTConfig, GPTModel, model_from_tensors, parameter_shapes
from gpt_weights.files import Job, TensorFiles, checked, converted, stream
from gpt_weights.infer import Contents
from gpt_weights.mapping import Link
from gpt_weights.tokenizer import TokenizerFile


@dataclass(frozen=True)
class Weights:
    """A GPT's weights in files of any known format; nothing of them is in memory yet."""

    files: TensorFiles
    contents: Contents
    lora_scale: float | None = None
    """What LoRA's A B is multiplied by."""
    tokenizer: TokenizerFile | None = None
    """The tokenizer that lies beside the weights."""
    labels: list[str] | None = None
    """A classifier's labels, in the order of its outputs, if the files tell them."""
    provenance: dict[str, Any] | None = None
    """Of our own checkpoint directory: what its writer recorded."""

    @property
    def path(self) -> Path:
        """The file or, of several, the one that lists them."""
        return self.files.path

    @property
    def config(self) -> GPTConfig:
        """The model's configuration."""
        return self.contents.config

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided on the way, for people."""
        kinds = sorted({str(dtype).removeprefix("torch.") for dtype in self._dtypes()})
        widest = str(self.dtype).removeprefix("torch.")
        mixed = f"types are mixed ({', '.join(kinds)}): a model of it has the widest, {widest}"
        return (*self.contents.notes, *([mixed] if len(kinds) > 1 else []))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values or, if there are several, the narrowest that holds those of all."""
        return functools.reduce(torch.promote_types, self._dtypes())

    def _dtypes(self) -> list[torch.dtype]:
        raws = [raw for raws in self.contents.names.values() for raw in raws[:1]]
        return [cast(torch.dtype, self.files.tensors[raw].dtype) for raw in raws]  # recognize has compared them

    def tensors(self, *, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield each of our tensors with its name, in memory of its own; a tied head is left out.

        The largest come first, and no more than 32 MB of the files (or the largest tensor) is in memory at a time.
        ``dtype`` converts the values; None leaves each as it is. Raises WeightsError if a value is NaN, infinite or too
        large for ``dtype``, or a file cannot be read.
        """
        return stream(self.files, [self._job(link, dtype) for link in self.contents.links])

    def tensor(self, name: str) -> Tensor:
        """Return our tensor ``name``; KeyError if the model has none of that name, as a tied head."""
        return dict(stream(self.files, [self._job(self._link_of(name), None)]))[name]

    def model(self, *, dtype: torch.dtype | None = None, mapped: bool = False) -> GPTModel:
        """Return a model with these weights, in eval mode, all of one type; errors as of ``tensors``.

        ``mapped`` is for a model that is only read: its parameters are views of the files wherever a tensor may be used
        as it lies there, and ask for no gradient. It is there at once, and takes no memory that the system cannot take
        back. But the values are not looked at, so NaN is not found; one row times a matrix that lies there as (in, out)
        took 1.3 times as long; and the files must stay as they are while the model lives.
        """
        dtype = dtype or self.dtype
        tensors = self._mapped(dtype) if mapped else {}
        missing = [link for link in self.contents.links if link.ours[0] not in tensors]
        tensors |= stream(self.files, [self._job(link, dtype) for link in missing])
        return model_from_tensors(self.config, tensors).requires_grad_(not mapped)

    def _mapped(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return views of the files for all of our tensors that are in them as they are."""
        found: dict[str, Tensor] = {}
        shapes = parameter_shapes(self.config)
        with self.files.open() as get:
            for link in self.contents.links:
                reads = self.contents.names.get(link.theirs, ())
                if len(reads) == 1:
                    views = link.to_ours(checked(self.files, get, reads[0]).reshape(link.shape))
                    named = dict(zip(link.ours, views, strict=True))
                    if all(view.shape == shapes[name] for name, view in named.items()):
                        found |= {name: converted(name, view, dtype) for name, view in named.items()}
        return found

    def _link_of(self, name: str) -> Link:
        for link in self.contents.links:
            if name in link.ours:
                return link
        raise KeyError(f"{name!r} is no tensor of this model; parameter_shapes(config) lists them")

    def _job(self, link: Link, dtype: torch.dtype | None) -> Job:
        reads = self.contents.names.get(link.theirs, ())

        def make(tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
            if not tensors:
                tensors = [torch.zeros(link.shape, dtype=self.dtype)]
            theirs = tensors[0] if len(tensors) == 1 else self._merged(*tensors, dtype=dtype)
            is_own = len(tensors) == 3 and len(link.ours) == 1
            for name, tensor in zip(link.ours, link.to_ours(theirs.reshape(link.shape)), strict=True):
                if name == "tok_emb.weight" or (name == "out_head.weight" and self.config.n_classes is None):
                    tensor = tensor[: self.config.vocab_size]
                changed = converted(name, tensor, dtype or tensor.dtype)
                is_copy = is_own or changed.data_ptr() != tensor.data_ptr()
                yield name, changed.contiguous() if is_copy else changed.clone(memory_format=torch.contiguous_format)

        return Job(reads, make)

    def _merged(self, weight: Tensor, a: Tensor, b: Tensor, *, dtype: torch.dtype | None) -> Tensor:
        """Return W + scale (A B)^T for W (out, in), A (in, rank), B (rank, out): LoRA's x W^T + scale x A B."""
        assert self.lora_scale is not None  # recognize has asked for it
        merged = torch.empty(weight.shape, dtype=dtype or weight.dtype)
        n = max(1, 2**20 // weight.shape[1])  # rows at a time, as the sums are of 8 bytes a value
        for start in range(0, len(weight), n):
            rows = slice(start, start + n)
            update = self.lora_scale * (a.double() @ b[:, rows].double()).t()                    # (n, in)
            merged[rows] = converted("a LoRA layer", weight[rows].double() + update, merged.dtype)
        return merged
