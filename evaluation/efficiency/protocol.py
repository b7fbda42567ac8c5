"""The measurement itself: systems, sets, clocks."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from plume import PlumeForEmbedding, PlumeProcessor
from plume.evaluation.baselines import ExplicitCoT
from plume.evaluation.efficiency.inputs import DRAWS, Sizes, draw_inputs
from plume.evaluation.embedders import prepare

SINGLE_PASS, EXPLICIT = "single-pass", "explicit-cot"
SYSTEMS = (SINGLE_PASS, "plume-k4", "plume-k6", "plume-k8", EXPLICIT)
_MEAN_TOKENS = 403  # what UME-R1 writes on average (Table 2)
_MOST_TOKENS = 1024  # where rationales end by themselves

Cell = dict[str, Any]
Embed = Callable[[Mapping[str, torch.Tensor]], float]


@dataclass(frozen=True)
class Protocol:
    """How costs are measured.

    Attributes:
        systems: Names from :data:`SYSTEMS`.
        modalities: Names from ``inputs.DRAWS``.
        inputs: N, inputs per modality and set.
        warmup: W, inputs before each set that are not timed.
        draws: D, independently drawn sets.
        batch_size: Inputs per batch.
        rationale_tokens: Tokens that explicit rationales are made to have; 0 lets them end by themselves.
        seed: Of the first set.

    Raises:
        ValueError: If a number is too small, or a list is empty.
    """

    systems: tuple[str, ...] = SYSTEMS
    modalities: tuple[str, ...] = tuple(DRAWS)
    inputs: int = 500
    warmup: int = 20
    draws: int = 5
    batch_size: int = 1
    rationale_tokens: int = _MEAN_TOKENS
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < (name in ("inputs", "draws", "batch_size")):
                raise ValueError(f"{name}={value} leaves nothing to measure. Give a larger number.")
            if isinstance(value, tuple) and not value:
                raise ValueError(f"There are no {name} to measure. Name at least one.")


def build_system(name: str, model: PlumeForEmbedding, processor: PlumeProcessor, rationale_tokens: int) -> Embed:
    """A system by name: a function that embeds prepared inputs and returns reasoning steps or tokens per input.

    Raises:
        ValueError: If the name is unknown, or the model cannot run its K.
    """
    if name == EXPLICIT:
        most = rationale_tokens or _MOST_TOKENS
        explicit = ExplicitCoT(model, processor, most, rationale_tokens, checkpoint={"name": "timed"})
        return lambda prepared: statistics.mean(map(len, explicit.think(prepared).token_ids))
    steps = {"plume-k4": 4, "plume-k6": 6, "plume-k8": 8, SINGLE_PASS: 0}.get(name)
    if steps is None:
        raise ValueError(f"There is no system {name!r}. Use some of {', '.join(SYSTEMS)}.")
    model.config.check_num_latent_steps(steps)

    @torch.inference_mode()
    def embed(prepared: Mapping[str, torch.Tensor]) -> float:
        model(**prepared, num_latent_steps=steps)
        return steps

    return embed


def time_set(
    embed: Embed, read: Callable[[list], dict[str, torch.Tensor]], inputs: Iterator[list], warmup: int, device: str
) -> Cell:
    """Time one system on one set.

    Args:
        embed: The system.
        read: Prepares a batch.
        inputs: Batches, the first ``warmup`` of them to warm up.
        warmup: Batches that are not timed.
        device: Where the model is.

    Returns:
        Means over the batches: ``prepare_ms`` and ``model_ms``, milliseconds of wall clock; ``latency_ms``, their sum;
        ``throughput``, inputs per second; ``reasoning``, steps or tokens per input.
    """
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    prepare_s, model_s, reasoning, count = [], [], [], 0
    for index, batch in enumerate(inputs):
        start = time.perf_counter()
        prepared = read(batch)
        wait()
        middle = time.perf_counter()
        thought = embed(prepared)
        wait()
        end = time.perf_counter()
        if index >= warmup:
            prepare_s.append(middle - start)
            model_s.append(end - middle)
            reasoning.append(thought)
            count += len(batch)
    total = sum(prepare_s) + sum(model_s)
    return {
        "n": count,
        "prepare_ms": 1000 * statistics.mean(prepare_s),
        "model_ms": 1000 * statistics.mean(model_s),
        "latency_ms": 1000 * total / len(model_s),
        "throughput": count / total,
        "reasoning": statistics.mean(reasoning),
    }


def measure(
    model: PlumeForEmbedding,
    processor: PlumeProcessor,
    protocol: Protocol,
    sizes: Sizes,
    keep: Callable[[list[Cell]], None] = lambda cells: None,
    cells: Sequence[Cell] = (),
) -> list[Cell]:
    """Time every system on every set.

    Args:
        model: The checkpoint, in evaluation mode.
        processor: Its processor.
        protocol: What to measure.
        sizes: Of the inputs.
        keep: Called with all cells whenever one is finished.
        cells: Finished ones, which are not measured again.

    Returns:
        One cell per draw, modality and system.
    """
    systems = {name: build_system(name, model, processor, protocol.rationale_tokens) for name in protocol.systems}
    done = list(cells)
    known = {(cell["draw"], cell["modality"], cell["system"]) for cell in done}
    wanted = [(d, m, s) for d in range(protocol.draws) for m in protocol.modalities for s in protocol.systems]
    read, warmup = partial(prepare, model, processor), math.ceil(protocol.warmup / protocol.batch_size)
    for draw, modality, name in tqdm(wanted, desc="efficiency", unit="set"):
        if (draw, modality, name) in known:
            continue
        count = warmup * protocol.batch_size + protocol.inputs
        inputs = draw_inputs(modality, count, protocol.seed + draw, sizes)
        batches = tqdm(
            _batches(inputs, protocol.batch_size),
            total=math.ceil(count / protocol.batch_size),
            desc=f"{name}, {modality}",
            unit="batch",
            leave=False,
        )
        cell = time_set(systems[name], read, iter(batches), warmup, str(model.device))
        done.append({"draw": draw, "modality": modality, "system": name, **cell})
        keep(done)
    return done


def _batches(inputs: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for item in inputs:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
