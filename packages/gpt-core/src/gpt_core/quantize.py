"""Weights for generation only: packed for the processor, in bfloat16, or in int8 with a scale for each row.

Decoding reads every weight for each token, so half or a quarter of the bytes is up to two or four times the speed. Only
the matrices change; norms, biases, position embeddings and the sums between the blocks stay float32.

int8: row n of a matrix becomes round(w / s) with s = max|w| / 127, n's own scale (absmax quantisation; Dettmers et al.
2022, section 2.1, row-wise). The activations keep 16 bits: on processors with 8-bit dot products (AVX-512 VNNI) each
row of them is written as two bytes, x = a (256 u1 + u0 - 32896) / 32512 with a = max|x|, off by at most a / 65024,
and both go through one 8-bit product that reads the weights once. Other CPUs take torch's product of int8 weights for
a few rows; where there is neither, each product widens its matrix first, which saves memory and no time.

Shapes: R rows, N outputs, M inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_core.inference import Embedding, InferenceModel, Product
from gpt_core.prepare import is_plain, language_model, prepare

_HAS_INT8_PRODUCT = hasattr(torch, "_weight_int8pack_mm")
_FORMS = ("float32", "bfloat16", "int8")
# oneDNN lays packed weights out for a number of rows. Laid out for 16 they serve any; and four rows are quicker than
# one, which goes another way: all products of a 124M step in bfloat16, 12.6 to 13.1 ms against 14.1 to 16.0.
_PACK_FOR_ROWS, _LEAST_ROWS = 16, 4


def quantize(model: nn.Module, dtype: str | torch.dtype = "int8") -> InferenceModel:
    """Return a copy of a ``GPTModel`` for generation, its matrices in 1 byte a weight ("int8") or 2 ("bfloat16").

    "float32" loses nothing: the weights are only laid out as the processor reads them best, for batches and prompts.
    The copy keeps nothing of the model, which may be deleted. It can be neither trained nor saved: save the model, and
    quantize it again after loading. bfloat16 is quick where the processor multiplies it (AVX-512 BF16, AMX, recent Arm
    and Apple processors, GPUs).

    Raises ValueError for another dtype, for a model with replaced, hooked or explicit layers, and for one that
    classifies.
    """
    form = str(dtype).removeprefix("torch.")
    if form not in _FORMS:
        raise ValueError(f"dtype must be one of {', '.join(_FORMS)}, got {dtype!r}")
    model = language_model(model)
    if not is_plain(model):
        raise ValueError(
            f"quantize takes a GPTModel whose layers are gpt-core's own and share one dtype, got a "
            f"{type(model).__name__} that is not; merge adapters, remove hooks, and build it without explicit=True"
        )

    def make_product(weight: Tensor, bias: Tensor | None, **rows: bool) -> PackedLinear | Int8Linear:
        if form == "int8":
            return Int8Linear(weight, bias, **rows)
        return PackedLinear(weight, bias, dtype=getattr(torch, form), **rows)

    def make_head(head: Tensor, embedding: Tensor) -> tuple[Product, Embedding]:
        product = make_product(head, None, with_rows=head is embedding)
        return product, product.rows if head is embedding else make_product(embedding, None, only_rows=True).rows

    # On a CPU attention is quicker with float32 keys and values than with bfloat16 ones, which it converts.
    is_bfloat16 = form == "bfloat16" and model.device.type != "cpu"
    with torch.no_grad():
        return prepare(
            model, make_product=make_product, make_head=make_head, small=lambda tensor: tensor.float().clone(),
            dtype=torch.bfloat16 if is_bfloat16 else torch.float32,
        )


class PackedLinear:
    """x W^T + b with W (N, M) in bfloat16 or float32, x (R, M) and the product (R, N) in W's dtype.

    ``with_rows``: the rows of W are asked for too (a tied embedding), ``only_rows``: nothing else is.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        with_rows: bool = False,
        only_rows: bool = False,
    ) -> None:
        self._dtype = dtype
        self._weight = weight.detach().to(dtype, copy=True)
        self._bias = None if bias is None else bias.detach().float().clone()
        self._packed: Tensor | None = None
        if weight.device.type == "cpu" and not only_rows and _packs(dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, _PACK_FOR_ROWS)
        if self._packed is not None and not with_rows:  # rows cannot be read from a packed matrix
            del self._weight

    def __call__(self, x: Tensor) -> Tensor:
        """Return x W^T + b (R, N) for x (R, M)."""
        return self._product(x, "none", "")

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU, in GPT-2's tanh form, of the product."""
        if self._packed is not None:
            return self._product(x, "gelu", "tanh")
        return F.gelu(self._product(x, "none", ""), approximate="tanh")

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the product added to a float32 ``residual`` (R, N)."""
        return residual + self._product(x, "none", "")

    def rows(self, ids: Tensor) -> Tensor:
        """Return W's rows (R, M) as float32."""
        return self._weight[ids].float()

    def _product(self, x: Tensor, function: str, form: str) -> Tensor:
        x = x.to(self._dtype)
        if self._packed is None:
            return F.linear(x, self._weight, None if self._bias is None else self._bias.to(self._dtype))
        R = len(x)
        if R < _LEAST_ROWS:
            x = x.expand(_LEAST_ROWS, -1) if R == 1 else F.pad(x, (0, 0, 0, _LEAST_ROWS - R))
        return torch.ops.mkldnn._linear_pointwise.default(x, self._packed, self._bias, function, [], form)[:R]


