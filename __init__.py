"""PLUME: universal multimodal embeddings through latent reasoning.

Importing this package registers the model with transformers, so that ``AutoModel``, ``AutoProcessor`` and
``SentenceTransformer`` load PLUME checkpoints without ``trust_remote_code``.
"""

# The repository root is this package. Tools that import the root under the folder's name (pytest, for one) must
# not load a second copy of the classes.
if __name__ == "plume":
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from .configuration_plume import PlumeConfig, PlumeQwen2_5_VLConfig, PlumeQwen3VLConfig
    from .modeling_plume import PlumeForEmbedding, PlumeModel, PlumeOutput
    from .modeling_plume_qwen2_5_vl import PlumeQwen2_5_VLForEmbedding
    from .modeling_plume_qwen3_vl import PlumeQwen3VLForEmbedding
    from .processing_plume import PlumeProcessor
    from .prompt_plume import PAPER_LAYOUT, RELEASED_LAYOUT, PromptLayout

    for _model in (PlumeForEmbedding, PlumeQwen2_5_VLForEmbedding, PlumeQwen3VLForEmbedding):
        AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
        AutoModel.register(_model.config_class, _model, exist_ok=True)
        AutoProcessor.register(_model.config_class, PlumeProcessor, exist_ok=True)

    __version__ = "0.1.0"

    __all__ = [
        "PAPER_LAYOUT",
        "RELEASED_LAYOUT",
        "PlumeConfig",
        "PlumeForEmbedding",
        "PlumeModel",
        "PlumeOutput",
        "PlumeProcessor",
        "PlumeQwen2_5_VLConfig",
        "PlumeQwen2_5_VLForEmbedding",
        "PlumeQwen3VLConfig",
        "PlumeQwen3VLForEmbedding",
        "PromptLayout",
    ]
