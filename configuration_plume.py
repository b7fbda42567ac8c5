"""PLUME configuration: a backbone's configuration plus the latent fields.

The paper is arXiv 2604.02073. Field names are the paper's words: *anchor*, *latent steps* (K), *experts*
(M_e), *active experts* (K_r), *suffix*. This file stores token ids; the processor stores their strings. Invariant:
two models with equal configuration and equal weights give equal vectors for equal inputs, so every number of the model
that changes a vector is a field here and is written to ``config.json``.
"""

from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

POSITION_SCHEMES = ("mrope", "kv_length")

# A PLUME config.json must state these: a silent default would change every vector, or build a model of another size.
_STATED_FIELDS = (
    "num_latent_steps", "num_active_experts", "position_scheme", "suffix_token_ids", "anchor_token_id",
    "router_uses_anchor", "transition_norm_eps", "text_config.vocab_size", "text_config.hidden_size",
    "text_config.intermediate_size", "text_config.num_attention_heads", "text_config.num_key_value_heads",
    "text_config.hidden_act", "text_config.rms_norm_eps", "text_config.rope_parameters.rope_theta",
    "text_config.rope_parameters.mrope_section", "vision_config.depth", "vision_config.hidden_size",
    "vision_config.num_heads", "vision_config.hidden_act",
)  # fmt: skip
_COUNTS = ("max_latent_steps", "num_experts", "num_active_experts", "expert_expansion")
_SWITCHES = ("use_shared_expert", "router_uses_anchor", "router_uses_step")
_TOKENS = ("anchor", "latent_start", "latent_end", "latent", "embedding")


