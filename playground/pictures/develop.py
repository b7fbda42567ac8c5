"""How well names find their pictures in the dev style, FxEmoji: what choices are made by, never by the test style."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from plume import PlumeProcessor
from plume.playground.pictures.concepts import LANGUAGES
from plume.playground.pictures.splits import DEV_STYLE
from plume.playground.pictures.world import World

_BATCH = 128


@torch.inference_mode()
def dev_scores(
    world: World,
    model: PreTrainedModel,
    processor: PlumeProcessor,
    languages: Sequence[str] = LANGUAGES,
    latent_steps: int | None = None,
) -> dict[str, dict[str, float]]:
    """Hit@1 and Hit@10 in percent of names, with all pictures of the dev style as candidates.

    Args:
        world: What was built.
        model: Trained on it.
        processor: Its processor.
        languages: Languages of the names.
        latent_steps: K; the model's if omitted.

    Returns:
        Scores by language, and their ``mean``.
    """
    rows = world.drawn(DEV_STYLE)
    pictures = [{"image": world.picture(row.path)} for row in rows]
    documents = _embed(model, pictures, processor.process_documents, latent_steps)
    scores = {}
    for language in languages:
        named = [(place, world.by_key[row.key].names.get(language)) for place, row in enumerate(rows)]
        asked = sorted(((place, name) for place, name in named if name), key=lambda one: len(one[1]))
        queries = _embed(model, [{"text": name} for _, name in asked], processor.process_queries, latent_steps)
        similarities = queries @ documents.T
        own = similarities.gather(1, torch.tensor([[place] for place, _ in asked]))
        ranks = (similarities > own).sum(dim=1)
        scores[language] = {f"hit@{k}": 100 * (ranks < k).float().mean().item() for k in (1, 10)}
    mean = {name: sum(one[name] for one in scores.values()) / len(scores) for name in ("hit@1", "hit@10")}
    return {**scores, "mean": mean}


def _embed(model: Any, inputs: list[dict[str, Any]], process: Any, latent_steps: int | None) -> torch.Tensor:
    model.eval()
    parts = [inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH)]
    return torch.cat([model(**process(part), num_latent_steps=latent_steps).embeddings for part in parts])
