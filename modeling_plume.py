"""PLUME: universal multimodal embeddings through latent reasoning (arXiv 2604.02073).

The flow, in the order of :meth:`PlumeForEmbedding.forward`:
1. **Prefix** (section 3.3): the Qwen2-VL backbone reads text, images and videos up to ``<slt>``, once.
   Left padding puts ``<slt>`` in the last column of every row.
2. **Anchor**: c(x) is the state at ``<anchor>``; z(0) is the state at ``<slt>`` (Eq. 2).
3. **Rollout**: K times, z~(k-1) = transition(z(k-1), k, c) (Eq. 4-5) and z(k) = backbone(z~(k-1)) at the next
   position over the cache (Eq. 3).
4. **Suffix**: ``<elt> ... <gen>`` is read in the same pass as the last step, because z(K) feeds only the cache.
5. **Embedding**: the state at ``<gen>``, L2-normalised in fp32 (Eq. 7).

Invariants: a row's vectors do not depend on the other rows; embedding keeps nothing on the module between calls; the
LM head never runs on the way to an embedding.
"""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import ModelOutput

from .checks_plume import check_prefix, check_suffix, warn_of_emulation
from .configuration_plume import PlumeConfig
from .context_plume import Context, context_class
from .decode_plume import can_decode  # noqa: F401 (older loaders of remote code copy direct imports only)
from .hub_files_plume import (
    HUB_OPTIONS,
    PUSH_OPTIONS,
    check_folder,
    push_saved,
    replacing_weights,
    write_hub_files,
)
from .latent_plume import LatentExperts, LatentRouter, LatentTransition
from .packed_plume import PackedWeights
from .patches_plume import LinearPatchEmbed
from .positions_plume import Media, mrope_index, rollout_positions
from .recorded_plume import RecordedRollouts

# Hub checkpoints of Qwen2-VL say `visual.*` and `model.layers.*`. Transformers renames them for its own classes only:
# without this, a base checkpoint would load as a random language model with no more than a warning.
register_checkpoint_conversion_mapping(
    "PlumeForEmbedding",
    [
        WeightRenaming(source_patterns=r"^visual", target_patterns="model.visual"),
        WeightRenaming(source_patterns=r"^model(?!\.(language_model|visual))", target_patterns="model.language_model"),
    ],
    overwrite=True,
)

# What transformers, sentence-transformers and peft send along with every forward pass.
_SENT_ALONG = ("return_dict", "use_cache", "mm_token_type_ids", "output_attentions", "output_hidden_states")


@dataclass
class PlumeOutput(ModelOutput):
    """What one forward pass returns.

    Attributes:
        embeddings: The retrieval embeddings, ``(B, D)``, fp32, unit length (Eq. 7).
        anchor_embeddings: The anchor state, ``(B, D)``, fp32, unit length; for training and analysis only.
        latent_states: z(1)..z(K), ``(B, K, D)``, post-norm.
        router_probs: pi(1)..pi(K) over all experts, ``(B, K, E)``, fp32 (Eq. 4).
        suffix_log_probs: Log-probability of each suffix token given what precedes it, ``(B, S)``, fp32, in nats; only
            with ``suffix_mask``, and 0 where it is 0.
        suffix_states: The state before the suffix (z(K), or z(0) at K = 0) and at every suffix token,
            ``(B, 1 + S, D)``, post-norm: state i predicts suffix token i.
    """

    embeddings: torch.Tensor | None = None
    anchor_embeddings: torch.Tensor | None = None
    latent_states: torch.Tensor | None = None
    router_probs: torch.Tensor | None = None
    suffix_states: torch.Tensor | None = None
    suffix_log_probs: torch.Tensor | None = None


