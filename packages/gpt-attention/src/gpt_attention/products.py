"""Linear layers whose float32 products run on the kernel that is fast on this processor.

torch sends float32 products to MKL where it is built with it, and MKL takes its AVX2 path on processors that are not
Intel's. oneDNN, which torch carries too, uses AVX-512 on any. On a 2-core AMD EPYC (Zen 4), GPT-2's shapes, 512 rows:
forward 118 to 199 GFLOP/s through MKL, 170 to 215 through oneDNN; gradients of the input 160 to 200 against 179 to 224.
Gradients of the weights gain nothing and stay with torch. One row, as in decoding, all products of a 124M step: 36.9 ms
through MKL, 22.9 through oneDNN, which is what reading 498 MB takes there. Intel's own AVX-512 was not measured.

Shapes: R rows (batch times tokens), N outputs, M inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A product that fits the caches takes microseconds by any kernel; oneDNN's longer way in costs more than it saves.
_MIN_WEIGHTS = 2**16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b for x (..., M), weight (N, M) and bias (N,): ``torch.nn.functional.linear`` by another kernel.

    The choice depends on the processor, the dtype and the shapes alone, so that a run repeats bit for bit.
    """
    if not _onednn_is_faster(x, weight):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _onednn_product(x, weight, bias)
    return _OneDnnLinear.apply(x, weight, bias)


class Linear(nn.Linear):
    """``torch.nn.Linear`` with its product through ``linear``; parameters, draws and results are the same."""

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b for x (..., M)."""
        return linear(input, self.weight, self.bias)


class PreparedLinear:
    """x W^T + b for inference with weights that stay: the choice of the kernel is made once.

    ``weight`` (N, M) and ``bias`` (N,) are used where they lie, not copied. The methods fuse what follows the product
    in a GPT block where the kernel can. No gradient is computed.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self._uses_onednn = _HAS_ONEDNN_AVX512 and weight.dtype == torch.float32 and weight.device.type == "cpu"

    def __call__(self, x: Tensor) -> Tensor:
        """Return x W^T + b (R, N) for x (R, M)."""
        return self._product(x, "none", "")

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU, in GPT-2's tanh form, of the product."""
        if self._uses_onednn:
            return self._product(x, "gelu", "tanh")
        return F.gelu(self._product(x, "none", ""), approximate="tanh")

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the product added to ``residual`` (R, N)."""
        if self._uses_onednn:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return residual + self._product(x, "none", "")

    def _product(self, x: Tensor, function: str, form: str) -> Tensor:
        if self._uses_onednn:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, function, [], form)
        return F.linear(x, self.weight, self.bias)


def _onednn_is_faster(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and weight.numel() >= _MIN_WEIGHTS
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and x.shape[-1] == weight.shape[-1]  # else torch's own error names both shapes
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()  # torch.func cannot transform a hand-made backward
        and _HAS_ONEDNN_AVX512
    )


def _find_onednn_avx512() -> bool:
    has_operator = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_operator and torch.backends.cpu.get_cpu_capability() == "AVX512"


_HAS_ONEDNN_AVX512 = _find_onednn_avx512()


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])                                     # (R, N)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = linear(rows, weight.t()).view(x.shape)                         # (..., M)
        if ctx.needs_input_grad[1]:
            grad_weight = rows.t() @ x.reshape(-1, x.shape[-1])                     # (N, M)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)                                                 # (N,)
        return grad_x, grad_weight, grad_bias
