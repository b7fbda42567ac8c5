"""PLUME configuration: a backbone's configuration plus the latent fields.

Field names are the words of the paper (arXiv 2604.02073): *anchor*, *latent steps* (K), *experts* (M_e), *active
experts* (K_r), *suffix*. Every number of the model that changes a vector is a field and is written to ``config.json``.
Token ids are stored here, their strings by the processor.
"""

from inspect import get_annotations
from typing import Any, ClassVar, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

from .fields_plume import Count, Index, Share, Switch, TokenIds, check_fields

# A PLUME config.json must state these: a silent default would change every vector, or build a model of another size.
_STATED_FIELDS = (
    "num_latent_steps", "num_active_experts", "position_scheme", "suffix_token_ids", "anchor_token_id",
    "router_uses_anchor", "transition_norm_eps", "text_config.vocab_size", "text_config.hidden_size",
    "text_config.intermediate_size", "text_config.num_attention_heads", "text_config.num_key_value_heads",
    "text_config.hidden_act", "text_config.rms_norm_eps", "text_config.rope_parameters.rope_theta",
    "text_config.rope_parameters.mrope_section", "vision_config.depth", "vision_config.hidden_size",
    "vision_config.num_heads", "vision_config.hidden_act",
)  # fmt: skip


class LatentConfig:
    """The latent fields, for the configuration of a backbone that follows it in the bases of a class.

    Defaults are the paper's (sections 3.3, 3.4 and 4.1). Other keyword arguments are fields of the backbone.

    Raises:
        ValueError: If a field is out of range or contradicts another one.
    """

    model_type: ClassVar[str]
    backbone_config_class: ClassVar[Any]

    num_latent_steps: int = 8  # K, the latent steps of the rollout (Eq. 3); 0 reads the embedding without any
    num_latent_steps_query: int | None = None  # K of queries; num_latent_steps if None
    num_latent_steps_document: int | None = None  # K of documents; num_latent_steps if None
    max_latent_steps: Count = 32  # rows of the step embedding table e(k), the largest K this model can run
    num_experts: Count = 4  # M_e, specialised experts of the transition adapter; 1 has no router
    num_active_experts: Count = 2  # K_r, experts that the router selects per step (top-k, Eq. 5)
    use_shared_expert: Switch = True  # whether the always-on expert E_0 exists (Eq. 5)
    expert_expansion: Count = 2  # hidden width of an expert as a multiple of the model width D
    expert_dropout: Share = 0.1  # after the activation of an expert, training only
    transition_norm_eps: Share = 1e-5  # epsilon of the LayerNorm before the experts
    router_uses_anchor: Switch = True  # whether the router sees c(x), the anchor state (Eq. 4)
    router_uses_step: Switch = True  # whether the router sees e(k), the step embedding (Eq. 4)
    # Latent step k at p_slt + k (the paper), or at the number of cached tokens (the released checkpoint's evaluation).
    position_scheme: Literal["mrope", "kv_length"] = "mrope"
    anchor_token_id: Index = 151658  # whose prefix state is the semantic anchor
    latent_start_token_id: Index = 151659  # <slt>, the last token of every prefix
    latent_end_token_id: Index = 151660  # <elt>, closes the latent block
    latent_token_id: Index = 151661  # <ct>, a latent position in serialized text: counted, never embedded
    embedding_token_id: Index = 151657  # <gen>, whose state is the embedding (Eq. 7)
    suffix_token_ids: TokenIds = None  # after the latent block; <elt> <gen> if None

    def __init__(self, **kwargs: Any) -> None:
        vars(self).update({name: kwargs.pop(name, vars(LatentConfig)[name]) for name in _FIELDS})
        if self.suffix_token_ids is None:
            self.suffix_token_ids = [self.latent_end_token_id, self.embedding_token_id]
        self._check_latent_fields()
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration.

        Raises:
            ValueError: If ``config_dict`` leaves open what would silently change vectors, or is of another backbone.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type and str(model_type).startswith("plume"):
            cause = f"The checkpoint is a {model_type!r} and {cls.__name__} reads {cls.model_type!r}: it would not fit."
            raise ValueError(f"{cause} Load it with AutoModel.from_pretrained, which picks the class.")
        try:
            given = {**config_dict, **kwargs}
            for part in ("text_config", "vision_config", "text_config.rope_parameters"):
                given |= {f"{part}.{name}": value for name, value in (given.get(part) or {}).items()}
            absent = ", ".join(name for name in _STATED_FIELDS if given.get(name) is None)
            if absent and model_type == cls.model_type:
                cause = f"The PLUME config.json is missing or does not state {absent}, so vectors are unknown."
                raise ValueError(f"{cause} Add what it was trained with, or pass latent fields to from_pretrained.")
            loaded = super().from_dict(config_dict, **kwargs)  # type: ignore[misc]
        except (StrictDataclassError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"config.json does not fit a {cls.__name__}: {error}. Take the checkpoint's.") from error
        # Overrides in kwargs are set after construction, so they have not been checked yet.
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config._check_latent_fields()
        return loaded

    def check_num_latent_steps(self, num_latent_steps: int | None = None, task: str | None = None) -> int:
        """K of a call, by default that of the task (``"query"`` or ``"document"``), which may have one of its own.

        Raises:
            ValueError: If the task is unknown, or K is no integer, negative, or above the step embedding table.
        """
        if task not in (None, "query", "document"):
            raise ValueError(f"task must be 'query' or 'document', got {task!r}.")
        own = f"num_latent_steps_{task}"
        name = own if num_latent_steps is None and vars(self).get(own) is not None else "num_latent_steps"
        steps = vars(self)[name] if num_latent_steps is None else num_latent_steps
        if type(steps) is not int or not 0 <= steps <= self.max_latent_steps:  # True is no number of steps
            cause = f"{name}={steps!r} is outside 0..{self.max_latent_steps}, the integers that e(k) has rows for."
            raise ValueError(f"{cause} Choose a K in that range, or train with a larger max_latent_steps.")
        return steps

    def _check_latent_fields(self) -> None:
        check_fields(_FIELDS, vars(self))
        for task in (None, "query", "document"):
            self.check_num_latent_steps(task=task)
        if self.num_active_experts > self.num_experts:
            cause = f"num_active_experts={self.num_active_experts} exceeds num_experts={self.num_experts}."
            raise ValueError(f"{cause} Lower num_active_experts or raise num_experts.")
        if self.embedding_token_id not in self.suffix_token_ids:
            cause = f"suffix_token_ids={self.suffix_token_ids} lacks embedding_token_id={self.embedding_token_id}."
            raise ValueError(f"{cause} End the suffix with that token, whose state is the embedding.")


_FIELDS = {name: kind for name, kind in get_annotations(LatentConfig).items() if name in vars(LatentConfig)}

# Each class needs an __init__ of its own: transformers would generate one that skips the latent fields.


class PlumeConfig(LatentConfig, Qwen2VLConfig):
    """Configuration of [`PlumeForEmbedding`], over Qwen2-VL."""

    model_type = "plume"
    backbone_config_class = Qwen2VLConfig
    __init__ = LatentConfig.__init__


class PlumeQwen2_5_VLConfig(LatentConfig, Qwen2_5_VLConfig):  # noqa: N801 (transformers' spelling)
    """Configuration of [`PlumeQwen2_5_VLForEmbedding`]."""

    model_type = "plume_qwen2_5_vl"
    backbone_config_class = Qwen2_5_VLConfig
    __init__ = LatentConfig.__init__


class PlumeQwen3VLConfig(LatentConfig, Qwen3VLConfig):
    """Configuration of [`PlumeQwen3VLForEmbedding`]."""

    model_type = "plume_qwen3_vl"
    backbone_config_class = Qwen3VLConfig
    __init__ = LatentConfig.__init__
