"""Packed weights for products with few rows on a CPU.

A product with one to some dozen rows takes as long as reading its weight. The usual kernels rearrange the weight at
every call; here it is rearranged once, into oneDNN's blocked layout, in its own dtype or in eight bits.

1. :func:`pack_products` replaces the ``forward`` of the decoder's linear modules and of the adapter's experts. Modules
   are still called as modules, so hooks, adapters around them and later patches run.
2. A packed product serves calls without gradient on a CPU; any other call is the module's own.
3. Before each prefix, weights are compared with those that were packed, and packed again if they changed.

In their own dtype, copies serve products of few rows, as more rows gain nothing. On a CPU without bfloat16 arithmetic,
products of three rows or more use a float32 copy of twice the size, made at the first such product. In eight bits they
serve any number of rows: a vector then does not depend on how many rows a product happens to have. Weights that torchao
has quantized to eight bits are packed as they are.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from plume.speed.bfloat16 import emulates_bfloat16
from plume.speed.freshness import stamp_weights
from plume.speed.int8 import Int8Product, computes_exactly, quantize, read_quantized

logger = logging.get_logger(__name__)

# Layout hint: the layout that oneDNN picks for many rows was never slower for few, the reverse was not true.
_ROWS_HINT = 512
# Above so many rows the usual kernels are as fast.
_MOST_ROWS = 64
# Rows from which float32 is faster where bfloat16 is emulated; 1 row: 2.2 times slower, 8 rows: 2.3 times faster.
_FLOAT32_ROWS = 3
_FORWARD = "forward"

Weights = Callable[[], tuple[torch.Tensor, torch.Tensor | None]]
Product = Callable[[torch.Tensor], torch.Tensor]


class PackedProduct:
    """x -> x W^T + b over a packed copy of W ``(out, in)``, made at the first call for each dtype.

    Args:
        weights: Gives W and b; called when they are packed.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._packed: dict[torch.dtype, Product] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product for ``x``, ``(B, ..., in)``."""
        dtype = x.dtype
        if dtype == torch.bfloat16 and len(x) >= _FLOAT32_ROWS and emulates_bfloat16():
            dtype = torch.float32
        if dtype not in self._packed:
            self._packed[dtype] = self._pack(dtype)
        return self._packed[dtype](x.to(dtype)).to(x.dtype)

    def _pack(self, dtype: torch.dtype) -> Product:
        weight, bias = self._weights()
        whole, bias = weight.detach().to(dtype).contiguous(), None if bias is None else bias.detach().to(dtype)
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # needs more than AVX2
            return partial(nn.functional.linear, weight=whole, bias=bias)
        packed = torch.ops.mkldnn._reorder_linear_weight(whole, _ROWS_HINT)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


class PackedForward:
    """Replaces the forward of a linear module or of the experts; its packed weights are not copied with it.

    Args:
        module: Whose forward it is.
        int8: Whether to pack in eight bits.
    """

    def __init__(self, module: nn.Module, int8: bool) -> None:
        self.module: Any = module
        self.int8 = int8
        self.products: list[Product] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "int8": self.int8, "products": []}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As the module's own forward, to rounding or to the error of eight bits."""
        module = self.module
        plain = torch.is_grad_enabled() or module.training or torch.is_autocast_enabled("cpu")
        most = x.numel() if self.int8 else _MOST_ROWS * x.shape[-1]
        if plain or x.device.type != "cpu" or not 0 < x.numel() <= most:
            return type(module).forward(module, x)
        products = self.products = self.products or [self._pack(weights) for weights in _weights_of(module)]
        if len(products) == 1:
            return products[0](x)
        up, *downs = products  # the experts: all of them as one product up, one product each down
        hidden = nn.functional.gelu(up(x)).chunk(len(downs), dim=-1)
        return torch.stack([down(part) for down, part in zip(downs, hidden, strict=True)])

    def _pack(self, weights: Weights) -> Product:
        if not self.int8:
            return PackedProduct(weights)
        weight, bias = weights()
        return Int8Product(read_quantized(weight) or quantize(weight), bias)


