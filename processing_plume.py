"""PLUME processor: the prompt (``prompt_plume``) as a processor of transformers, loaded, saved, in tensors."""

import os
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from .content_plume import MEDIA_KINDS
from .fields_plume import Text  # noqa: F401 (older loaders copy only the files that are named here)
from .hub_files_plume import HubFolder, write_hub_files
from .options_plume import check_stated
from .pixels_plume import Grid  # noqa: F401
from .prompt_plume import SETTINGS, Media, PromptBuilder
from .vision_plume import Clip  # noqa: F401


class _Inputs(dict):
    """Model inputs, among which sentence-transformers looks for outputs."""

    def __missing__(self, name: str) -> Any:
        what = "a PLUME embedding is no mean of token states. Call the model itself, whose outputs are embeddings, "
        what += "anchor_embeddings, latent_states, suffix_states and router_probs."
        raise KeyError(f"{name!r} does not exist: {what}" if name == "token_embeddings" else name)


class PlumeProcessor(PromptBuilder, HubFolder, ProcessorMixin):
    """Turns texts, images, videos and their mixtures into the inputs of a PLUME model; a ``PromptBuilder``."""

    def __post_init__(self) -> None:
        ProcessorMixin.__init__(self, self.tokenizer, chat_template=self.chat_template)
        super().__post_init__()

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Content of ``processor_config.json`` and the chat template, as transformers reads them."""
        try:
            return super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        except (AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"processor_config.json holds no settings ({error}). Take the checkpoint's.") from error

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from ``processor_config.json``, refusing one that leaves open what changes vectors."""
        check_stated(SETTINGS, processor_dict, kwargs)
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the outputs."""
        media = [name for kind in MEDIA_KINDS.values() for name in (kind.pixels, kind.grid)]
        return ["input_ids", "attention_mask", *media, *(["second_per_grid_ts"] if self.time_positions else [])]

    def _collate(self, rows: list[list[int]], media: list[Media], text_options: dict[str, Any]) -> BatchFeature:
        return_tensors = text_options.pop("return_tensors", None)
        inputs = BatchFeature(super()._collate(rows, media, text_options), tensor_type=return_tensors)
        inputs.data = _Inputs(inputs.data)
        return inputs

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save tokenizer, template and settings, and the prompts for sentence-transformers."""
        saved = super().save_pretrained(save_directory)
        write_hub_files(save_directory, {"query": self.query_prompt, "document": self.document_prompt})
        if push_to_hub:
            name = os.path.basename(os.path.normpath(save_directory))
            self.push_to_hub(**{**kwargs, "repo_id": kwargs.get("repo_id") or name})
        return saved


PlumeProcessor.register_for_auto_class("AutoProcessor")
