"""PLUME: universal multimodal embeddings through latent reasoning.

Importing this package registers the model with transformers, so that ``AutoModel``, ``AutoProcessor`` and
``SentenceTransformer`` load PLUME checkpoints without ``trust_remote_code``.
"""

# The repository root is this package. Tools that import the root under the folder's name (pytest, for one) must
# not load a second copy of the classes.
if __name__ == "plume":
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from .configuration_plume import PlumeConfig
    from .modeling_plume import PlumeForEmbedding, PlumeOutput
    from .processing_plume import PlumeProcessor
    from .prompt_plume import PAPER_LAYOUT, RELEASED_LAYOUT, PromptLayout

    AutoConfig.register("plume", PlumeConfig, exist_ok=True)
    AutoModel.register(PlumeConfig, PlumeForEmbedding, exist_ok=True)
    AutoProcessor.register(PlumeConfig, PlumeProcessor, exist_ok=True)

    __version__ = "0.1.0"

    __all__ = [
        "PAPER_LAYOUT",
        "RELEASED_LAYOUT",
        "PlumeConfig",
        "PlumeForEmbedding",
        "PlumeOutput",
        "PlumeProcessor",
        "PromptLayout",
    ]