class PlumeForEmbedding(Qwen2VLForConditionalGeneration):
    """A Qwen2-VL model that thinks K latent steps before it embeds. ``generate`` stays a Qwen2-VL's."""

    config_class = PlumeConfig
    _can_compile_fullgraph = False  # input checks read values on the host

    def __init__(self, config: PlumeConfig) -> None:
        super().__init__(config)
        LinearPatchEmbed.take_over(self.model.visual.patch_embed)
        self.latent_transition = LatentTransition(config)
        self._packed: PackedWeights | None = None
        self._recorded: RecordedRollouts | None = None
        self.post_init()

    def speed_up(self, enabled: bool = True) -> "PlumeForEmbedding":
        """Opt in to faster latent steps without gradient; vectors change by rounding only (``docs/performance.md``).

        Packs weights on a CPU (the memory of the decoder once more; twice that for batches in bfloat16 that the CPU
        emulates), records the rollout on a CUDA device; where that cannot be, a message says so and nothing changes.
        """
        self._packed, self._recorded = (PackedWeights(), RecordedRollouts()) if enabled else (None, None)
        return self

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
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        num_latent_steps: int | None = None,
        suffix_input_ids: torch.Tensor | None = None,
        suffix_mask: torch.Tensor | None = None,
        causal_lm: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Embed a batch of prefixes, any mixture of modalities.

        Args:
            input_ids: Prefix tokens, ``(B, T)``, left-padded, each row ending in ``<slt>``.
            attention_mask: 1 for tokens, 0 for padding, ``(B, T)``; all ones where omitted.
            pixel_values: Image patches, ``(P, C)``, of all images of the batch in order.
            image_grid_thw: Patch grids of the images, ``(N, 3)``.
            pixel_values_videos: Video patches, ``(P, C)``.
            video_grid_thw: Patch grids of the videos, ``(M, 3)``.
            num_latent_steps: K; ``config.num_latent_steps`` where omitted, 0 for none.
            suffix_input_ids: Tokens after the latent block, ``(B, S)``, right-padded with anything behind the
                last ``<gen>``; ``config.suffix_token_ids`` where omitted.
            suffix_mask: Suffix tokens to score with the LM head, ``(B, S)`` of bool; none where omitted.
            causal_lm: Behave as Qwen2-VL's causal language model instead; ``generate`` sets it.
            logits_to_keep: With ``causal_lm``, as in Qwen2-VL.
            **kwargs: With ``causal_lm``, the arguments of Qwen2-VL's forward. Otherwise only what the libraries send
                along is accepted: ``return_dict``, ``use_cache``, ``mm_token_type_ids`` and arguments that are None.

        Returns:
            [`PlumeOutput`]; with ``causal_lm`` the output of Qwen2-VL.

        Raises:
            ValueError: If the batch is empty, right-padded, without ``<slt>`` or ``<anchor>``, has other media
                than placeholders, K is out of range, a suffix lacks ``<gen>`` or an argument is unknown; in
                evaluation also if an embedding is not finite.
        """
        media = [
            Media(self.config.image_token_id, pixel_values, image_grid_thw),
            Media(self.config.video_token_id, pixel_values_videos, video_grid_thw),
        ]
        if causal_lm:
            return self._next_tokens(input_ids, attention_mask, media, logits_to_keep=logits_to_keep, **kwargs)
        if unknown := sorted(name for name, value in kwargs.items() if value is not None and name not in _SENT_ALONG):
            raise ValueError(
                f"Unknown arguments {unknown}: they would have no effect. Remove them, or mend their names."
            )
        if num_latent_steps is None:
            num_latent_steps = self.config.num_latent_steps
        self.config.check_num_latent_steps(num_latent_steps)
        if input_ids is None or input_ids.numel() == 0:
            raise ValueError("The batch is empty: pass input_ids of shape (B, T) with at least one row.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        check_prefix(input_ids, attention_mask, media, self.config)
        if suffix_input_ids is None:
            suffix = torch.tensor(self.config.suffix_token_ids, device=input_ids.device)
            suffix_input_ids = suffix.expand(len(input_ids), -1)
        else:
            check_suffix(suffix_input_ids, input_ids, self.config)

        # 1. Prefix: one pass over text and media.
        num_reserved = num_latent_steps + suffix_input_ids.shape[1]
        context = self._read_prefix(input_ids, attention_mask, media, num_reserved)
        # 2. Anchor: the last <anchor> of each row.
        anchor_BD = _state_at(context.hidden, input_ids, self.config.anchor_token_id)
        # 3.-4. Rollout and suffix.
        suffix_BSD = self.get_input_embeddings()(suffix_input_ids)
        rollout = partial(self._recorded.run, self._rollout, self) if self._recorded else self._rollout
        latent_states, router_probs, suffix_states = rollout(context, anchor_BD, suffix_BSD, num_latent_steps)
        # 5. Embedding at the last <gen> of the suffix.
        gen_BD = _state_at(suffix_states[:, 1:], suffix_input_ids, self.config.embedding_token_id)
        embeddings = nn.functional.normalize(gen_BD.float(), dim=-1)
        if not self.training and not embeddings.isfinite().all():
            raise ValueError(
                "The embeddings are not finite (NaN or infinity), so no similarity computed from them would mean "
                "anything. Check the checkpoint for NaN weights, and use bfloat16 or float32 instead of float16."
            )
        return PlumeOutput(
            embeddings=embeddings,
            anchor_embeddings=nn.functional.normalize(anchor_BD.float(), dim=-1),
            latent_states=latent_states,
            router_probs=router_probs,
            suffix_states=suffix_states,
            suffix_log_probs=None if suffix_mask is None else self._score(suffix_states, suffix_input_ids, suffix_mask),
        )

    def _next_tokens(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, media: list[Media], **kwargs: Any
    ) -> Any:
        """The plain Qwen2-VL, at positions of our own :func:`mrope_index` unless positions are given."""
        if input_ids is not None and kwargs.get("position_ids") is None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            kwargs["position_ids"], _ = mrope_index(input_ids, mask, media, self.model.visual.spatial_merge_size)
        images, videos = media
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=images.pixels,
            image_grid_thw=images.grid_thw,
            pixel_values_videos=videos.pixels,
            video_grid_thw=videos.grid_thw,
            **kwargs,
        )

    def _score(self, states_BSD: torch.Tensor, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Log-probability of the masked suffix tokens; only their states meet the LM head."""
        mask_BS, ids_BS = mask_BS.to(states_BSD.device), ids_BS.to(states_BSD.device)
        logits_NV = self.lm_head(states_BSD[:, :-1][mask_BS]).float()
        scores_N = -nn.functional.cross_entropy(logits_NV, ids_BS[mask_BS], reduction="none")
        return torch.zeros(mask_BS.shape, device=mask_BS.device).masked_scatter(mask_BS, scores_N)

    def _rollout(
        self, context: Context, anchor_BD: torch.Tensor, suffix_BSD: torch.Tensor, num_latent_steps: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Think K latent steps, then read the suffix (section 3.3). The only rollout in this repository.

        Args:
            context: The backbone after the prefix; its last column is ``<slt>``.
            anchor_BD: c(x), ``(B, D)``, post-norm.
            suffix_BSD: Input vectors of the suffix ``<elt> ... <gen>``, ``(B, S, D)``.
            num_latent_steps: K.

        Returns:
            z(1)..z(K) ``(B, K, D)``, pi(1)..pi(K) ``(B, K, E)``, and z(K) with the suffix states ``(B, 1 + S, D)``.
        """
        z_BD = context.hidden[:, -1]  # z(0), Eq. 2
        latents_KBD, probs_KBE = [], []
        for k in range(1, num_latent_steps + 1):
            refined_BD, probs_BE = self.latent_transition(z_BD, k, anchor_BD, context.mix)  # z~(k-1), Eq. 4-5
            inputs_BSD = refined_BD.unsqueeze(1).to(suffix_BSD.device)  # where a split model takes its inputs
            if k == num_latent_steps:  # z(K) feeds only the cache: read the suffix in the same pass
                inputs_BSD = torch.cat([inputs_BSD, suffix_BSD], dim=1)
            states_BSD = context.extend(inputs_BSD)  # at p_slt + k, Eq. 3
            z_BD = states_BSD[:, 0]  # z(k)
            latents_KBD.append(z_BD)
            probs_KBE.append(probs_BE)
        if num_latent_steps == 0:
            states_BSD = torch.cat([z_BD.unsqueeze(1), context.extend(suffix_BSD)], dim=1)
            no_probs = torch.empty(len(z_BD), 0, self.config.num_experts, device=z_BD.device)
            return z_BD.new_empty(len(z_BD), 0, z_BD.shape[-1]), no_probs, states_BSD
        return torch.stack(latents_KBD, dim=1), torch.stack(probs_KBE, dim=1), states_BSD

    def _read_prefix(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, media: list[Media], num_reserved: int
    ) -> Context:
        """Run the prefix pass; ``num_reserved`` positions are laid out behind it for latents and suffix."""
        inputs_embeds = self._embed(input_ids, media)
        warn_of_emulation(inputs_embeds)
        merge_size = self.model.visual.spatial_merge_size
        position_ids = rollout_positions(
            input_ids, attention_mask, media, merge_size, num_reserved, self.config.position_scheme
        )
        reserved = attention_mask.new_ones(len(input_ids), num_reserved)
        decoder = self.model.language_model
        experts = self.latent_transition.experts
        fast = not (torch.is_grad_enabled() or self.training)
        packed = self._packed.of(decoder, experts) if self._packed is not None and fast else None
        return context_class(decoder)(
            decoder, inputs_embeds, torch.cat([attention_mask, reserved], dim=-1), position_ids, packed
        )

    def _embed(self, input_ids: torch.Tensor, media: list[Media]) -> torch.Tensor:
        """Token embeddings with the vision tower's features in place of the media placeholders, (B, T, D)."""
        inputs_embeds = self.get_input_embeddings()(input_ids)
        for token_id, pixels, grid_thw in media:
            if pixels is not None:
                # Images and videos go through the same tower; only their placeholders differ.
                features = torch.cat(self.model.get_image_features(pixels, grid_thw).pooler_output)
                placeholders = (input_ids == token_id).unsqueeze(-1)
                inputs_embeds = inputs_embeds.masked_scatter(placeholders, features.to(inputs_embeds))
        return inputs_embeds

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        """Inputs of one decoding step of the plain Qwen2-VL, at positions of our own :func:`mrope_index`."""
        attention_mask = kwargs.get("attention_mask")
        media = [
            Media(self.config.image_token_id, None, kwargs.get("image_grid_thw")),
            Media(self.config.video_token_id, None, kwargs.get("video_grid_thw")),
        ]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        position_ids, _ = mrope_index(input_ids, mask, media, self.model.visual.spatial_merge_size)
        model_inputs = super().prepare_inputs_for_generation(input_ids, **{**kwargs, "position_ids": position_ids})
        model_inputs["position_ids"] = position_ids[..., -model_inputs["input_ids"].shape[1] :]
        return {**model_inputs, "causal_lm": True}

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> "PlumeForEmbedding":
        """Load a PLUME checkpoint; see :meth:`from_backbone` for a plain Qwen2-VL one.

        Raises:
            ValueError: If the checkpoint lacks weights, which would otherwise be random.
        """
        check_folder(pretrained_model_name_or_path, kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        if info["missing_keys"]:
            _refuse_missing(pretrained_model_name_or_path, set(info["missing_keys"]))
        return loaded if wants_info else model

    @classmethod
    def from_backbone(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        config_fields: dict[str, Any],
        row_sources: dict[int, int],
        **kwargs: Any,
    ) -> "PlumeForEmbedding":
        """Start from a Qwen2-VL or UME-R1 checkpoint: its weights, a fresh adapter, rows for the new tokens.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            config_fields: Fields of [`PlumeConfig`]; at least ``PlumeProcessor.token_fields()``.
            row_sources: New token id -> the id whose embedding row it starts from, ``PlumeProcessor.row_sources``.
            **kwargs: Of ``from_pretrained``.

        Raises:
            ValueError: If anything but the adapter is missing from the checkpoint.
        """
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        backbone = Qwen2VLConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path,
            config=PlumeConfig.from_backbone(backbone, **config_fields),
            output_loading_info=True,
            **kwargs,
        )
        model, info = loaded
        unexpected = {name for name in info["missing_keys"] if not name.startswith("latent_transition.")}
        if unexpected:
            _refuse_missing(pretrained_model_name_or_path, unexpected)
        highest = max([*row_sources, model.config.latent_token_id])
        if highest >= model.config.text_config.vocab_size:
            model.resize_token_embeddings(highest + 1, mean_resizing=False)
        with torch.no_grad():
            for rows in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
                for new_id, source_id in row_sources.items():
                    rows[new_id] = rows[source_id]
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save weights, configuration, code, model card and the sentence-transformers files."""
        pushed = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        # Tensors keep the names of our modules: Trainer restores a checkpoint by these names, and with the Hub's older
        # ones it would go on from fresh weights with no more than a warning.
        with replacing_weights(save_directory, args[0] if args else kwargs.get("is_main_process", True)):
            super().save_pretrained(save_directory, *args, **{"save_original_format": False, **kwargs})
        write_hub_files(save_directory)
        if push_to_hub:
            self.push_to_hub(repo_id or os.path.basename(os.path.normpath(save_directory)), **pushed)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:  # type: ignore[override]
        """Upload all that :meth:`save_pretrained` writes; options of :func:`~plume.hub_files_plume.push_saved`."""
        return push_saved(self.save_pretrained, repo_id, **kwargs)


def _state_at(states_BTD: torch.Tensor, ids_BT: torch.Tensor, token_id: int) -> torch.Tensor:
    """The state at the last occurrence of ``token_id`` in each row, ``(B, D)``."""
    order_BT = torch.arange(1, ids_BT.shape[1] + 1, device=ids_BT.device) * (ids_BT == token_id)
    index_B = order_BT.argmax(dim=-1).to(states_BTD.device)  # a split model has its last states elsewhere
    return states_BTD[torch.arange(len(index_B), device=index_B.device), index_B]


def _refuse_missing(source: str | os.PathLike, missing: set[str]) -> None:
    raise ValueError(
        f"{source} lacks {len(missing)} weights, e.g. {min(missing)}: they would be random and so would the "
        "embeddings. If this is a Qwen2-VL or UME-R1 checkpoint, start from it with "
        "PlumeForEmbedding.from_backbone(source, processor.token_fields(), processor.row_sources)."
    )


PlumeConfig.register_for_auto_class()
PlumeForEmbedding.register_for_auto_class("AutoModel")

__all__ = ["PlumeForEmbedding", "PlumeOutput"]
