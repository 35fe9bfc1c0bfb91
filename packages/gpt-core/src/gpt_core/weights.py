"""``model.safetensors``: a model's parameters under the book's names, checked against its config."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt_core.config import GPTConfig
from gpt_core.durable import CheckpointError
from gpt_core.model import GPTModel

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def parameter_shapes(config: GPTConfig | Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor in ``model.safetensors``, in the model's order; a tied head has none.

    It takes no memory for the parameters and draws no random number.
    """
    return dict(_shapes(GPTConfig.from_dict(config)))


@functools.lru_cache(maxsize=8)  # a load asks several times, and building the model of meta tensors takes a while
def _shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in _empty_model(config).state_dict().items()}
    if config.tie_weights:
        del shapes["out_head.weight"]
    return shapes


def model_from_tensors(config: GPTConfig | Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPTModel:
    """Return a model in eval mode whose parameters are these very tensors, not copies; a tied head is filled in.

    Raises ValueError naming what is missing, unknown, of another shape or no float16, bfloat16, float32 or float64,
    compared with ``parameter_shapes(config)``. No random number is drawn.
    """
    config = GPTConfig.from_dict(config)
    if problem := _mismatch(_forms(tensors), config):
        raise ValueError(f"the tensors are not those of the config: {problem}")
    return _assembled(config, tensors)


def tensors_to_save(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters as contiguous CPU tensors, each with memory of its own; a tied head is left out.

    Raises ValueError if they are not those of the model's config, since then they could not be loaded again.
    """
    if not isinstance(model, GPTModel):
        raise ValueError(f"save_checkpoint saves a GPTModel, got a {type(model).__name__}")
    state = model.state_dict()
    if model.config.tie_weights:
        head, embedding = state.pop("out_head.weight", None), state.get("tok_emb.weight")
        if head is None or embedding is None or not _are_equal(head, embedding):
            raise ValueError(
                f"the config says tie_weights, but out_head.weight differs from tok_emb.weight{_hint(model)}"
            )
    if problem := _mismatch(_forms(state), model.config):
        raise ValueError(f"the {type(model).__name__} is not a GPTModel of its config: {problem}{_hint(model)}")
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, such as a head tied by hand.
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return tensors


def _hint(model: GPTModel) -> str:
    """Return the way out if the head was replaced by one of other width, as chapter 6 does by hand; else nothing."""
    head, config = model.out_head, model.config
    known = (config.n_outputs, getattr(model.tok_emb, "num_embeddings", None))  # the latter of a resized vocabulary
    if not isinstance(head, nn.Linear) or head.out_features in known:
        return ""
    untied = ", tie_weights=False" if config.tie_weights else ""
    return f"; to classify, build the model with GPTConfig(..., n_classes={head.out_features}{untied})"


def _are_equal(first: Tensor, second: Tensor) -> bool:
    """As ``torch.equal``, but a tensor with a NaN in it is equal to itself."""
    return first.shape == second.shape and (first.data_ptr() == second.data_ptr() or torch.equal(first, second))


def save_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write the tensors; the same ones give the same bytes."""
    # Without {"format": "pt"} transformers refuses the file.
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def load_weights(path: Path, config: GPTConfig, *, device: torch.device) -> GPTModel:
    """Return a new model in eval mode with the file's parameters; CheckpointError if they are not ``config``'s."""
    try:
        entries = _entries(path)
        found = {name: (entry.shape, entry.dtype is not None) for name, entry in entries.items()}
        if problem := _mismatch(found, config):
            raise CheckpointError(f"{path} does not fit its config.json: {problem}")
        tensors = _read_tensors(path, entries, device)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return _assembled(config, tensors)


class _Entry(NamedTuple):
    """A tensor in the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: one that no checkpoint has
    start: int  # position of its first byte


def _entries(path: Path) -> dict[str, _Entry]:
    with safetensors.safe_open(path, framework="np"):
        pass  # it has checked that the header is sound and that the tensors fill the rest of the file
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: _Entry(tuple(of["shape"]), _DTYPES.get(of["dtype"]), 8 + size + of["data_offsets"][0])
        for name, of in header.items()
    }


def _read_tensors(path: Path, entries: Mapping[str, _Entry], device: torch.device) -> dict[str, Tensor]:
    """Return the tensors on ``device``, in memory of their own."""
    tensors = {}
    with path.open("rb") as file:
        for name, entry in entries.items():
            # Read, not copied from safetensors' mapped file, whose pages count as the process's own: with them loading
            # took twice the weights, now 1.01 times.
            tensor = torch.empty(entry.shape, dtype=entry.dtype)
            file.seek(entry.start)
            if file.readinto(tensor.view(-1).view(torch.uint8).numpy().data) != tensor.nbytes:
                raise OSError(f"the file ends within {name}")
            tensors[name] = tensor.to(device)
    return tensors


def _assembled(config: GPTConfig, tensors: Mapping[str, Tensor]) -> GPTModel:
    """Return the model that has these tensors, in eval mode; they must be those of the config."""
    model = _empty_model(config)
    tied = {"out_head.weight": tensors["tok_emb.weight"]} if config.tie_weights else {}
    model.load_state_dict({**tensors, **tied}, assign=True)
    if config.tie_weights:
        model.out_head.weight = model.tok_emb.weight
    return model.eval()


class _WithoutInit(TorchFunctionMode):
    """Within it ``torch.nn.init`` does nothing; on the meta device it would import torch's compiler: 2 s."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _empty_model(config: GPTConfig) -> GPTModel:
    """Return a model whose parameters have shapes but no memory; no random number is drawn."""
    with torch.device("meta"), _WithoutInit():
        return GPTModel(config)


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return each tensor's shape and whether its dtype is one that a checkpoint may have."""
    return {name: (tuple(tensor.shape), tensor.dtype in _DTYPES.values()) for name, tensor in tensors.items()}


def _mismatch(found: Mapping[str, tuple[tuple[int, ...], bool]], config: GPTConfig) -> str:
    """Say how the tensors, {name: (shape, is such a float)}, differ from those of the config; "" if not at all."""
    # First what bounds the config's numbers, so that no model of absurd size is built, not even without data.
    bounds: dict[str, tuple[int, ...]] = {"tok_emb.weight": (config.vocab_size, config.emb_dim)}
    if config.positions == "learned":
        bounds["pos_emb.weight"] = (config.context_length, config.emb_dim)
    if config.n_classes is not None:
        bounds["out_head.weight"] = (config.n_classes, config.emb_dim)
    for name, shape in bounds.items():
        if name not in found:
            return f"{name} is missing, found {_some(sorted(found)) or 'no tensor'}"
        if found[name][0] != shape:
            return f"{name} has shape {found[name][0]}, expected {shape}"
    if config.n_layers > len(found):
        return f"{len(found)} tensors are too few for {config.n_layers} layers"
    expected = parameter_shapes(config)
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(expected)} expected tensors are missing ({_some(missing)})")
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], missing or expected, n=1)
        hint = f"; nearest to {unknown[0]} is {nearest[0]}" if nearest else ""
        problems.append(f"{len(unknown)} tensors are not expected ({_some(unknown)}{hint})")
    for name, shape in expected.items():
        if name in found and found[name] != (shape, True):
            kind = f"shape {found[name][0]}" if found[name][1] else "a dtype that is no float of 16 to 64 bits"
            problems.append(f"{name} has {kind}, expected floats of shape {shape}")
    return "; ".join(problems[:4])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