class Int8Linear:
    """x W^T + b with W (N, M) in int8 and a float32 scale for each row; see the module for the kernels.

    ``with_rows``: the rows of W are asked for too (a tied embedding), ``only_rows``: nothing else is.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, with_rows: bool = False, only_rows: bool = False
    ) -> None:
        weight = weight.detach().float()
        # A row of zeros has any scale; 1 keeps it from dividing by 0. NaN spreads, and is refused with the logits.
        largest = weight.abs().amax(dim=1)
        self._scale = torch.where(largest == 0, 1.0, largest / 127)                        # (N,)
        quantized = (weight / self._scale[:, None]).round_().to(torch.int8)
        n_rows = len(weight)
        self._bias = weight.new_zeros(n_rows) if bias is None else bias.detach().float().clone()
        self._packed: Tensor | None = None
        if not only_rows and weight.device.type == "cpu" and _has_vnni():
            self._packed = torch.ops.onednn.qlinear_prepack(quantized, [_PACK_FOR_ROWS, weight.shape[1]])
            self._zero_points = torch.zeros(n_rows, dtype=torch.int32)
            self._byte_scale = self._scale / 32512
        self._weight = quantized if with_rows or self._packed is None else None

    def __call__(self, x: Tensor) -> Tensor:
        """Return x W^T + b (R, N) in float32 for x (R, M)."""
        if self._packed is not None:
            return self._split_product(x)
        assert self._weight is not None
        # The operator reads past the end of rows that are no multiple of 16, so it is kept for common widths.
        if _HAS_INT8_PRODUCT and x.device.type == "cpu" and len(x) <= _PACK_FOR_ROWS and x.shape[1] % 64 == 0:
            low = torch.bfloat16  # of the dtypes that this operator takes the only quick one
            product = torch._weight_int8pack_mm(x.to(low), self._weight, self._scale.to(low)).float()
            return product + self._bias
        return F.linear(x, self._weight.to(x.dtype) * self._scale[:, None], self._bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU, in GPT-2's tanh form, of the product."""
        return F.gelu(self(x), approximate="tanh")

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the product added to ``residual`` (R, N)."""
        return residual + self(x)

    def rows(self, ids: Tensor) -> Tensor:
        """Return W's rows (R, M) as float32."""
        assert self._weight is not None
        return self._weight[ids].float() * self._scale[ids, None]

    def _split_product(self, x: Tensor) -> Tensor:
        R, M = x.shape
        largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp_min_(1e-30)  # (R, 1)
        # 32896 is 128 for each byte; the half rounds what the conversion cuts off. In place here and below, not by
        # addcdiv and addcmul: with these a sum of 512 rows took 16 times as long.
        sixteen = (x * (32512.0 / largest)).add_(32896.5).to(torch.uint16)                        # (R, M)
        bytes_ = sixteen.view(torch.uint8).view(R, M, 2).transpose(1, 2).reshape(2 * R, M)        # low, high, low, ...
        scale, zeros = self._byte_scale, self._zero_points
        products = torch.ops.onednn.qlinear_pointwise.default(
            bytes_, 1.0, 128, self._packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        low, high = products.view(R, 2, -1).unbind(1)                                             # (R, N)
        return torch.add(low, high, alpha=256).mul_(largest).add_(self._bias)


def _packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    operators = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not all(hasattr(operators, name) for name in names):  # they are torch's own, and may go
        return False
    return dtype == torch.float32 or operators._is_mkldnn_bf16_supported()


def _has_vnni() -> bool:
    # Without VNNI oneDNN adds pairs of 8-bit products in 16 bits, which overflow.
    has_operators = all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise"))
    is_supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return torch.backends.mkldnn.is_available() and has_operators and is_supported is not None and is_supported()
