"""From a plain backbone to a PLUME model: its weights, a fresh adapter, embedding rows for the new tokens.

Backbones are registered here: a class in :data:`MODEL_CLASSES`, processor settings in :data:`BACKBONE_SETTINGS`.
"""

import os
from dataclasses import replace
from typing import Any

import torch
from transformers import AddedToken, AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from plume.layouts import PAPER_LAYOUT, PromptLayout, build_chat_template
from plume.modeling_plume import PlumeForEmbedding, PlumeModel
from plume.modeling_plume_qwen2_5_vl import PlumeQwen2_5_VLForEmbedding
from plume.modeling_plume_qwen3_vl import PlumeQwen3VLForEmbedding
from plume.processing_plume import PlumeProcessor
from plume.prompt_plume import is_token

HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")
# By the model type of the backbone.
MODEL_CLASSES: dict[str, Any] = {
    model_class.config_class.backbone_config_class.model_type: model_class
    for model_class in (PlumeForEmbedding, PlumeQwen2_5_VLForEmbedding, PlumeQwen3VLForEmbedding)
}


# Model type of a backbone -> what differs from the constructor's defaults, which are Qwen2-VL's.
BACKBONE_SETTINGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {},
    "qwen2_5_vl": {"time_positions": True},
    "qwen3_vl": {
        "patch_size": 16,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "timestamps": True,
        # Limits and sampling of Qwen3-VL-Embedding's published recipe: 1800 tokens an image, 7680 a clip.
        "min_pixels": 4 * 32 * 32,
        "max_pixels": 1800 * 32 * 32,
        "video_limits": "clip",
        "video_min_pixels": 4 * 32 * 32,
        "video_max_pixels": 2 * 7680 * 32 * 32,
        "fps": 1.0,
        "min_frames": 4,
        "num_frames": 64,
    },
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


def build_config(backbone: Any, **fields: Any) -> Any:
    """A PLUME configuration around one of its backbone, which is left unchanged.

    Args:
        backbone: Configuration of a backbone.
        **fields: Latent fields that differ from their defaults.
    """
    inherited = backbone.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        inherited.pop(key, None)
    return MODEL_CLASSES[backbone.model_type].config_class(**{**inherited, **fields})


def build_processor(
    tokenizer: PreTrainedTokenizerBase,
    layout: PromptLayout = PAPER_LAYOUT,
    model_type: str = "qwen2_vl",
    **options: Any,
) -> PlumeProcessor:
    """A new processor around the tokenizer of a backbone, to which the tokens that it lacks are added.

    The new tokens and the rows they start from are in ``processor.row_sources``. The order of the additions is the
    released checkpoint's, so that Qwen2-VL gives the ids 151657 to 151661.

    Args:
        tokenizer: Tokenizer of the backbone, changed in place.
        layout: Token strings and prompt.
        model_type: Of the backbone.
        **options: Arguments of [`PlumeProcessor`] instead of those of layout and backbone.

    Raises:
        ValueError: If the backbone is unknown, or the layout reads an ordinary word that the tokenizer cuts in pieces.
    """
    if model_type not in BACKBONE_SETTINGS:
        raise ValueError(
            f"The pixels and the prompt of a {model_type!r} model are not known here. Start from one of "
            f"{', '.join(BACKBONE_SETTINGS)}."
        )
    # An embedder reads its last token, which some tokenizers append to every text (Qwen3-Embedding's `<|endoftext|>`).
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    appended: Any = tokenizer.decode(tokenizer("a")["input_ids"][len(bare) :])
    if layout.suffix == layout.embedding and appended:
        layout = replace(layout, suffix=layout.suffix + appended, embedding=appended)
    sources = layout.row_sources()
    added = [token for token in sources if not is_token(token, tokenizer)]
    if words := [token for token in added if not token.startswith("<")]:
        raise ValueError(
            f"The layout reads {words} as one token each, but this tokenizer does not have them, so states would be "
            "taken from elsewhere. Use a layout with tokens of its own, such as PAPER_LAYOUT."
        )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    strings = {
        "anchor_token": layout.anchor,
        "latent_start_token": layout.latent_start,
        "latent_end_token": layout.latent_end,
        "latent_token": layout.latent,
        "embedding_token": layout.embedding,
        "suffix": layout.suffix,
        "query_prompt": layout.query_prompt,
    }
    settings = {**strings, **BACKBONE_SETTINGS[model_type], **options}
    processor = PlumeProcessor(tokenizer, build_chat_template(layout), **settings)

    to_id: Any = tokenizer.convert_tokens_to_ids
    if lost := {sources[token] for token in added} - tokenizer.get_vocab().keys():
        raise ValueError(
            f"The tokenizer lacks {sorted(lost)}, whose embedding rows the new tokens start from. Start from a "
            "checkpoint with its own tokenizer."
        )
    processor.row_sources = {to_id(token): to_id(sources[token]) for token in added}
    return processor


def processor_from_backbone(
    source: str | os.PathLike, layout: PromptLayout = PAPER_LAYOUT, **options: Any
) -> PlumeProcessor:
    """:func:`build_processor` for a checkpoint of a backbone.

    Args:
        source: Folder or Hub id.
        layout: Token strings and prompt.
        **options: As there, and ``revision``, ``subfolder``, ``token``, ``cache_dir`` and ``local_files_only``.
    """
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    model_type = AutoConfig.from_pretrained(source, **hub).model_type
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **hub)
    return build_processor(tokenizer, layout, model_type, **options)


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
    processor = processor_from_backbone(source, layout, **hub, **(processor_options or {}))
    config = build_config(backbone, **{**processor.token_fields(), **config_fields})
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
    lenient: Any = type(
        model_class.__name__, (model_class,), {"_keys_to_ignore_on_load_missing": [r"^latent_transition\."]}
    )
    model = lenient.from_pretrained(source, config=config, **options)
    model.__class__ = model_class
    return model


__all__ = [
    "BACKBONE_SETTINGS",
    "HUB_OPTIONS",
    "MODEL_CLASSES",
    "build_config",
    "build_processor",
    "from_backbone",
    "model_class_of",
    "processor_from_backbone",
]
