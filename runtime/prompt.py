"""The prompt of an exported model: the package's own builder over a tokenizer that needs no transformers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plume.options_plume import check_stated
from plume.prompt_plume import SETTINGS, PromptBuilder
from plume.runtime.manifest import PROCESSOR, TEMPLATE, TOKENIZER, Settings
from plume.runtime.tokenizer import PromptTokenizer


class RuntimePrompt(PromptBuilder):
    """Model inputs as arrays of numpy."""

    def _process(self, items: Sequence[Any], prompt: str, **kwargs: Any) -> dict[str, np.ndarray]:
        return super()._process(items, prompt, **{**kwargs, "return_tensors": None})

    def read(self, item: Any, task: str, index: int, **options: Any) -> dict[str, np.ndarray]:
        """Model inputs of one item, a batch of one row.

        Args:
            item: As in :func:`~plume.content_plume.to_conversation`.
            task: ``"document"`` or ``"query"``.
            index: What errors call it.
            **options: Of the prompt builder.
        """
        process = self.process_queries if task == "query" else self.process_documents
        try:
            return process([item], **options)
        except ValueError as error:
            raise ValueError(f"Input {index}: {str(error).removeprefix('Input 0: ')}") from error

    def join(self, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """One batch of several: rows padded on the left, media one after another."""
        batch = self.tokenizer.pad({"input_ids": [row["input_ids"][0].tolist() for row in rows]})
        for name in sorted({name for row in rows for name in row} - batch.keys()):
            batch[name] = np.concatenate([row[name] for row in rows if name in row])
        return batch


def read_prompt(folder: Path, settings: Settings) -> RuntimePrompt:
    """The prompt builder of an exported folder, as its checkpoint states it."""
    tokenizer = PromptTokenizer(folder / TOKENIZER, settings.model_max_length, settings.pad_token_id)
    saved = json.loads((folder / PROCESSOR).read_text("utf-8"))
    saved["chat_template"] = (folder / TEMPLATE).read_text("utf-8")
    check_stated(SETTINGS, saved, {})
    return RuntimePrompt(tokenizer, **{name: saved[name] for name in ("chat_template", *SETTINGS) if name in saved})
