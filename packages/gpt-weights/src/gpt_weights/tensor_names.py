"""From a file's names of tensors to a layout's: without wrappers' prefixes and mask buffers, LoRA put together."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gpt_weights.errors import WeightsError
from gpt_weights.files import DTYPES, TensorFiles

# Of torch.compile, DataParallel, Lightning, GPT2LMHeadModel, and the name that OpenAI's scripts give the model.
_PREFIX = re.compile(r"((_orig_mod|module|model|transformer)\.)*(model/)?")
_MASK = re.compile(r"(h\.\d+\.attn\.(masked_)?bias|trf_blocks\.\d+\.att\.mask)")
_LORA = re.compile(r"(.+)\.(linear\.weight|linear\.bias|lora\.A|lora\.B)")


def layout_names(files: TensorFiles, *, has_lora_scale: bool) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return {the layout's name: the file's names}, and notes on what was left out or put together.

    A tensor has one name in the file, or three if it is wrapped in LoRA: the weight's, A's and B's. Raises WeightsError
    if two tensors have one name, or LoRA's do not fit or are not to be merged.
    """
    names: dict[str, tuple[str, ...]] = {}
    adapted: dict[str, dict[str, str]] = {}
    n_masks = 0

    def add(name: str, raws: tuple[str, ...]) -> None:
        if name in names:
            raise WeightsError(f"{files.path} holds {name:.80} twice, as {names[name][0]:.80} and as {raws[0]:.80}")
        names[name] = raws

    for raw in files.tensors:
        name = _PREFIX.sub("", raw, count=1)
        if _MASK.fullmatch(name) and len(files.tensors[raw].shape) != 1:
            n_masks += 1
        elif match := _LORA.fullmatch(name):
            adapted.setdefault(match[1], {})[match[2]] = raw
        else:
            add(name, (raw,))
    for name, parts in adapted.items():
        if not {"linear.weight", "lora.A", "lora.B"} <= parts.keys():
            raise WeightsError(f"{files.path}: {name:.80} is wrapped in LoRA, but has only {', '.join(parts)}")
        add(f"{name}.weight", (parts["linear.weight"], parts["lora.A"], parts["lora.B"]))
        if "linear.bias" in parts:
            add(f"{name}.bias", (parts["linear.bias"],))
    _check_adapters(files, names, has_lora_scale)
    notes = [f"{n_masks} mask buffers are left out"] if n_masks else []
    if adapted:
        notes.append(f"the LoRA matrices of {len(adapted)} layers are merged")
    return names, notes


def _check_adapters(files: TensorFiles, names: Mapping[str, tuple[str, ...]], has_lora_scale: bool) -> None:
    wrapped = [raws for raws in names.values() if len(raws) == 3]
    if not wrapped:
        if has_lora_scale:
            raise WeightsError(f"{files.path} holds no LoRA matrices (names such as X.lora.A); leave out lora_scale")
        return
    for raws in wrapped:
        weight, a, b = (files.tensors[raw].shape for raw in raws)
        if len(weight) != 2 or len(a) != 2 or len(b) != 2 or (a[0], b[1], a[1]) != (weight[1], weight[0], b[0]):
            raise WeightsError(f"{files.path}: LoRA's A {a} and B {b} do not fit {raws[0]:.80} {weight}")
        for raw in raws:
            if files.tensors[raw].dtype not in DTYPES.values():
                raise WeightsError(
                    f"{files.path}: {raw:.80} holds {files.tensors[raw].dtype}, expected one of {', '.join(DTYPES)}"
                )
    if not has_lora_scale:
        rank = files.tensors[wrapped[0][1]].shape[1]
        raise WeightsError(
            f"{files.path} holds LoRA matrices of rank {rank}, but nothing says by what they are scaled: give "
            f"lora_scale (--lora-scale), which is alpha / rank in the book (1 for alpha {rank}), and alpha where a "
            "layer computes alpha * (x A B)"
        )
