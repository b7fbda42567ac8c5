"""PLUME: universal multimodal embeddings through latent reasoning (arXiv 2604.02073).

The flow, in the order of :meth:`PlumeModel.forward`:
1. **Prefix** (section 3.3): the backbone reads text, images and videos up to ``<slt>``, once. Left padding puts
   ``<slt>`` in the last column of every row.
2. **Anchor**: c(x) is the state at ``<anchor>``; z(0) is the state at ``<slt>`` (Eq. 2).
3. **Rollout** (``rollout_plume``): K latent steps over the cache (Eq. 3-5), then the suffix ``<elt> ... <gen>``.
4. **Embedding**: the state at ``<gen>``, L2-normalised in fp32 (Eq. 7).

:class:`PlumeModel` is all of this for any backbone of the Qwen-VL kind (a vision tower ``visual``, M-RoPE); each adds a
class of a few lines, in a file of its own but for Qwen2-VL, the paper's.

Invariants: a row's vectors do not depend on the other rows; ``forward`` stores no state on the module; the LM head
never runs on the way to an embedding.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import logging

from .cache_plume import Context, context_class
from .checks_plume import check_finite, check_prefix, check_readout_steps, check_suffix, left_aligned
from .configuration_plume import PlumeConfig
from .fields_plume import Count  # noqa: F401 (older loaders copy only the files that are named here)
from .hub_files_plume import PUSH_OPTIONS, WEIGHT_FILES, HubFolder, check_weights, write_hub_files
from .latent_plume import LatentExperts, LatentRouter, LatentTransition
from .positions_plume import Media, mrope_index, rollout_positions
from .rollout_plume import PlumeOutput, rollout, state_at

logger = logging.get_logger(__name__)

# What transformers, sentence-transformers and peft send along with every forward pass.
_SENT_ALONG = ("return_dict", "use_cache", "mm_token_type_ids", "output_attentions", "output_hidden_states")


_Mixed: Any = nn.Module  # to mypy: the class has the methods of what follows it in the bases


class PatchProduct(nn.Conv3d):
    """The convolution of a patch embedding, whose kernel and stride are one patch, as the product that it is.

    On some devices the convolution takes seconds and the product microseconds (transformers issue 45750).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Embed patches ``(N, C, T, P, P)`` as ``(N, D, 1, 1, 1)``."""
        return nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


class PlumeModel(HubFolder, _Mixed):
    """Latent reasoning over a vision-language model that follows it in the bases of a class."""

    config_class: Any
    _can_compile_fullgraph = False  # input checks read values on the host

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Hub checkpoints of Qwen2-VL say `visual.*` and `model.layers.*`. Transformers renames them for its own classes
        # only: without this, a base checkpoint would load as a random language model with no more than a warning.
        renamings = [(r"^visual", "model.visual"), (r"^model(?!\.(language_model|visual))", "model.language_model")]
        mapping: Any = [WeightRenaming(source_patterns=old, target_patterns=new) for old, new in renamings]
        register_checkpoint_conversion_mapping(cls.__name__, mapping, overwrite=True)
        cls.config_class.register_for_auto_class()
        cls.register_for_auto_class("AutoModel")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.visual.patch_embed.proj.__class__ = PatchProduct
        self.latent_transition = LatentTransition(config)
        self.post_init()

    def speed_up(self, enabled: bool = True, **options: bool) -> "PlumeModel":
        """Opt in to faster passes without gradient; ``options`` are those of ``plume.speed.speed_up``.

        Lives in the installed package: a model that runs a checkpoint's own code logs a message and runs unchanged.
        """
        try:
            importlib.import_module("plume.speed").speed_up(self, enabled, **options)
        except ImportError:
            missing = "its code is in the package, which is not installed here (pip install plume-embedding)."
            logger.warning(f"speed_up() changes nothing: {missing}")
        return self

    def media_of(self, inputs: Mapping[str, Any]) -> list[Media]:
        """Images and videos among model inputs, by their names; what is absent is None."""
        return [
            Media(self.config.image_token_id, inputs.get("pixel_values"), inputs.get("image_grid_thw")),
            Media(self.config.video_token_id, inputs.get("pixel_values_videos"), inputs.get("video_grid_thw")),
        ]

    def prefix_arguments(self, placeholders: list[Tensor], outputs: list[Any]) -> dict[str, Any]:
        """What the decoder takes with a prefix that has media, beyond its input vectors.

        From where the tokens of each kind of media are, ``(B, T)`` of bool, and what the vision tower returned for it.
        """
        return {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise new parameters; a fresh adapter is the identity because its last layers start at zero."""
        super()._init_weights(module)
        if isinstance(module, LatentExperts):
            init.normal_(module.up_weight, mean=0.0, std=module.up_weight.shape[1] ** -0.5)
            for zeroed in (module.up_bias, module.down_weight, module.down_bias):
                init.zeros_(zeroed)
        elif isinstance(module, LatentRouter) and module.step_embedding is not None:
            init.normal_(module.step_embedding.weight, mean=0.0, std=1.0)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        num_latent_steps: int | None = None,
        task: str | None = None,
        readout_steps: Sequence[int] | None = None,
        suffix_input_ids: Tensor | None = None,
        suffix_mask: Tensor | None = None,
        causal_lm: bool = False,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Embed a batch of prefixes, any mixture of modalities.

        Args:
            input_ids: Prefix tokens, ``(B, T)``, each row ending in ``<slt>``; padded on either side.
            attention_mask: 1 for tokens, 0 for padding, ``(B, T)``. Defaults to all ones.
            pixel_values: Patches of all images of the batch in order, ``(P, C)``.
            image_grid_thw: Grids of the images in patches, ``(N, 3)``.
            pixel_values_videos: Patches of all videos, ``(P, C)``.
            video_grid_thw: Grids of the videos, ``(M, 3)``.
            second_per_grid_ts: Seconds from one temporal patch of a video to the next, ``(M,)``; Qwen2.5-VL only.
            num_latent_steps: K; 0 for none. Defaults to the configuration's for the task.
            task: ``"query"`` or ``"document"``; changes nothing but the default of K.
            readout_steps: Steps in 0..K to return an embedding after, increasing, all from one rollout; each is that of
                a call with this K and the configuration's suffix.
            suffix_input_ids: Tokens after the latent block, ``(B, S)``; what follows a row's last ``<gen>`` does not
                matter. Defaults to ``config.suffix_token_ids``.
            suffix_mask: Suffix tokens to score with the LM head, ``(B, S)`` of bool. Defaults to none.
            causal_lm: Behave as the backbone's causal language model instead; ``generate`` sets it.
            logits_to_keep: With ``causal_lm``, as in the backbone.
            **kwargs: With ``causal_lm``, the arguments of the backbone's forward. Otherwise only what the libraries
                send along is accepted: ``return_dict``, ``use_cache``, ``mm_token_type_ids`` and what is None.

        Returns:
            [`PlumeOutput`]; with ``causal_lm`` the output of the backbone.

        Raises:
            ValueError: If the batch is empty, has padding inside a row, lacks ``<slt>`` or ``<anchor>``, has other
                media than placeholders, K or a read-out is out of range, a suffix lacks ``<gen>`` or an argument is
                unknown; in evaluation also if an embedding is not finite.
        """
        given = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
        given |= {"pixel_values_videos": pixel_values_videos, "video_grid_thw": video_grid_thw}
        given |= {"second_per_grid_ts": second_per_grid_ts}
        if causal_lm:
            return self._next_tokens(input_ids, attention_mask, given, logits_to_keep=logits_to_keep, **kwargs)
        if unknown := sorted(name for name, value in kwargs.items() if value is not None and name not in _SENT_ALONG):
            raise ValueError(f"Unknown arguments {unknown}: they would have no effect. Remove or rename them.")
        num_latent_steps = self.config.check_num_latent_steps(num_latent_steps, task)
        steps = check_readout_steps(readout_steps, num_latent_steps)
        if input_ids is None or input_ids.numel() == 0:
            raise ValueError("The batch is empty: pass input_ids of shape (B, T) with at least one row.")
        closing_ids = torch.tensor(self.config.suffix_token_ids, device=input_ids.device).expand(len(input_ids), -1)
        is_fused = suffix_input_ids is None or readout_steps is None
        if suffix_input_ids is None:
            suffix_input_ids = closing_ids
        else:
            check_suffix(suffix_input_ids, input_ids, self.config)
        read_ids = suffix_input_ids if is_fused else closing_ids  # what is read in the same pass as a step

        # 1. Prefix: one pass over text and media.
        input_ids, attention_mask = left_aligned(input_ids, attention_mask)
        reserved = num_latent_steps + max(suffix_input_ids.shape[1], read_ids.shape[1])
        embed, gen = self.get_input_embeddings(), self.config.embedding_token_id
        read_BSD = embed(read_ids)
        # Not in training, where a dropout of the backbone would draw other numbers than it does pass by pass.
        ahead = read_BSD if 0 in steps and not self.training else None
        context = self.read_prefix(input_ids, attention_mask, self.media_of(given), reserved, ahead)
        # 2. Anchor: the last <anchor> of each row.
        anchor_BD = state_at(context.hidden, input_ids, self.config.anchor_token_id)
        # 3. Rollout: latent steps and suffix.
        thought = rollout(context, self.latent_transition, anchor_BD, read_BSD, num_latent_steps, steps)
        # 4. Embedding at the last <gen> of the suffix, after every read-out.
        suffix_states = thought.readouts[:, -1]
        gen_BRD = state_at(thought.readouts[:, :, 1:].transpose(1, 2), read_ids, gen)
        if not is_fused:
            suffix_states = torch.cat([suffix_states[:, :1], context.extend(embed(suffix_input_ids), keep=0)], dim=1)
            own_BD = state_at(suffix_states[:, 1:], suffix_input_ids, gen)
            gen_BRD = torch.cat([gen_BRD, own_BD.unsqueeze(1)], dim=1)
        embeddings_BRD = nn.functional.normalize(gen_BRD.float(), dim=-1)
        if not self.training:
            check_finite(embeddings_BRD)
        return PlumeOutput(
            embeddings=embeddings_BRD[:, -1],
            anchor_embeddings=nn.functional.normalize(anchor_BD.float(), dim=-1),
            latent_states=thought.latent_states,
            router_probs=thought.router_probs,
            suffix_states=suffix_states,
            suffix_log_probs=None if suffix_mask is None else self._score(suffix_states, suffix_input_ids, suffix_mask),
            readout_embeddings=None if readout_steps is None else embeddings_BRD[:, : len(readout_steps)],
        )

    def read_prefix(
        self, input_ids: Tensor, attention_mask: Tensor, media: list[Media], reserved: int, ahead: Tensor | None = None
    ) -> Context:
        """Run the prefix pass of a left-padded batch, ids and mask ``(B, T)``, every row ending in ``<slt>``.

        ``media`` are :meth:`media_of` the inputs; ``reserved`` positions are laid out for latent steps and suffix.
        ``ahead`` are input vectors of a suffix, ``(B, S, D)``, to look ahead at in the same pass.

        Raises:
            ValueError: As :func:`~plume.checks_plume.check_prefix`.
        """
        check_prefix(input_ids, attention_mask, media, self.config)
        inputs_embeds, prefix_arguments = self._embed(input_ids, media)
        merge_size, scheme = self.model.visual.spatial_merge_size, self.config.position_scheme
        position_ids = rollout_positions(input_ids, attention_mask, media, merge_size, reserved, scheme)
        mask = nn.functional.pad(attention_mask, (0, reserved), value=1)
        decoder = self.model.language_model
        return context_class(decoder)(decoder, inputs_embeds, ahead, mask, position_ids, prefix_arguments)

    def _embed(self, input_ids: Tensor, media: list[Media]) -> tuple[Tensor, dict[str, Any]]:
        """Token embeddings with visual features in place of the placeholders, (B, T, D), and prefix arguments."""
        inputs_embeds = self.get_input_embeddings()(input_ids)
        found = [(input_ids == kind.token_id, kind) for kind in media if kind.pixels is not None]
        if not found:
            return inputs_embeds, {}
        # Images and videos go through the same tower; only their placeholders differ.
        outputs = [self.model.get_image_features(kind.pixels, kind.grid_thw) for _, kind in found]
        for (placeholders, _), output in zip(found, outputs, strict=True):
            features = torch.cat(output.pooler_output).to(inputs_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), features)
        return inputs_embeds, self.prefix_arguments([placeholders for placeholders, _ in found], outputs)

    def _score(self, states_BSD: Tensor, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Log-probability of the masked suffix tokens; only their states meet the LM head."""
        mask_BS, ids_BS = mask_BS.to(states_BSD.device), ids_BS.to(states_BSD.device)
        logits_NV = self.lm_head(states_BSD[:, :-1][mask_BS]).float()
        scores_N = -nn.functional.cross_entropy(logits_NV, ids_BS[mask_BS], reduction="none")
        return torch.zeros(mask_BS.shape, device=mask_BS.device).masked_scatter(mask_BS, scores_N)

    # The backbone's own language model, at positions of our own `mrope_index` unless positions are given

    def _next_tokens(self, input_ids: Tensor | None, mask: Tensor | None, given: dict[str, Any], **kwargs: Any) -> Any:
        if input_ids is not None and kwargs.get("position_ids") is None:
            # Without a mask some versions take positions that do not grow for rows packed into one.
            mask = torch.ones_like(input_ids) if mask is None else mask
            kwargs["position_ids"] = self._plain_positions(input_ids, mask, given)
        media = {name: value for name, value in given.items() if value is not None}
        return super().forward(input_ids=input_ids, attention_mask=mask, **media, **kwargs)

    def _plain_positions(self, ids: Tensor, mask: Tensor | None, given: dict[str, Any]) -> Tensor:
        mask = torch.ones_like(ids) if mask is None else mask
        return mrope_index(ids, mask, self.media_of(given), self.model.visual.spatial_merge_size)[0]

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Inputs of one decoding step of the backbone's language model."""
        position_ids = self._plain_positions(input_ids, kwargs.get("attention_mask"), kwargs)
        model_inputs = super().prepare_inputs_for_generation(input_ids, **{**kwargs, "position_ids": position_ids})
        model_inputs["position_ids"] = position_ids[..., -model_inputs["input_ids"].shape[1] :]
        return {**model_inputs, "causal_lm": True}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "PlumeModel":
        """Load a PLUME checkpoint; ``plume.from_backbone`` starts from one of a plain backbone.

        Raises:
            ValueError: If the checkpoint lacks weights, which would otherwise be random, or has damaged or other ones.
        """
        name = pretrained_model_name_or_path
        check_weights(name, kwargs, loaded=False)
        loaded: Any = super().from_pretrained(name, *args, **{**kwargs, "output_loading_info": True})
        check_weights(name, kwargs, loaded=True)
        model, info = loaded
        if missing := info["missing_keys"]:
            cause = f"{name} lacks {len(missing)} weights, e.g. {min(missing)}, and they would be random."
            raise ValueError(f"{cause} If it is of a plain backbone, start from it with plume.from_backbone.")
        return loaded if kwargs.get("output_loading_info") else model

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save weights, configuration, code, model card and the sentence-transformers files."""
        pushed = {name: kwargs.pop(name) for name in PUSH_OPTIONS if kwargs.get(name) is not None}
        # Old shards are replaced by transformers. Of a single file and an index, the one that is old would be loaded.
        is_main_process = args[0] if args else kwargs.get("is_main_process", True)
        single, _, index = (Path(save_directory, name) for name in WEIGHT_FILES)
        if is_main_process:
            index.unlink(missing_ok=True)
        # Tensors keep the names of our modules: Trainer restores a checkpoint by these names, and with the Hub's older
        # ones it would continue from fresh weights with no more than a warning.
        super().save_pretrained(save_directory, *args, **{"save_original_format": False, **kwargs})
        if is_main_process and index.is_file():
            single.unlink(missing_ok=True)
        write_hub_files(save_directory)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": os.path.basename(os.path.normpath(save_directory)), **pushed})


class PlumeForEmbedding(PlumeModel, Qwen2VLForConditionalGeneration):
    """A Qwen2-VL model that thinks K latent steps before it embeds. ``generate`` stays a Qwen2-VL's."""

    config_class = PlumeConfig
