"""Products with weights of eight bits that read half the bytes of bfloat16.

The CPU multiplies bytes by bytes, so the activations must be bytes too. One byte each would cost accuracy; here each is
rounded to 16 bits, relative to the largest m of its row, and multiplied as two bytes:

    x ~ m / 32512 (256 high + low),    W ~ scale Q,    x W^T ~ m scale / 32512 (256 high Q^T + low Q^T)

Both are rows of one product, so the weight is read once. Sums are exact integers: a row does not depend on others.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_LARGEST = 127 * 256  # of an activation, in steps
_ZERO = 128  # the kernel takes unsigned bytes and subtracts this
_OFFSET = torch.tensor(256 * _ZERO + _ZERO + 0.5)  # the conversion to an integer cuts, so 0.5 makes it round


class Int8Weight(NamedTuple):
    """A quantized weight.

    Attributes:
        values: Q, ``(out, in)``, int8.
        scale: One per output channel, ``(out,)``, fp32.
    """

    values: torch.Tensor
    scale: torch.Tensor


def quantize(weight: torch.Tensor) -> Int8Weight:
    """Round a weight ``(out, in)`` to eight bits, with a scale per output channel."""
    whole = weight.detach().float()
    scale = (whole.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return Int8Weight((whole / scale.unsqueeze(1)).round().to(torch.int8), scale)


def read_quantized(weight: torch.Tensor) -> Int8Weight | None:
    """What torchao's int8 weight-only quantization made of a weight; None for any other tensor."""
    if not is_traceable_wrapper_subclass(weight):
        return None
    names, settings = weight.__tensor_flatten__()
    parts: dict[str, Any] = {name: getattr(weight, name) for name in names}
    symmetric = "zero_point" not in parts or not parts["zero_point"].any()
    per_channel = settings.get("block_size") == [1, weight.shape[-1]]
    if not symmetric or not per_channel or settings.get("act_quant_kwargs") or parts.keys() - _PARTS:
        return None
    return Int8Weight(parts["qdata"], parts["scale"].flatten().float())


_PARTS = {"qdata", "scale", "zero_point"}


class Int8Product:
    """x -> x W^T + b over a packed copy of a quantized W.

    Args:
        weight: W.
        bias: b, ``(out,)``.
    """

    def __init__(self, weight: Int8Weight, bias: torch.Tensor | None) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(weight.values.contiguous(), None)
        self._scale, self._zeros = weight.scale / _LARGEST, torch.zeros(len(weight.scale), dtype=torch.int32)
        self._bias = None if bias is None else bias.detach().float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product for ``x``, ``(..., in)``."""
        rows = x.reshape(-1, x.shape[-1]).float()
        largest = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True)
        # A positive integer, whose two low bytes are wanted. Where a row is 0, its bytes do not matter.
        whole = torch.addcdiv(_OFFSET, rows, largest, value=_LARGEST).to(torch.int32)
        halves = whole.view(torch.uint8).view(*rows.shape, 4)[..., :2].movedim(-1, 0).flatten(0, 1)
        arguments: tuple[Any, ...] = (
            self._packed,
            self._scale,
            self._zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        low, high = torch.ops.onednn.qlinear_pointwise(halves, 1.0, _ZERO, *arguments).chunk(2)
        product = torch.add(low, high, alpha=256).mul_(largest)
        if self._bias is not None:
            product += self._bias
        return product.to(x.dtype).view(*x.shape[:-1], -1)


@cache
def computes_exactly() -> bool:
    """Whether this CPU and torch multiply bytes exactly: older CPUs lose the sum of two large products."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (32, 64), dtype=torch.int8, generator=generator)
    values[:16] = 127
    x = torch.randn(2, 64, generator=generator)
    x[0] = 1.0
    try:
        found = Int8Product(Int8Weight(values, torch.ones(32)), None)(x)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return torch.allclose(found, x @ values.float().T, rtol=1e-3, atol=0.1)


__all__ = ["Int8Product", "Int8Weight", "computes_exactly", "quantize", "read_quantized"]
