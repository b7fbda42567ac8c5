"""The public names of the package; importing this file registers them with transformers."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_plume import PlumeConfig
from .embedding import Embeddings, Failure, embed, load
from .modeling_plume import PlumeForEmbedding, PlumeOutput
from .pages import pdf_pages
from .processing_plume import PlumeProcessor
from .prompt_plume import PAPER_LAYOUT, RELEASED_LAYOUT, PromptLayout

AutoConfig.register("plume", PlumeConfig, exist_ok=True)
AutoModel.register(PlumeConfig, PlumeForEmbedding, exist_ok=True)
AutoProcessor.register(PlumeConfig, PlumeProcessor, exist_ok=True)

__all__ = [
    "PAPER_LAYOUT",
    "RELEASED_LAYOUT",
    "Embeddings",
    "Failure",
    "PlumeConfig",
    "PlumeForEmbedding",
    "PlumeOutput",
    "PlumeProcessor",
    "PromptLayout",
    "embed",
    "load",
    "pdf_pages",
]
