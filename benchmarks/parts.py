"""What each part of an embedding costs, and what a latent step costs over what the machine demands.

A latent step must read every weight of decoder and adapter once and multiply it with every row. The floor is the longer
of the two: bytes over the rate at which this machine reads memory, operations over the rate at which it multiplies,
both measured here, with large sums and large products of the weights' type and as many threads. Where ``speed_up``
multiplies in float32 because the CPU emulates bfloat16, the floor is that of ``--dtype fp32``.
"""

from typing import Any

import torch
from torch.utils.benchmark import Timer

from plume import PlumeModel, PlumeProcessor
from plume.benchmarks.models import draw_items
from plume.benchmarks.systems import single_pass
from plume.evaluation.embedders import prepare

_NUM_LATENT_STEPS = 8
_READOUT_STEPS = (0, 1, 2, 4, 8)
_READ_BYTES = 1 << 29
_SQUARE = {"cpu": 2048, "cuda": 8192}


def median_ms(statement: str, names: dict[str, Any], min_seconds: float) -> float:
    """Median milliseconds of a statement."""
    timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
    timer.timeit(1)
    return timer.blocked_autorange(min_run_time=min_seconds).median * 1000


@torch.inference_mode()
def measure_parts(model: PlumeModel, inputs: dict[str, torch.Tensor], min_seconds: float) -> dict[str, float]:
    """Milliseconds of the parts of one batch; latent steps run as the model is set (see ``speed_up``)."""
    anchor_BD = torch.randn(
        len(inputs["input_ids"]), model.config.text_config.hidden_size, device=model.device, dtype=model.dtype
    )
    run = {
        steps: median_ms("model(**i, num_latent_steps=k)", {"model": model, "i": inputs, "k": steps}, min_seconds)
        for steps in (1, _NUM_LATENT_STEPS)
    }
    return {
        "single pass": median_ms("f(m, i)", {"f": single_pass, "m": model, "i": inputs}, min_seconds),
        f"PLUME K={_NUM_LATENT_STEPS}": run[_NUM_LATENT_STEPS],
        f"all read-outs of K={', '.join(map(str, _READOUT_STEPS))}": median_ms(
            "model(**i, num_latent_steps=k, readout_steps=r)",
            {"model": model, "i": inputs, "k": _NUM_LATENT_STEPS, "r": _READOUT_STEPS},
            min_seconds,
        ),
        "one latent step": (run[_NUM_LATENT_STEPS] - run[1]) / (_NUM_LATENT_STEPS - 1),
        "an adapter, by itself": median_ms("t(z, 1, z)", {"t": model.latent_transition, "z": anchor_BD}, min_seconds),
    }


def step_demand(model: PlumeModel, batch: int, columns: int, int8: bool = False) -> dict[str, float]:
    """Bytes and operations of one latent step with ``columns`` columns in the cache, and a byte per weight if asked."""
    config = model.config.text_config
    adapter = [w for name, w in model.latent_transition.named_parameters() if "step_embedding" not in name]
    weights = sum(weight.numel() for weight in (*model.get_decoder().layers.parameters(), *adapter))
    width = config.hidden_size // config.num_attention_heads
    cached = batch * columns * 2 * config.num_key_value_heads * width * config.num_hidden_layers
    attention = 4 * batch * columns * config.hidden_size * config.num_hidden_layers
    return {
        "weight_bytes": weights * (1 if int8 else model.dtype.itemsize),
        "cache_bytes": cached * model.dtype.itemsize,
        "operations": 2 * batch * weights + attention,
    }


def machine_rates(dtype: torch.dtype, device: str, min_seconds: float = 1.0) -> dict[str, float]:
    """Bytes per second of reading memory, and operations per second of a large product."""
    side = _SQUARE[torch.device(device).type]
    names = {
        "x": torch.ones(_READ_BYTES // 4, device=device),
        "w": torch.randn(side, side, device=device, dtype=dtype),
        "torch": torch,
    }
    sync = "; torch.cuda.synchronize()" if device != "cpu" else ""
    return {
        "read_bytes": 1000 * _READ_BYTES / median_ms("x.sum()" + sync, names, min_seconds),
        "operations": 1000 * 2 * side**3 / median_ms("w @ w" + sync, names, min_seconds),
    }


def roofline(
    model: PlumeModel, processor: PlumeProcessor, kind: str, batch: int, min_seconds: float, int8: bool = False
) -> dict[str, Any]:
    """One row of the roofline: what a step demands, its floor on this machine, and what it took."""
    inputs = prepare(model, processor, draw_items(processor, kind, batch))
    demand = step_demand(model, batch, inputs["input_ids"].shape[1] + _NUM_LATENT_STEPS // 2, int8)
    rates, parts = machine_rates(model.dtype, model.device.type), measure_parts(model, inputs, min_seconds)
    reading = 1000 * (demand["weight_bytes"] + demand["cache_bytes"]) / rates["read_bytes"]
    computing = 1000 * demand["operations"] / rates["operations"]
    floor = max(reading, computing)
    return {
        **demand,
        "read_gb_s": round(rates["read_bytes"] / 1e9, 2),
        "gflop_s": round(rates["operations"] / 1e9, 1),
        "ms": {name: round(value, 3) for name, value in parts.items()},
        "floor_ms": {"reading": round(reading, 3), "computing": round(computing, 3)},
        "step_over_floor": round(parts["one latent step"] / floor, 3),
        "floor_of_k8_over_single_pass": round(1 + _NUM_LATENT_STEPS * floor / parts["single pass"], 3),
    }
