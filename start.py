"""From a plain backbone to a PLUME model: its weights, a fresh adapter, rows for the new tokens."""

import os
from typing import Any

import torch
from transformers import AutoConfig

from plume.hub_files_plume import HUB_OPTIONS
from plume.modeling_plume import PlumeForEmbedding, PlumeModel
from plume.modeling_plume_qwen2_5_vl import PlumeQwen2_5_VLForEmbedding
from plume.modeling_plume_qwen3_vl import PlumeQwen3VLForEmbedding
from plume.processing_plume import PlumeProcessor
from plume.prompt_plume import PAPER_LAYOUT, PromptLayout

# By the model type of the backbone. A further backbone is one line here.
MODEL_CLASSES: dict[str, Any] = {
    model_class.config_class.backbone_config_class.model_type: model_class
    for model_class in (PlumeForEmbedding, PlumeQwen2_5_VLForEmbedding, PlumeQwen3VLForEmbedding)
}


def model_class_of(model_type: str) -> Any:
    """The PLUME class over a backbone.

    Args:
        model_type: Of the backbone's or of the PLUME configuration.

    Raises:
        ValueError: If there is none.
    """
    by_plume = {model_class.config_class.model_type: model_class for model_class in MODEL_CLASSES.values()}
    found = {**by_plume, **MODEL_CLASSES}.get(model_type)
    if found is None:
        raise ValueError(
            f"{model_type!r} is not a backbone of PLUME, so its weights cannot be used. Start from one of "
            f"{', '.join(MODEL_CLASSES)}."
        )
    return found


def from_backbone(
    source: str | os.PathLike,
    layout: PromptLayout = PAPER_LAYOUT,
    *,
    processor_options: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
    **config_fields: Any,
) -> tuple[PlumeModel, PlumeProcessor]:
    """Start from a checkpoint of Qwen2-VL (UME-R1 included), Qwen2.5-VL or Qwen3-VL (its embedders included).

    Args:
        source: Folder or Hub id.
        layout: Token strings and prompt.
        processor_options: Arguments of the processor, such as ``max_pixels``.
        model_options: Of ``from_pretrained``, such as ``dtype``, ``revision`` and ``token``.
        **config_fields: Latent fields of the configuration, such as ``num_latent_steps``.

    Raises:
        ValueError: If the checkpoint is of another model or lacks weights of its own.
    """
    model_options = dict(model_options or {})
    hub = {name: model_options[name] for name in HUB_OPTIONS if name in model_options}
    backbone = AutoConfig.from_pretrained(source, **hub)
    model_class = model_class_of(backbone.model_type)
    processor = PlumeProcessor.from_backbone(source, layout, **hub, **(processor_options or {}))
    config = model_class.config_class.from_backbone(backbone, **{**processor.token_fields(), **config_fields})
    model = _load(model_class, source, config, model_options)
    highest = max([*processor.row_sources, config.latent_token_id])
    if highest >= model.config.text_config.vocab_size:
        model.resize_token_embeddings(highest + 1, mean_resizing=False)
    with torch.no_grad():
        for rows in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            for new_id, source_id in processor.row_sources.items():
                rows[new_id] = rows[source_id]
    return model, processor


def _load(model_class: Any, source: str | os.PathLike, config: Any, options: dict[str, Any]) -> Any:
    """The model with a fresh adapter: the one thing that may be missing, and no reason for a report."""
    lenient = type(model_class.__name__, (model_class,), {"_keys_to_ignore_on_load_missing": [r"^latent_transition\."]})
    model = lenient.from_pretrained(source, config=config, **options)
    model.__class__ = model_class
    return model


__all__ = ["MODEL_CLASSES", "from_backbone", "model_class_of"]
