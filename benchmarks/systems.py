"""The systems that are compared: what they compute for one batch, on the same weights and inputs.

1. **single_pass**: prefix and suffix in one pass of the backbone, no cache: a conventional embedding model.
2. **plume_k4, plume_k6, plume_k8**: this package, with :meth:`~plume.PlumeForEmbedding.speed_up`;
   **plume_k8_plain** without.
3. **one_at_a_time**: the released code's way (see :func:`one_at_a_time`), K = 8.
4. **explicit_cot**: 403 generated tokens (the paper's mean) with transformers' ``generate``, from a measured part.
"""

import time
from collections.abc import Callable

import torch
from transformers import DynamicCache, StoppingCriteriaList

from plume import PlumeForEmbedding
from plume.context_plume import CACHE_ARGUMENT
from plume.positions_plume import Media, mrope_index

Inputs = dict[str, torch.Tensor]

COT_TOKENS = 403
COT_MEASURED = 64
LATENT_STEPS = {
    "single_pass": 0,
    "plume_k4": 4,
    "plume_k6": 6,
    "plume_k8": 8,
    "plume_k8_plain": 8,
    "one_at_a_time": 8,
    "explicit_cot": 0,
}
# The slow ones, which a few rounds and a clock of minutes must do for.
SLOW = ("one_at_a_time", "explicit_cot")


def media_of(model: PlumeForEmbedding, inputs: Inputs) -> list[Media]:
    """Images and videos of a batch."""
    return [
        Media(model.config.image_token_id, inputs.get("pixel_values"), inputs.get("image_grid_thw")),
        Media(model.config.video_token_id, inputs.get("pixel_values_videos"), inputs.get("video_grid_thw")),
    ]


def single_pass(model: PlumeForEmbedding, inputs: Inputs) -> torch.Tensor:
    """Embeddings of prefix and suffix read at once, ``(B, D)``."""
    suffix = torch.tensor(model.config.suffix_token_ids, device=model.device).expand(len(inputs["input_ids"]), -1)
    ids = torch.cat([inputs["input_ids"], suffix], dim=1)
    media = media_of(model, inputs)
    positions, _ = mrope_index(ids, torch.ones_like(ids), media, model.model.visual.spatial_merge_size)
    states = model.model.language_model(
        inputs_embeds=model._embed(ids, media), position_ids=positions, use_cache=False
    ).last_hidden_state
    return torch.nn.functional.normalize(states[:, -1].float(), dim=-1)


def one_at_a_time(model: PlumeForEmbedding, inputs: Inputs) -> torch.Tensor:
    """Embeddings row by row, ``(B, D)``: facts of the released code, in our words.

    Logits of the whole prefix, a cache that is copied to grow, experts chosen by masks on the host, the suffix in a
    pass of its own, and one step of decoding behind it.
    """
    return torch.cat([_one_row(model, row) for row in split_batch(inputs)])


def split_batch(inputs: Inputs) -> list[Inputs]:
    """The rows of a batch whose rows have the same number of patches."""
    batch = len(inputs["input_ids"])
    columns = {name: value.chunk(batch) for name, value in inputs.items()}
    return [{name: pieces[row] for name, pieces in columns.items()} for row in range(batch)]


def _one_row(model: PlumeForEmbedding, row: Inputs) -> torch.Tensor:
    decoder, ids, media = model.model.language_model, row["input_ids"], media_of(model, row)
    positions, following = mrope_index(ids, torch.ones_like(ids), media, model.model.visual.spatial_merge_size)
    cache = DynamicCache()

    def read(vectors: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        past = {CACHE_ARGUMENT: cache}
        return decoder(inputs_embeds=vectors, position_ids=positions, use_cache=True, **past).last_hidden_state

    hidden = read(model._embed(ids, media), positions)
    model.lm_head(hidden).float()  # the logits of the prefix, made and thrown away
    state, anchor = hidden[:, -1], hidden[:, -2]
    place = int(following)
    for step in range(LATENT_STEPS["one_at_a_time"]):
        refined = _masked_experts(model, state, step + 1, anchor)
        state = read(refined.unsqueeze(1), positions.new_full((3, 1, 1), place))[:, -1]
        place += 1
    suffix = torch.tensor([model.config.suffix_token_ids], device=ids.device)
    ahead = torch.arange(place, place + suffix.shape[1], device=ids.device).expand(3, 1, -1)
    states = read(model.get_input_embeddings()(suffix), ahead)
    following_token = model.lm_head(states[:, -1:]).argmax(dim=-1)
    read(model.get_input_embeddings()(following_token), ahead[..., -1:] + 1)
    return torch.nn.functional.normalize(states[:, -1].float(), dim=-1)


def _masked_experts(model: PlumeForEmbedding, z_BD: torch.Tensor, step: int, anchor_BD: torch.Tensor) -> torch.Tensor:
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


def explicit_cot_ms(model: PlumeForEmbedding, inputs: Inputs) -> float:
    """Milliseconds of a prefix pass and 403 generated tokens, extrapolated from 64 tokens behind the first."""
    marks = [clock(model)]

    def mark(input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        marks.append(clock(model))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    count = 1 + COT_MEASURED
    model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        stopping_criteria=StoppingCriteriaList([mark]),
    )
    begin, first, last = marks[0], marks[1], marks[-1]
    assert len(marks) == 1 + count, "generation stopped early"
    return 1000 * (first - begin + (COT_TOKENS - 1) * (last - first) / COT_MEASURED)


def plume(model: PlumeForEmbedding, inputs: Inputs, num_latent_steps: int, fast: bool) -> torch.Tensor:
    """Embeddings of this package, ``(B, D)``."""
    kept = model._packed, model._recorded
    if not fast:
        model.speed_up(False)
    try:
        return model(**inputs, num_latent_steps=num_latent_steps).embeddings
    finally:
        model._packed, model._recorded = kept


def clock(model: PlumeForEmbedding) -> float:
    """Seconds, when the device has done what was asked of it."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timer_of(system: str, model: PlumeForEmbedding, inputs: Inputs) -> Callable[[], float]:
    """A function that runs a system once and returns milliseconds."""
    if system == "explicit_cot":
        return lambda: explicit_cot_ms(model, inputs)
    steps = LATENT_STEPS[system]
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "single_pass": lambda: single_pass(model, inputs),
        "one_at_a_time": lambda: one_at_a_time(model, inputs),
    }
    run = runs.get(system, lambda: plume(model, inputs, steps, fast=system != "plume_k8_plain"))

    def timed() -> float:
        start = clock(model)
        run()
        return 1000 * (clock(model) - start)

    return timed
