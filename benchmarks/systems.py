"""The systems that are compared: what they do with one batch, on the same weights and inputs.

1. **prepare**: the processor, from text and pictures to model inputs. It comes on top of every other system.
2. **single_pass**: prefix and suffix in one pass of the backbone: a conventional embedding model.
3. **plume_k4, plume_k6, plume_k8**: this package, with :meth:`~plume.PlumeModel.speed_up`;
   **plume_k8_plain** without. Nothing is reused, because every turn has the same input.
   **plume_k8_reuse** and **plume_k8_int8** reuse: every turn has other words after the same instruction. The latter
   has weights of eight bits.
4. **one_at_a_time**: the released code's way (see :func:`one_at_a_time`), K = 8.
5. **explicit_cot**: :class:`~plume.evaluation.baselines.ExplicitCoT` with 403 tokens (the paper's mean), from a
   measured part.
6. **runtime_k8, runtime_k8_int8**: an export of the model in :class:`~plume.runtime.Runtime`, without torch.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from plume import PlumeModel, PlumeProcessor
from plume.benchmarks.models import draw_items
from plume.benchmarks.names import LATENT_STEPS, runs_on
from plume.evaluation.baselines import ExplicitCoT
from plume.evaluation.embedders import prepare
from plume.positions_plume import mrope_index

if TYPE_CHECKING:
    from plume.runtime import Runtime  # needs onnxruntime

Inputs = dict[str, torch.Tensor]
Clock = Callable[[], float]

COT_TOKENS = 403
COT_MEASURED = 64
# The slow ones, which a few rounds and a clock of minutes must do for.
SLOW = ("one_at_a_time", "explicit_cot")


def single_pass(model: PlumeModel, inputs: Inputs) -> torch.Tensor:
    """Embeddings of prefix and suffix read at once, ``(B, D)``."""
    suffix = torch.tensor(model.config.suffix_token_ids, device=model.device).expand(len(inputs["input_ids"]), -1)
    ids = torch.cat([inputs["input_ids"], suffix], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(suffix)], dim=1)
    media = model.media_of(inputs)
    positions, _ = mrope_index(ids, mask, media, model.model.visual.spatial_merge_size)
    whole = {**inputs, "input_ids": ids, "attention_mask": mask, "position_ids": positions}
    states = model.model(**whole, use_cache=False).last_hidden_state
    return torch.nn.functional.normalize(states[:, -1].float(), dim=-1)


def one_at_a_time(model: PlumeModel, inputs: Inputs) -> torch.Tensor:
    """Embeddings row by row, ``(B, D)``: facts of the released code, in our words.

    Logits of the whole prefix, experts chosen by masks on the host, the suffix in a pass of its own, and one step of
    decoding after it.
    """
    return torch.cat([_one_row(model, row) for row in split_batch(inputs)])


def split_batch(inputs: Inputs) -> list[Inputs]:
    """The rows of a batch whose rows have the same number of patches."""
    batch = len(inputs["input_ids"])
    columns = {name: value.chunk(batch) for name, value in inputs.items()}
    return [{name: pieces[row] for name, pieces in columns.items()} for row in range(batch)]


def _one_row(model: PlumeModel, row: Inputs) -> torch.Tensor:
    steps, embed = LATENT_STEPS["one_at_a_time"], model.get_input_embeddings()
    suffix = torch.tensor([model.config.suffix_token_ids], device=model.device)
    context = model.read_prefix(
        row["input_ids"], row["attention_mask"], model.media_of(row), steps + suffix.shape[1] + 1
    )
    model.lm_head(context.hidden).float()  # the logits of the prefix, made and thrown away
    anchor = context.hidden[:, row["input_ids"][0].tolist().index(model.config.anchor_token_id)]
    state = context.hidden[:, -1]
    for step in range(steps):
        refined = _masked_experts(model, state, step + 1, anchor)
        state = context.extend(refined.unsqueeze(1))[:, -1]
    states = context.extend(embed(suffix))
    context.extend(embed(model.lm_head(states[:, -1:]).argmax(dim=-1)))
    return torch.nn.functional.normalize(states[:, -1].float(), dim=-1)


def _masked_experts(model: PlumeModel, z_BD: torch.Tensor, step: int, anchor_BD: torch.Tensor) -> torch.Tensor:
    """The transition with each expert run on the rows that chose it."""
    transition = model.latent_transition
    bank, normed = transition.experts, transition.layer_norm(z_BD)

    def expert(index: int, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.gelu(x @ bank.up_weight[index] + bank.up_bias[index])
        return hidden @ bank.down_weight[index] + bank.down_bias[index]

    gates, chosen = transition.router(z_BD, step, anchor_BD).topk(transition.num_active_experts, dim=-1)
    refined = z_BD + expert(0, normed)
    for index in range(transition.num_experts):
        taken = chosen == index
        rows = taken.any(dim=-1)
        if rows.any():
            gate = (gates * taken).sum(dim=-1, keepdim=True)[rows].to(z_BD.dtype)
            refined[rows] = refined[rows] + gate * expert(1 + index, normed[rows])
    return refined


def explicit_cot_ms(model: PlumeModel, processor: PlumeProcessor, inputs: Inputs, now: Clock) -> float:
    """Milliseconds of a prefix pass and 403 written tokens, extrapolated from 64 tokens after the first."""
    count = 1 + COT_MEASURED
    explicit = ExplicitCoT(model, processor, count, count, checkpoint={"name": "timed"})
    marks: list[float] = []
    hook = model.lm_head.register_forward_hook(lambda *_: marks.append(clock(model, now)))
    begin = clock(model, now)
    try:
        explicit.think(inputs)
    finally:
        hook.remove()
    assert len(marks) == count, "the rationale stopped early"
    return 1000 * (marks[0] - begin + COT_TOKENS * (marks[-1] - marks[0]) / COT_MEASURED)


def clock(model: PlumeModel, now: Clock) -> float:
    """Seconds, when the device has done what was asked of it."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return now()