class LatentConfig:
    """The latent fields, for the configuration of a backbone that follows it in the bases of a class.

    Defaults are the paper's (sections 3.3, 3.4 and 4.1).

    Args:
        num_latent_steps: K, the latent steps of the rollout (Eq. 3); 0 reads the embedding without any.
        num_latent_steps_query: K of queries. Defaults to ``num_latent_steps``.
        num_latent_steps_document: K of documents. Defaults to ``num_latent_steps``.
        max_latent_steps: Rows of the step embedding table e(k), the largest K this model can run.
        num_experts: M_e, specialised experts of the transition adapter; 1 has no router.
        num_active_experts: K_r, experts that the router selects per step (top-k, Eq. 5).
        use_shared_expert: Whether the always-on expert E_0 exists (Eq. 5).
        expert_expansion: Hidden width of an expert as a multiple of the model width D.
        expert_dropout: Dropout after the activation of an expert, in [0, 1), training only.
        transition_norm_eps: Epsilon of the LayerNorm before the experts.
        router_uses_anchor: Whether the router sees c(x), the anchor state (Eq. 4).
        router_uses_step: Whether the router sees e(k), the step embedding (Eq. 4).
        position_scheme: ``"mrope"`` places latent step k at p_slt + k (the paper), ``"kv_length"`` at the
            number of cached tokens (how the released checkpoint was evaluated).
        anchor_token_id: Token whose prefix state is the semantic anchor.
        latent_start_token_id: ``<slt>``, the last token of every prefix.
        latent_end_token_id: ``<elt>``, closes the latent block.
        latent_token_id: ``<ct>``, a latent position in serialized text: counted, never embedded.
        embedding_token_id: ``<gen>``, whose state is the embedding (Eq. 7).
        suffix_token_ids: Tokens after the latent block, ``<elt> ... <gen>``. Defaults to these two.
        **kwargs: Fields of the backbone's configuration.

    Raises:
        ValueError: If a field is out of range or contradicts another one.
    """

    model_type: ClassVar[str]
    backbone_config_class: ClassVar[Any]

    def __init__(
        self,
        *,
        num_latent_steps: int = 8,
        num_latent_steps_query: int | None = None,
        num_latent_steps_document: int | None = None,
        max_latent_steps: int = 32,
        num_experts: int = 4,
        num_active_experts: int = 2,
        use_shared_expert: bool = True,
        expert_expansion: int = 2,
        expert_dropout: float = 0.1,
        transition_norm_eps: float = 1e-5,
        router_uses_anchor: bool = True,
        router_uses_step: bool = True,
        position_scheme: str = "mrope",
        anchor_token_id: int = 151658,
        latent_start_token_id: int = 151659,
        latent_end_token_id: int = 151660,
        latent_token_id: int = 151661,
        embedding_token_id: int = 151657,
        suffix_token_ids: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_latent_steps, self.max_latent_steps = num_latent_steps, max_latent_steps
        self.num_latent_steps_query, self.num_latent_steps_document = num_latent_steps_query, num_latent_steps_document
        self.num_experts, self.num_active_experts = num_experts, num_active_experts
        self.use_shared_expert, self.expert_expansion = use_shared_expert, expert_expansion
        self.expert_dropout, self.transition_norm_eps = expert_dropout, transition_norm_eps
        self.router_uses_anchor, self.router_uses_step = router_uses_anchor, router_uses_step
        self.position_scheme, self.anchor_token_id = position_scheme, anchor_token_id
        self.latent_start_token_id, self.latent_end_token_id = latent_start_token_id, latent_end_token_id
        self.latent_token_id, self.embedding_token_id = latent_token_id, embedding_token_id
        closing = [latent_end_token_id, embedding_token_id]
        self.suffix_token_ids = closing if suffix_token_ids is None else suffix_token_ids
        self._check_latent_fields()
        super().__init__(**kwargs)

    @classmethod
    def from_backbone(cls, backbone: Any, **fields: Any) -> Any:
        """Build a PLUME configuration around one of its backbone.

        Args:
            backbone: Configuration of the backbone, left unchanged.
            **fields: PLUME fields that differ from their defaults.

        Raises:
            ValueError: If it is another backbone's.
        """
        if backbone.model_type != cls.backbone_config_class.model_type:
            raise ValueError(
                f"A {backbone.model_type!r} checkpoint cannot become a {cls.__name__}: its weights would not fit. Use "
                "plume.from_backbone, which picks the class."
            )
        inherited = backbone.to_dict()
        for key in ("model_type", "architectures", "transformers_version"):
            inherited.pop(key, None)
        return cls(**{**inherited, **fields})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration, refusing a PLUME one that leaves open what changes its vectors.

        Raises:
            ValueError: If ``config_dict`` leaves open what would silently change vectors, or is of another backbone.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type and str(model_type).startswith("plume"):
            raise ValueError(
                f"The checkpoint is a {model_type!r} and {cls.__name__} reads {cls.model_type!r}: its weights would "
                "not fit. Load it with AutoModel.from_pretrained, which picks the class."
            )
        try:
            given = {**config_dict, **kwargs}
            for part in ("text_config", "vision_config", "text_config.rope_parameters"):
                given |= {f"{part}.{name}": value for name, value in (given.get(part) or {}).items()}
            absent = ", ".join(name for name in _STATED_FIELDS if given.get(name) is None)
            if absent and model_type == cls.model_type:
                raise ValueError(
                    f"The PLUME config.json is missing or does not state {absent}, so vectors are unknown. Add what "
                    "the checkpoint was trained with, or pass latent fields to from_pretrained."
                )
            loaded = super().from_dict(config_dict, **kwargs)  # type: ignore[misc]
        except (StrictDataclassError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"config.json does not fit a {cls.__name__}: {error}. Take the checkpoint's.") from error
        # Overrides in kwargs are set after construction, so they have not been checked yet.
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config._check_latent_fields()
        return loaded

    def check_num_latent_steps(self, num_latent_steps: int | None = None, task: str | None = None) -> int:
        """Return K of a call if this model can run it.

        Args:
            num_latent_steps: K. Defaults to that of the task.
            task: ``"query"`` or ``"document"``, of which the configuration may have a K of its own.

        Raises:
            ValueError: If the task is unknown, or K is no integer, negative, or above the step embedding table.
        """
        if task not in (None, "query", "document"):
            raise ValueError(f"task must be 'query' or 'document', got {task!r}.")
        own = f"num_latent_steps_{task}"
        name = own if num_latent_steps is None and vars(self).get(own) is not None else "num_latent_steps"
        steps = vars(self)[name] if num_latent_steps is None else num_latent_steps
        if type(steps) is not int:  # True is no number of steps
            raise ValueError(f"{name} must be an integer, got {steps!r}.")
        if not 0 <= steps <= self.max_latent_steps:
            raise ValueError(
                f"{name}={steps} is outside 0..{self.max_latent_steps}: the step embedding e(k) has no row for it. "
                "Choose a K in that range, or train with a larger max_latent_steps."
            )
        return steps

    def _check_latent_fields(self) -> None:
        least = {name: 1 for name in _COUNTS} | {f"{name}_token_id": 0 for name in _TOKENS}
        for name, value in least.items():
            _check_integer(name, vars(self)[name], value)
        for name in _SWITCHES:
            if not isinstance(vars(self)[name], bool):
                raise ValueError(f"{name} must be true or false, got {vars(self)[name]!r}.")
        for name in ("expert_dropout", "transition_norm_eps"):
            value = vars(self)[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name} must be a number in [0, 1), got {value!r}.")
        for task in (None, "query", "document"):
            self.check_num_latent_steps(task=task)
        if self.num_active_experts > self.num_experts:
            raise ValueError(
                f"num_active_experts={self.num_active_experts} exceeds num_experts={self.num_experts}: the router "
                "cannot select more experts than there are. Lower num_active_experts or raise num_experts."
            )
        if self.position_scheme not in POSITION_SCHEMES:
            raise ValueError(
                f"position_scheme={self.position_scheme!r} is unknown. Use 'mrope' (the paper) or 'kv_length' "
                "(the released checkpoint's evaluation)."
            )
        self._check_suffix()

    def _check_suffix(self) -> None:
        if not isinstance(self.suffix_token_ids, list):
            raise ValueError(f"suffix_token_ids must be a list of token ids, got {self.suffix_token_ids!r}.")
        for token_id in self.suffix_token_ids:
            _check_integer("suffix_token_ids", token_id, 0)
        if self.embedding_token_id not in self.suffix_token_ids:
            raise ValueError(
                f"suffix_token_ids={self.suffix_token_ids} lacks embedding_token_id={self.embedding_token_id}, so "
                "there is no state to read the embedding from. End the suffix with that token."
            )


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


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
