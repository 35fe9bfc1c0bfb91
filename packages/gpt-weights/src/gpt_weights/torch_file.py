"""Files that ``torch.save`` wrote: the book's ``.pth``, nanoGPT's ``ckpt.pt``, Hugging Face's ``pytorch_model.bin``.

They are pickles in a zip archive. They are only ever read with ``weights_only=True``, which builds tensors and plain
containers and calls nothing else; a file that asks for more is refused.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_weights.errors import WeightsError
from gpt_weights.files import Get, TensorFiles, TensorInfo, check_beginning

_STATE_KEYS = ("model_state_dict", "model", "state_dict", "model_state")
_LARGEST_PICKLE = 64 * 2**20  # names and shapes only: that of GPT-2 1558M with its optimizer has half a megabyte


class TorchFile(TensorFiles):
    """The tensors of a state dict, and nanoGPT's sizes beside it.

    A file may be a plain state dict, or a dict with one under "model_state_dict" (the book's, beside its optimizer's),
    "model" (nanoGPT's), "state_dict" or "model_state".
    """

    kind = "written by torch.save"

    def __init__(self, path: Path) -> None:
        self.path = path
        check_beginning(path)
        _check_archive(path)
        state, self.model_args = _state_and_arguments(path)
        """The sizes that nanoGPT writes beside the state dict; empty if there are none."""
        limit = path.stat().st_size
        tensors: dict[str, TensorInfo] = {}
        aliases: dict[str, str] = {}
        places: dict[tuple[Any, ...], str] = {}
        claimed = 0
        for name, tensor in state.items():
            info = _info(path, name, tensor)
            # A view may claim any size by strides of 0.
            if info.nbytes > limit:
                raise WeightsError(f"{path} is refused: {name} claims {info.nbytes:,} bytes, the file has {limit:,}")
            tensors[name] = info
            place = (tensor.data_ptr(), info.shape, info.dtype, tensor.stride())
            if first := places.get(place):
                aliases[name] = first
                continue
            places[place] = name
            claimed += info.nbytes
            if claimed > limit:  # parts of one storage, taken many times over
                raise WeightsError(f"{path} is refused: its tensors claim {claimed:,} bytes, the file has {limit:,}")
        self.tensors, self.aliases = tensors, aliases

    @contextmanager
    def open(self) -> Iterator[Get]:
        """Open the file anew, mapped."""
        state, _ = _state_and_arguments(self.path)

        def get(name: str) -> Tensor:
            if name not in state:
                raise WeightsError(f"{self.path} was changed while it was read; start again")
            return state[name]

        try:
            yield get
        finally:
            state.clear()


def _info(path: Path, name: str, tensor: Tensor) -> TensorInfo:
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    if not is_plain or tensor.device.type != "cpu" or tensor.is_quantized:
        raise WeightsError(f"{path}: {name} is no plain tensor ({tensor.layout}, {tensor.device}, {tensor.dtype})")
    return TensorInfo(tuple(tensor.shape), tensor.dtype)


def _state_and_arguments(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that _info refuses
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a damaged file ends in any exception: of zip, pickle, or torch
        raise WeightsError(f"{path} cannot be read: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict() with torch.save"
        )
    arguments = content.get("model_args")
    state: Mapping[Any, Any] = next(
        (content[key] for key in _STATE_KEYS if isinstance(content.get(key), Mapping)), content
    )
    strange = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if strange or not state:
        what = f"{strange[0]!r:.80} in it is no named tensor" if strange else "it is empty"
        raise WeightsError(
            f"{path} holds no state dict of a GPT: {what}; expected names such as tok_emb.weight or "
            f"transformer.wte.weight, alone or under one of {', '.join(_STATE_KEYS)}"
        )
    return dict(state), dict(arguments) if isinstance(arguments, Mapping) else {}


def _check_archive(path: Path) -> None:
    """Refuse what torch would read otherwise than mapped and as it is: no zip, compressed or overlapping members."""
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path} is not in torch's zip format (torch 1.6 and later write it): it is damaged, cut off, or written "
            "by an older torch; in the last case load it there with torch.load and save it anew with torch.save"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise WeightsError(f"{path} is a damaged zip archive: {error}") from error
    pickles = [member for member in members if member.filename.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise WeightsError(f"{path} is a zip archive, but not one that torch.save wrote: it holds no data.pkl")
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise WeightsError(f"{path} is refused: torch.save neither compresses nor encrypts, this archive is")
    if sum(member.file_size for member in members) > path.stat().st_size or pickles[0].file_size > _LARGEST_PICKLE:
        raise WeightsError(f"{path} is refused: its members claim more bytes than a state dict of its size has")


def _reason(error: Exception) -> str:
    text = str(error)
    if "Weights only load failed" in text:
        # torch's text proposes weights_only=False, which would run whatever the file says.
        what = next((word for word in text.replace("`", "").split("GLOBAL ")[1:]), "").split(" ")[0]
        named = f" ({what.strip('.,')})" if what else ""
        return (
            f"it holds more than tensors and plain values{named}, and is not executed; "
            "save model.state_dict() instead of the model"
        )
    return text.partition("\n")[0] or type(error).__name__