def timers(
    model: PlumeModel,
    processor: PlumeProcessor,
    kind: str,
    batch: int,
    now: Clock = time.perf_counter,
    runtimes: "Mapping[str, Runtime]" = MappingProxyType({}),
) -> dict[str, Callable[[], float]]:
    """Per system, a function that runs it once on the same batch and returns milliseconds.

    Args:
        model: The model, as ``speed_up`` has set it.
        processor: Its processor.
        kind: A key of :data:`~plume.benchmarks.names.INPUTS`.
        batch: Rows.
        now: Gives seconds.
        runtimes: Exports of the model, by system.
    """
    items = draw_items(processor, kind, batch)
    inputs = prepare(model, processor, items)
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}

    def other(enabled: bool = True, **options: bool) -> PlumeModel:
        return copy.deepcopy(model, dict(shared)).speed_up(enabled, **options)  # modules of its own, the same weights

    plain = other(False)
    runs: dict[str, Callable[[], Any]] = {
        "prepare": partial(prepare, model, processor, items),
        "single_pass": partial(single_pass, model, inputs),
        "plume_k8_plain": partial(plain, **inputs, num_latent_steps=LATENT_STEPS["plume_k8_plain"]),
        "one_at_a_time": partial(one_at_a_time, plain, inputs),
    }
    for system in ("plume_k4", "plume_k6", "plume_k8"):
        runs[system] = partial(model, **inputs, num_latent_steps=LATENT_STEPS[system])

    arrays = {name: tensor.cpu().numpy() for name, tensor in inputs.items()}
    for system, runtime in runtimes.items():
        runs[system] = partial(runtime.run, arrays, LATENT_STEPS[system])

    for system, int8 in (("plume_k8_reuse", False), ("plume_k8_int8", True)):
        if runs_on(system, kind):
            # More variants than a model keeps beginnings of: none comes again before it is forgotten.
            variants = [prepare(model, processor, draw_items(processor, kind, batch, n)) for n in range(1, 26)]
            runs[system] = partial(_in_turn, other(int8=int8), cycle(variants), LATENT_STEPS[system])

    def timed(run: Callable[[], Any]) -> float:
        start = clock(model, now)
        run()
        return 1000 * (clock(model, now) - start)

    found: dict[str, Callable[[], float]] = {name: partial(timed, run) for name, run in runs.items()}
    return {**found, "explicit_cot": partial(explicit_cot_ms, model, processor, inputs, now)}


def _in_turn(model: PlumeModel, batches: Iterator[Inputs], num_latent_steps: int) -> Any:
    return model(**next(batches), num_latent_steps=num_latent_steps)
