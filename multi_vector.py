"""The latent states as vectors of their own: sentence-transformers' ``MultiVectorEncoder`` over a PLUME checkpoint.

An input becomes its K latent states, at unit length, and two inputs are compared by MaxSim. Fewer vectors are the first
ones: ``vectors[:k]`` is what K = k gives. A saved encoder loads again by ``MultiVectorEncoder(folder)``,
passing ``trust_remote_code=True``.
"""

import os
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Module, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize

from .checkpoints import locate


class LatentMask(Module):
    """Says that every latent state is a vector: the mask of the tokens is as long as the prefix."""

    config_keys: list[str] = []

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Replace the attention mask by one of the latent states.

        Raises:
            ValueError: If there are none.
        """
        states_BKD = features["token_embeddings"]
        if states_BKD.shape[1] == 0:
            raise ValueError(
                "At K = 0 there are no latent states, so there would be no vector. Choose num_latent_steps >= 1, or "
                "SentenceTransformer, which gives the embedding."
            )
        mask_BK = torch.ones(states_BKD.shape[:2], dtype=torch.bool, device=states_BKD.device)
        return {**features, "attention_mask": mask_BK}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the configuration; there are no weights."""
        self.save_config(output_path)


def load_multi_vector(
    model: str | os.PathLike = "tiny", device: str | None = None, **options: Any
) -> MultiVectorEncoder:
    """Load a checkpoint as an encoder that gives K vectors per input.

    Args:
        model: ``"tiny"``, which comes with the package, or a folder or Hub id of a PLUME checkpoint.
        device: Torch device; chosen by sentence-transformers if omitted.
        **options: Of sentence-transformers' ``Transformer``, e.g. ``model_kwargs``.
    """
    transformer = Transformer.load(str(locate(model)), **options)
    for how in transformer.modality_config.values():
        how["method_output_name"] = "latent_states"
    transformer.module_output_name = "token_embeddings"
    modules = [transformer, LatentMask(), Normalize(module_input_name="token_embeddings")]
    prompts = {role: vars(transformer.processor)[f"{role}_prompt"] for role in ("query", "document")}
    encoder = MultiVectorEncoder(modules=modules, device=device, prompts=prompts)
    encoder.module_kwargs = {"0": ["num_latent_steps", "task"]}
    return encoder


__all__ = ["LatentMask", "load_multi_vector"]
