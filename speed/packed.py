"""Weights laid out for products with few rows on a CPU, the opt-in of :meth:`~plume.PlumeForEmbedding.speed_up`.

A product with one to some dozen rows is bound by reading its weight. The usual kernels rearrange the weight at every
call; here it is rearranged once (oneDNN's blocked layout), and products of the same input are one: queries, keys and
values; gate and up; all experts of the adapter. The copies take the memory of the decoder once more.

A CPU without bfloat16 arithmetic converts at every product, which costs more than it saves from some rows on: there
such products have a float32 copy, twice the size, made when they first come.

Invariant: the copies are those of the current weights; whatever changed is packed again at the next use. (A write
through ``weight.data`` is noticed by the last entry of the weight only.)
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.utils import logging

from .checks_plume import emulates_bfloat16
from .decode_plume import LayerCalls, is_watched, projections
from .latent_plume import LatentExperts

logger = logging.get_logger(__name__)

# Layout hint: the layout that oneDNN picks for many rows was never slower for few, the reverse was not true.
_ROWS_HINT = 512
# Rows from which float32 is faster where bfloat16 is emulated; 1 row: 2.2 times slower, 8 rows: 2.3 times faster.
_FLOAT32_ROWS = 3


class Packed(NamedTuple):
    """Packed weights of decoder and adapter.

    Attributes:
        layers: The products of every decoder layer.
        mix: The gated sum of the experts: normed states ``(B, D)`` and gates ``(B, E)`` to ``(B, D)``.
    """

    layers: list[LayerCalls]
    mix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PackedWeights:
    """Keeper of the packed weights of one model; leaves them behind when copied or pickled."""

    def __init__(self) -> None:
        self._packed: Packed | None = None
        self._stamp: list[Any] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def of(self, language_model: Any, experts: LatentExperts) -> Packed | None:
        """The packed weights of the model's current ones; None, with a message, where they cannot be packed."""
        weights = [*language_model.layers.parameters(), *experts.parameters()]
        if any(weight.device.type != "cpu" for weight in weights):
            return None  # other devices read weights as they are
        last = torch.stack([weight.detach()[(-1,) * weight.ndim].float() for weight in weights]).tolist()
        versions = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
        with self._lock:
            stamp = [*versions, *last, _watched(language_model, experts)]
            if stamp != self._stamp:
                self._packed, self._stamp = _pack(language_model, experts), stamp
            return self._packed


def _why_not_packable(language_model: Any, experts: LatentExperts) -> str | None:
    """What keeps the weights from being packed, in words; None where nothing does."""
    linears: list[Any] = [linear for layer in language_model.layers for linear in projections(layer)]
    dtypes = {weight.dtype for weight in (*language_model.layers.parameters(), *experts.parameters())}
    if others := sorted({type(linear).__name__ for linear in linears if type(linear) is not nn.Linear}):
        return f"linear layers of the decoder are replaced or wrapped ({others})"
    if any(_watched(language_model, experts)):
        return "hooks sit on linear layers of the decoder or on the experts, and packed products would pass them by"
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16}:
        return f"weights are packed in float32 or bfloat16, all alike, not in {sorted(map(str, dtypes))}"
    try:
        row = linears[0].weight[:1].detach()
        _Product(lambda: row, None)(row)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        return f"this build of torch {torch.__version__} cannot ({str(error).splitlines()[0]})"
    return None


def _watched(language_model: Any, experts: LatentExperts) -> list[bool]:
    modules = (linear for layer in language_model.layers for linear in projections(layer))
    return [is_watched(module) for module in (*modules, experts)]


def product_dtype(dtype: torch.dtype, rows: int) -> torch.dtype:
    """The dtype in which a packed product of weights of ``dtype`` with so many rows of a batch is computed."""
    return torch.float32 if dtype == torch.bfloat16 and rows >= _FLOAT32_ROWS and emulates_bfloat16() else dtype


class _Product:
    """x -> x W^T + b with W ``(out, in)`` packed for the dtype that is fastest for the rows of x, ``(B, ..., in)``.

    Args:
        weight: Gives W; called when it is packed.
        bias: b, if any.
    """

    def __init__(self, weight: Callable[[], torch.Tensor], bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._packed: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        dtype = product_dtype(x.dtype, len(x))
        if dtype not in self._packed:
            weight = self._weight().to(dtype).contiguous()
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
            self._packed[dtype] = packed, None if self._bias is None else self._bias.to(dtype)
        weight, bias = self._packed[dtype]
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, "none", [], "").to(x.dtype)


@torch.no_grad()
def _pack(language_model: Any, experts: LatentExperts) -> Packed | None:
    problem = _why_not_packable(language_model, experts)
    if problem is not None:
        logger.warning(f"Latent steps run from the weights as they are, which is slower: {problem}.")
        return None
    return Packed([_pack_layer(layer) for layer in language_model.layers], _pack_experts(experts))


def _pack_layer(layer: Any) -> LayerCalls:
    def together(*linears: nn.Linear) -> _Product:
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        return _Product(
            lambda: torch.cat([linear.weight.detach() for linear in linears]), torch.cat(biases) if biases else None
        )

    attention, mlp = layer.self_attn, layer.mlp
    gate_up = together(mlp.gate_proj, mlp.up_proj)
    return LayerCalls(
        together(attention.q_proj, attention.k_proj, attention.v_proj),
        together(attention.o_proj),
        lambda x: gate_up(x).chunk(2, dim=-1),
        together(mlp.down_proj),
    )


def _pack_experts(experts: LatentExperts) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    count, width, expanded = experts.up_weight.shape
    up = _Product(lambda: experts.up_weight.mT.reshape(count * expanded, width).detach(), experts.up_bias.flatten())
    down = _Product(lambda: experts.down_weight.reshape(count * expanded, width).T.detach(), None)
    down_bias_ED = experts.down_bias[:, 0]

    def mix(x_BD: torch.Tensor, gates_BE: torch.Tensor) -> torch.Tensor:
        gates_BE = gates_BE.to(x_BD.dtype)
        hidden_BEH = nn.functional.gelu(up(x_BD)).view(-1, count, expanded)
        # The gated sum over the experts is the sum over the inner width of one long product.
        gated_BF = (hidden_BEH * gates_BE.unsqueeze(-1)).flatten(1)
        return down(gated_BF) + gates_BE @ down_bias_ED

    return mix


__all__ = ["Packed", "PackedWeights", "product_dtype"]
