"""Logit lens: the words that the LM head reads in a latent state (nothing in PLUME asks it to, at inference)."""

from collections import Counter
from typing import Any

import torch

from plume import PlumeModel, PlumeProcessor

_EXAMPLES, _WORDS = 3, 5


@torch.inference_mode()
def read_words(model: PlumeModel, processor: PlumeProcessor, latents_NKD: torch.Tensor) -> dict[str, Any]:
    """The likeliest words of every latent step.

    Args:
        model: The model; its LM head is applied to z(k), which is post-norm already.
        processor: Its processor.
        latents_NKD: z(1)..z(K) of N inputs, ``(N, K, D)``.

    Returns:
        ``steps``: for each step its most frequent likeliest words as ``[word, share of inputs]``; ``examples``: for
        some inputs the likeliest words of each step.
    """
    decode = processor.tokenizer.decode
    likeliest_NKW = torch.stack(
        [model.lm_head(latents.to(model.device, model.dtype)).topk(_WORDS).indices.cpu() for latents in latents_NKD]
    )
    steps = []
    for ids in likeliest_NKW[..., 0].T.tolist():
        common = Counter(ids).most_common(_WORDS)
        steps.append([[decode([token]), count / len(ids)] for token, count in common])
    examples = [[[decode([token]) for token in ids] for ids in row] for row in likeliest_NKW[:_EXAMPLES].tolist()]
    return {"steps": steps, "examples": examples}
