"""A tokenizer that :class:`~plume.prompt_plume.PromptBuilder` can call as one of transformers, without transformers.

It stands on the ``tokenizers`` library, which is transformers' own, and on jinja2 for the checkpoint's template.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer


class PromptTokenizer:
    """The tokenizer of an exported folder.

    Args:
        path: A ``tokenizer.json``.
        model_max_length: Most tokens of an input.
        pad_token_id: What fills short rows.
    """

    def __init__(self, path: Path, model_max_length: int, pad_token_id: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.model_max_length, self.pad_token_id = model_max_length, pad_token_id

    def __call__(
        self, text: str, add_special_tokens: bool = False, verbose: bool = False, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        """Ids of a text, and the characters that each stands for."""
        encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoded.ids, "offset_mapping": encoded.offsets}

    def get_added_vocab(self) -> dict[str, int]:
        """Tokens that were added to the vocabulary, with their ids."""
        return {token.content: index for index, token in sorted(self._tokenizer.get_added_tokens_decoder().items())}

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], tokenize: bool, chat_template: str, **variables: Any
    ) -> str:
        """Chat messages in the words of the template."""
        assert not tokenize
        return _compile(chat_template).render(messages=messages, **variables)

    def pad(
        self,
        features: Mapping[str, Sequence[Sequence[int]]],
        padding: bool = True,
        padding_side: str = "left",
        return_tensors: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Rows of ids as a rectangle, and a mask of what is a token."""
        assert padding
        assert padding_side == "left", "a prefix ends in the last column"
        rows = features["input_ids"]
        ids = np.full((len(rows), max(map(len, rows))), self.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, ids.shape[1] - len(row) :] = row
            mask[place, ids.shape[1] - len(row) :] = 1
        return {"input_ids": ids, "attention_mask": mask}


@lru_cache(maxsize=8)
def _compile(chat_template: str) -> jinja2.Template:
    """A template in the settings of transformers, which renders it for the model."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    return environment.from_string(chat_template)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)
