"""What each part of an embedding costs, and what a latent step costs over what the machine demands.

A latent step must read every weight of decoder and adapter once and multiply it with every row. The floor is the longer
of the two: bytes over the rate at which this machine reads memory, operations over the rate at which it multiplies,
both measured here, with large sums and large products of the same type and threads.
"""

from typing import Any

import torch
from torch.utils.benchmark import Timer

from plume import PlumeForEmbedding
from plume.benchmarks.models import build_inputs
from plume.benchmarks.systems import single_pass
from plume.packed_plume import product_dtype

_NUM_LATENT_STEPS = 8
_READ_BYTES = 1 << 29
_SQUARE = {"cpu": 2048, "cuda": 8192}


def median_ms(statement: str, names: dict[str, Any], min_seconds: float) -> float:
    """Median milliseconds of a statement."""
    timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
    timer.timeit(1)
    return timer.blocked_autorange(min_run_time=min_seconds).median * 1000


def measure_parts(model: PlumeForEmbedding, kind: str, batch: int, min_seconds: float) -> dict[str, float]:
    """Milliseconds of the parts of one batch; latent steps run as the model is set (see ``speed_up``).

    The adapter has no figure of its own where steps are recorded: launched alone it would cost more than in one.
    """
    inputs = build_inputs(model, kind, batch)
    anchor_BD = torch.randn(batch, model.config.text_config.hidden_size, device=model.device, dtype=model.dtype)
    with torch.inference_mode():
        mix = None
        if model._packed is not None:
            packed = model._packed.of(model.model.language_model, model.latent_transition.experts)
            mix = packed.mix if packed else None
        run = {
            steps: median_ms("model(**i, num_latent_steps=k)", {"model": model, "i": inputs, "k": steps}, min_seconds)
            for steps in (1, _NUM_LATENT_STEPS)
        }
        found = {
            "single pass": median_ms("f(m, i)", {"f": single_pass, "m": model, "i": inputs}, min_seconds),
            f"PLUME K={_NUM_LATENT_STEPS}": run[_NUM_LATENT_STEPS],
            "one latent step": (run[_NUM_LATENT_STEPS] - run[1]) / (_NUM_LATENT_STEPS - 1),
        }
        if model._recorded is None or model.device.type == "cpu":
            transition = {"t": model.latent_transition, "z": anchor_BD, "mix": mix}
            found["of which adapter"] = median_ms("t(z, 1, z, mix)", transition, min_seconds)
        return found


def step_demand(model: PlumeForEmbedding, batch: int, columns: int, dtype: torch.dtype) -> dict[str, float]:
    """Bytes and operations of one latent step with ``columns`` columns in the cache and weights read in ``dtype``."""
    layers = list(model.model.language_model.layers.parameters())
    adapter = [w for name, w in model.latent_transition.named_parameters() if "step_embedding" not in name]
    config = model.config.text_config
    width = config.hidden_size // config.num_attention_heads
    cached = batch * columns * 2 * config.num_key_value_heads * width * config.num_hidden_layers
    weights = sum(weight.numel() for weight in (*layers, *adapter))
    attention = 4 * batch * columns * config.hidden_size * config.num_hidden_layers
    return {
        "weight_bytes": weights * dtype.itemsize,
        "cache_bytes": cached * model.dtype.itemsize,
        "operations": 2 * batch * weights + attention,
    }


def machine_rates(dtype: torch.dtype, device: str, min_seconds: float = 1.0) -> dict[str, float]:
    """Bytes per second of reading memory, and operations per second of a large product."""
    data = torch.ones(_READ_BYTES // 4, device=device)
    side = _SQUARE[torch.device(device).type]
    square = torch.randn(side, side, device=device, dtype=dtype)
    sync = "; torch.cuda.synchronize()" if device != "cpu" else ""
    names = {"x": data, "w": square, "torch": torch}
    return {
        "read_bytes": 1000 * _READ_BYTES / median_ms("x.sum()" + sync, names, min_seconds),
        "operations": 1000 * 2 * side**3 / median_ms("w @ w" + sync, names, min_seconds),
    }


def roofline(model: PlumeForEmbedding, kind: str, batch: int, min_seconds: float) -> dict[str, Any]:
    """One row of the roofline: what a step demands, its floor on this machine, and what it took."""
    columns = build_inputs(model, kind, batch)["input_ids"].shape[1] + _NUM_LATENT_STEPS // 2
    packed = model._packed is not None and model.device.type == "cpu"
    dtype = product_dtype(model.dtype, batch) if packed else model.dtype
    demand = step_demand(model, batch, columns, dtype)
    rates = machine_rates(dtype, model.device.type)
    parts = measure_parts(model, kind, batch, min_seconds)
    reading = 1000 * (demand["weight_bytes"] + demand["cache_bytes"]) / rates["read_bytes"]
    computing = 1000 * demand["operations"] / rates["operations"]
    floor, adapter = max(reading, computing), parts.get("of which adapter")
    return {
        "step_dtype": str(dtype).removeprefix("torch."),
        **demand,
        **rates_row(rates),
        "ms": {name: round(value, 3) for name, value in parts.items()},
        "floor_ms": {"reading": round(reading, 3), "computing": round(computing, 3)},
        "step_over_floor": round(parts["one latent step"] / floor, 3),
        "adapter_share": adapter and round(adapter / parts["one latent step"], 4),
        "floor_of_k8_over_single_pass": round(1 + _NUM_LATENT_STEPS * floor / parts["single pass"], 3),
    }


def rates_row(rates: dict[str, float]) -> dict[str, float]:
    """Rates in GB/s and GFLOP/s."""
    return {"read_gb_s": round(rates["read_bytes"] / 1e9, 2), "gflop_s": round(rates["operations"] / 1e9, 1)}
