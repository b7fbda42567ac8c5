"""A PLUME checkpoint served by a Hugging Face Inference Endpoint; ``plume publish`` puts this file next to the weights.

The body of a request is ``{"inputs": ..., "parameters": {...}}``. The inputs are a text, an object of ``text``,
``image`` and ``video``, or a list of those; media come as data URIs. The parameters are ``task`` (``"document"`` or
``"query"``), ``num_latent_steps`` and ``prompt``. The answer is a list of vectors. Nothing that a request names is
fetched or opened.
"""

from typing import Any

import torch
from transformers import AutoModel, AutoProcessor

_BATCH = 8  # inputs at a time
_PARAMETERS = ("task", "num_latent_steps", "prompt")
_MEDIA = ("image", "video")


class EndpointHandler:
    """What the endpoint calls.

    Args:
        path: Folder of the repository.
    """

    def __init__(self, path: str = "") -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModel.from_pretrained(path, trust_remote_code=True, dtype="auto")
        self.model = model.to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[list[float]]:
        """Embed the inputs of one request.

        Args:
            data: Body of the request.

        Returns:
            A vector per input.

        Raises:
            ValueError: If the request cannot be embedded; the endpoint answers with its message.
        """
        items, parameters = data.get("inputs"), data.get("parameters") or {}
        unknown = sorted(parameters.keys() - {*_PARAMETERS})
        task = parameters.get("task", "document")
        if unknown or task not in ("document", "query"):
            raise ValueError(
                f"task={task!r}, unknown parameters {unknown}: use 'document' or 'query', and {', '.join(_PARAMETERS)}."
            )
        items = items if isinstance(items, list) else [items]
        if not items:
            raise ValueError('"inputs" is empty, so there is nothing to embed.')
        for item in items:
            _check_media(item)
        process = self.processor.process_queries if task == "query" else self.processor.process_documents
        vectors: list[list[float]] = []
        for start in range(0, len(items), _BATCH):
            inputs = process(items[start : start + _BATCH], prompt=parameters.get("prompt"))
            with torch.inference_mode():
                output = self.model(
                    **inputs.to(self.device), task=task, num_latent_steps=parameters.get("num_latent_steps")
                )
            vectors += output.embeddings.float().cpu().tolist()
        return vectors


def _check_media(item: Any) -> None:
    """Refuse what the processor would open itself: paths and addresses.

    Raises:
        ValueError: If there is one, or the input is neither a text nor an object.
    """
    if isinstance(item, str):
        return
    if not isinstance(item, dict) or item.keys() - {"text", *_MEDIA}:
        raise ValueError('An input is a text, or an object of "text", "image" and "video".')
    for kind in _MEDIA:
        given = item.get(kind)
        for medium in given if isinstance(given, list) else [given]:
            if medium is not None and not (isinstance(medium, str) and medium.startswith("data:")):
                raise ValueError(f'"{kind}" is no data URI. Send data:{kind}/...;base64, and the bytes of the file.')
