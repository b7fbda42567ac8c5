"""Packed weights for products with few rows on a CPU.

A product with one to some dozen rows takes as long as reading its weight. The usual kernels rearrange the weight at
every call; here it is rearranged once, into oneDNN's blocked layout. The copies take the memory of the decoder once
more.

1. :func:`speed_up` replaces the ``forward`` of the decoder's linear modules and of the adapter's experts. Modules are
   still called as modules, so hooks, adapters around them and later patches run.
2. A packed product serves calls without gradient on a CPU; any other call is the module's own.
3. Before each prefix, weights are compared with those that were packed, and packed again if they changed.

On a CPU without bfloat16 arithmetic, products of three rows or more use a float32 copy of twice the size, made at the
first such product.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from plume.checks_plume import emulates_bfloat16

logger = logging.get_logger(__name__)

# Layout hint: the layout that oneDNN picks for many rows was never slower for few, the reverse was not true.
_ROWS_HINT = 512
# Above so many rows the usual kernels are as fast.
_MOST_ROWS = 64
# Rows from which float32 is faster where bfloat16 is emulated; 1 row: 2.2 times slower, 8 rows: 2.3 times faster.
_FLOAT32_ROWS = 3
_FORWARD = "forward"

Weights = Callable[[], tuple[torch.Tensor, torch.Tensor | None]]


class PackedProduct:
    """x -> x W^T + b over a packed copy of W ``(out, in)``, made at the first call for each dtype.

    Args:
        weights: Gives W and b; called when they are packed.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._packed: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product for ``x``, ``(B, ..., in)``."""
        dtype = x.dtype
        if dtype == torch.bfloat16 and len(x) >= _FLOAT32_ROWS and emulates_bfloat16():
            dtype = torch.float32
        found = self._packed.get(dtype)
        if found is None:
            weight, bias = self._weights()
            whole = weight.detach().to(dtype).contiguous()
            packed = torch.ops.mkldnn._reorder_linear_weight(whole, _ROWS_HINT)
            found = self._packed[dtype] = packed, None if bias is None else bias.detach().to(dtype)
        product = torch.ops.mkldnn._linear_pointwise(x.to(dtype), *found, "none", [], "")
        return product if dtype == x.dtype else product.to(x.dtype)


class PackedForward:
    """Replaces the forward of a linear module or of the experts; its packed weights are not copied with it.

    Args:
        module: Whose forward it is.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.products: list[PackedProduct] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "products": []}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As the module's own forward, to rounding."""
        module = self.module
        plain = torch.is_grad_enabled() or module.training or torch.is_autocast_enabled("cpu")
        if plain or x.device.type != "cpu" or not 0 < x.numel() <= _MOST_ROWS * x.shape[-1]:
            return type(module).forward(module, x)
        products = self.products = self.products or [PackedProduct(weights) for weights in _weights_of(module)]
        if len(products) == 1:
            return products[0](x)
        up, *downs = products  # the experts: all of them as one product up, one product each down
        hidden = nn.functional.gelu(up(x)).chunk(len(downs), dim=-1)
        return torch.stack([down(part) for down, part in zip(downs, hidden, strict=True)])


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
    """Drops the copies of weights that changed, before a prefix; a write through ``.data`` shows in the last entry."""

    def __init__(self, forwards: list[PackedForward]) -> None:
        self._forwards = forwards
        self._stamp: list[Any] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_forwards": self._forwards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**{name.strip("_"): value for name, value in state.items()})  # type: ignore[misc]

    def __call__(self, *arguments: Any) -> None:
        weights = [weight for forward in self._forwards for weight in forward.module.parameters(recurse=False)]
        last = torch.stack([weight.detach()[(-1,) * weight.ndim].float().cpu() for weight in weights]).tolist()
        stamp = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights] + last
        with self._lock:
            if stamp != self._stamp:
                for forward in self._forwards:
                    forward.products = []
                self._stamp = stamp


def speed_up(model: Any, enabled: bool) -> None:
    """Give the modules of a PLUME model their packed forward, or their own again; says what stays as it is."""
    for module in model.modules():
        if isinstance(vars(module).get(_FORWARD), PackedForward):
            del module.forward
    hooks = model.model.language_model._forward_pre_hooks
    for handle in [handle for handle, call in hooks.items() if isinstance(call, _Freshness)]:
        del hooks[handle]
    if not enabled:
        return
    linears = [m for m in model.model.language_model.layers.modules() if isinstance(m, nn.Linear)]
    candidates = [*linears, model.latent_transition.experts]
    problems = {type(module).__name__: problem for module in candidates if (problem := _why_not(module))}
    for name, problem in problems.items():
        logger.warning(f"speed_up(): some modules ({name}) run as they are: {problem}.")
    packed = [module for module in candidates if not _why_not(module)]
    forwards = [PackedForward(module) for module in packed]
    for forward in forwards:
        forward.module.forward = forward
    if forwards:
        model.model.language_model.register_forward_pre_hook(_Freshness(forwards))


def _why_not(module: nn.Module) -> str | None:
    """What keeps a module from being packed, in words; None if nothing does."""
    if _FORWARD in vars(module):
        return "something else replaces their forward"
    weights = dict(module.named_parameters(recurse=False))
    if "up_weight" not in weights and type(module) is not nn.Linear:
        return "they are replaced or wrapped"
    if any(type(weight) is not nn.Parameter or weight.device.type != "cpu" for weight in weights.values()):
        return "weights are packed on a CPU and in their plain form only"
    if not {weight.dtype for weight in weights.values()} <= {torch.float32, torch.bfloat16} or not weights:
        return "weights are packed in float32 or bfloat16"
    return None if _works() else f"this build of torch {torch.__version__} has no packed products"


def _works() -> bool:
    try:
        PackedProduct(lambda: (torch.zeros(8, 8), None))(torch.zeros(1, 8))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


__all__ = ["speed_up"]