def _weights_of(module: Any) -> list[Weights]:
    """W and b of every product of a module."""
    if isinstance(module, nn.Linear):
        return [lambda: (module.weight, module.bias)]
    up: Weights = lambda: (module.up_weight.mT.flatten(0, 1), module.up_bias.flatten())  # noqa: E731
    downs = [partial(_down, module, index) for index in range(len(module.down_weight))]
    return [up, *downs]


def _down(experts: Any, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    return experts.down_weight[index].T, experts.down_bias[index, 0]


class _Freshness:
    """Drops the copies of weights that changed, before a prefix."""

    def __init__(self, forwards: list[PackedForward]) -> None:
        self._forwards = forwards
        self._stamp: list[Any] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_forwards": self._forwards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**{name.strip("_"): value for name, value in state.items()})  # type: ignore[misc]

    def __call__(self, *arguments: Any) -> None:
        stamp = stamp_weights(
            weight for forward in self._forwards for weight in forward.module.parameters(recurse=False)
        )
        with self._lock:
            if stamp != self._stamp:
                for forward in self._forwards:
                    forward.products = []
                self._stamp = stamp


def pack_products(model: Any, enabled: bool, int8: bool) -> None:
    """Give the modules of a PLUME model their packed forward, or their own again; says what stays as it is.

    Args:
        model: The model.
        enabled: False gives every module its own forward again.
        int8: Whether to pack in eight bits.
    """
    for module in model.modules():
        if isinstance(vars(module).get(_FORWARD), PackedForward):
            del module.forward
    hooks = model.model.language_model._forward_pre_hooks
    for handle in [handle for handle, call in hooks.items() if isinstance(call, _Freshness)]:
        del hooks[handle]
    if not enabled:
        return
    if int8 and not computes_exactly():
        logger.warning(
            f"speed_up(int8=True): this CPU or this build of torch {torch.__version__} does not multiply eight bits "
            "exactly, so weights are packed in their own dtype."
        )
        int8 = False
    linears = [m for m in model.model.language_model.layers.modules() if isinstance(m, nn.Linear)]
    candidates = [*linears, model.latent_transition.experts]
    problems = {type(module).__name__: problem for module in candidates if (problem := _why_not(module))}
    for name, problem in problems.items():
        logger.warning(f"speed_up(): some modules ({name}) run as they are: {problem}.")
    packed = [module for module in candidates if not _why_not(module)]
    forwards = [PackedForward(module, int8 or _is_quantized(module)) for module in packed]
    for forward in forwards:
        forward.module.forward = forward
    if forwards:
        model.model.language_model.register_forward_pre_hook(_Freshness(forwards))


def _is_quantized(module: Any) -> bool:
    return isinstance(module, nn.Linear) and read_quantized(module.weight) is not None


def _why_not(module: nn.Module) -> str | None:
    """What keeps a module from being packed, in words; None if nothing does."""
    if _FORWARD in vars(module):
        return "something else replaces their forward"
    weights = dict(module.named_parameters(recurse=False))
    if "up_weight" not in weights and type(module) is not nn.Linear:
        return "they are replaced or wrapped"
    if any(weight.device.type != "cpu" for weight in weights.values()):
        return "weights are packed on a CPU only"
    if any(type(weight) is not nn.Parameter for weight in weights.values()):
        if _is_quantized(module):
            return None if computes_exactly() else "this CPU or build of torch does not multiply eight bits exactly"
        return "weights are packed in their plain form, or in torchao's symmetric int8 with a scale per channel"
    if not {weight.dtype for weight in weights.values()} <= {torch.float32, torch.bfloat16} or not weights:
        return "weights are packed from float32 or bfloat16"
    return None if _works() else f"this build of torch {torch.__version__} has no packed products"


def _works() -> bool:
    try:
        PackedProduct(lambda: (torch.zeros(8, 8), None))(torch.zeros(1, 8))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


__all__ = ["PackedForward", "pack_products"]
