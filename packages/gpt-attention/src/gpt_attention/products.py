"""Linear layers whose float32 products run on the kernel that is fast on this processor.

torch sends float32 products to MKL where it is built with it, and MKL takes its AVX2 path on processors that are not
Intel's. oneDNN, which torch carries too, uses AVX-512 on any. On a 2-core AMD EPYC (Zen 4), GPT-2's shapes, 512 rows:
forward 118 to 199 GFLOP/s through MKL, 170 to 215 through oneDNN; gradients of the input 160 to 200 against 179 to 224.
Gradients of the weights gain nothing and stay with torch.

Shapes: R rows (batch times tokens), N outputs, M inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Below this many rows (a decoding step has one per sequence) reading the weights takes the time, not the sum.
_MIN_ROWS = 32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b for x (..., M), weight (N, M) and bias (N,): ``torch.nn.functional.linear`` by another kernel.

    The choice depends on the processor, the dtype and the shapes alone, so that a run repeats bit for bit.
    """
    if _onednn_is_faster(x, weight):
        return _OneDnnLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``torch.nn.Linear`` with its product through ``linear``; parameters, draws and results are the same."""

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b for x (..., M)."""
        return linear(input, self.weight, self.bias)


def _onednn_is_faster(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() >= _MIN_ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])                                     # (R, N)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _onednn_product(rows, weight.t(), None).view(x.shape)          # (..., M)
        if ctx.needs_input_grad[1]:
            grad_weight = rows.t() @ x.reshape(-1, x.shape[-1])                     # (N, M)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)                                                 # (N,)
        return grad_x, grad_weight, grad_bias
