"""The public names of the package; importing this file registers the models with transformers."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_plume import PlumeConfig, PlumeQwen2_5_VLConfig, PlumeQwen3VLConfig
from .early_exit import ExitHead, Settled, embed_early
from .embedding import Embeddings, Failure, embed, load
from .layouts import PAPER_LAYOUT, RELEASED_LAYOUT, PromptLayout
from .modeling_plume import PlumeForEmbedding, PlumeModel, PlumeOutput
from .modeling_plume_qwen2_5_vl import PlumeQwen2_5_VLForEmbedding
from .modeling_plume_qwen3_vl import PlumeQwen3VLForEmbedding
from .pages import pdf_pages
from .processing_plume import PlumeProcessor
from .start import MODEL_CLASSES, from_backbone

for _model in MODEL_CLASSES.values():
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
    AutoProcessor.register(_model.config_class, PlumeProcessor, exist_ok=True)

__all__ = [
    "PAPER_LAYOUT",
    "RELEASED_LAYOUT",
    "Embeddings",
    "ExitHead",
    "Failure",
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
    "Settled",
    "embed",
    "embed_early",
    "from_backbone",
    "load",
    "pdf_pages",
]
