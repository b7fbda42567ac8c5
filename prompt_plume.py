"""The prompt: which strings surround an input, and how user content is put in order.

A prefix reads, in one line per part::

    <|im_start|>system            You are a helpful assistant.<|im_end|>
    <|im_start|>user              [media blocks][instruction][text]
                                  <anchor>[directive]<|im_end|>
    <|im_start|>assistant         [opening]<slt>

The chat template is a file of the checkpoint; :func:`build_chat_template` writes it from a :class:`PromptLayout`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

MODALITIES = ("text", "image", "video")
ROLES = ("system", "user", "assistant")

_DIRECTIVE = (
    "\nRepresent the above input text, images, videos, or any combination of the three as embeddings. First output the "
    "thinking process in <think> </think> tags and then summarize the entire input in a word or sentence. Finally, use "
    "the <gen_emb> tag to represent the entire input."
)


@dataclass(frozen=True)
class PromptLayout:
    """Strings of a checkpoint: the five tokens and what stands around them."""

    anchor: str = "<anchor>"
    latent_start: str = "<slt>"
    latent_end: str = "<elt>"
    latent: str = "<ct>"
    embedding: str = "<gen>"
    directive: str = ""
    opening: str = ""
    suffix: str = "<elt><gen>"

    def row_sources(self) -> dict[str, str]:
        """New token -> Qwen2-VL token whose embedding row it starts from, in the order of the additions."""
        return {
            self.embedding: "<|object_ref_end|>",
            self.anchor: "<|object_ref_start|>",
            self.latent_start: "<|object_ref_start|>",
            self.latent_end: "<|object_ref_end|>",
            self.latent: "<|object_ref_end|>",
        }


PAPER_LAYOUT = PromptLayout()
RELEASED_LAYOUT = PromptLayout(
    anchor="<disc_emb>",
    latent_start="<bot>",
    latent_end="<eot>",
    embedding="<gen_emb>",
    directive=_DIRECTIVE,
    opening="<think>",
    suffix="<eot></think>\n<gen_emb>",
)

_TEMPLATE = r"""
{%- set state = namespace(instruction='') -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- for message in messages -%}
    {%- set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content -%}
    {%- if message.role == 'system' -%}
        {%- for part in parts -%}{%- set state.instruction = state.instruction + part.text -%}{%- endfor -%}
    {%- elif message.role == 'user' -%}
        {{- '<|im_start|>user\n' -}}
        {%- for part in parts -%}
            {%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- else -%}
                {%- if state.instruction -%}
                    {{- state.instruction + '\n' -}}
                    {%- set state.instruction = '' -%}
                {%- endif -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
        {{- state.instruction + '\n@ANCHOR@@DIRECTIVE@<|im_end|>\n' -}}
        {%- set state.instruction = '' -%}
    {%- elif message.role == 'assistant' -%}
        {{- '<|im_start|>assistant\n' -}}
        {%- for part in parts -%}{{- part.text -}}{%- endfor -%}
        {{- '<|im_end|>\n' -}}
    {%- else -%}
        {{- raise_exception('PLUME knows the roles system, user and assistant, not ' + message.role|string
            + '. A pair of inputs is not one input: embed its two sides separately.') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n@OPENING@' -}}
    {%- if latent is not defined or latent -%}{{- '@START@' -}}{%- endif -%}
{%- endif -%}
"""


def build_chat_template(layout: PromptLayout) -> str:
    """Chat template of a layout; ``latent=False`` leaves out ``<slt>``, to generate an explicit rationale."""
    filled = {
        "@ANCHOR@": layout.anchor,
        "@DIRECTIVE@": layout.directive.replace("\n", "\\n"),
        "@OPENING@": layout.opening,
        "@START@": layout.latent_start,
    }
    template = _TEMPLATE.strip()
    for mark, text in filled.items():
        template = template.replace(mark, text)
    return template


def neutralize(text: str, control_tokens: Sequence[str]) -> str:
    """Break up control tokens inside user text, so that text can never act as one: ``<gen>`` -> ``< gen>``."""
    if not control_tokens:
        return text
    pattern = "|".join(re.escape(token) for token in control_tokens)
    return re.sub(pattern, lambda found: f"{found[0][0]} {found[0][1:]}", text)


def to_conversation(item: Any, prompt: str = "") -> list[dict[str, Any]]:
    """Express one input as chat messages.

    Args:
        item: A text, a PIL image, an array (3-D image, 4-D video), a dict of ``text``, ``image`` and ``video``
            (each one value or a list of values; a list of frames is one video, a list of video files or of lists
            of frames is several), or chat messages, which pass through.
        prompt: Instruction in front of the text; none where empty.

    Raises:
        ValueError: If the input is of an unknown kind or names an unknown modality.
    """
    if isinstance(item, list) and item and isinstance(item[0], Mapping) and "role" in item[0]:
        messages = list(item)
    else:
        parts = [{"type": kind, kind: value} for kind, values in _as_parts(item).items() for value in values]
        messages = [{"role": "user", "content": parts}]
    return [{"role": "system", "content": [{"type": "text", "text": prompt}]}, *messages] if prompt else messages


def _as_parts(item: Any) -> dict[str, list[Any]]:
    if isinstance(item, str):
        return {"text": [item]}
    if isinstance(item, Image.Image):
        return {"image": [item]}
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return {"video" if item.ndim == 4 else "image": [item]}
    if not isinstance(item, Mapping):
        raise ValueError(
            f"An input is given as {type(item).__name__}, which has no known modality. Pass a text, an image, an "
            f"array, a dict with keys from {', '.join(MODALITIES)}, or chat messages."
        )
    unknown = sorted(set(item) - set(MODALITIES))
    if unknown:
        raise ValueError(
            f"An input names the unknown modality {unknown[0]!r}, which this model cannot embed. Use keys from "
            f"{', '.join(MODALITIES)}."
        )
    return {kind: _as_several(kind, value) for kind, value in item.items() if value is not None}


def _as_several(kind: str, value: Any) -> list[Any]:
    """The media in ``value``: a list of images is several, a list of frames is one video."""
    if not isinstance(value, (list, tuple)):
        return [value]
    if kind != "video" or (value and all(isinstance(entry, (list, tuple)) for entry in value)):
        return list(value)
    return list(value) if value and all(_is_file(entry) and not _is_picture_file(entry) for entry in value) else [value]


def _is_file(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _is_picture_file(value: Any) -> bool:
    return os.fspath(value).lower().endswith((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"))


def canonical_messages(
    conversation: Sequence[Mapping[str, Any]], control_tokens: Sequence[str]
) -> list[dict[str, Any]]:
    """Check chat messages and bring them into the order of the prompt.

    A single text goes behind its media, whatever the order it was given in; several texts keep their places
    between the media. Texts are neutralised, media stay as they are.

    Raises:
        ValueError: If a message is malformed, or the user gives neither text nor media.
    """
    messages = [_canonical_message(message, control_tokens) for message in conversation]
    shown = [part for message in messages if message["role"] == "user" for part in message["content"]]
    if not any(part["type"] != "text" or part["text"].strip() for part in shown):
        raise ValueError(
            "An input is empty: no text and no media, so there is nothing to embed. Drop it, or give it a text, an "
            "image or a video."
        )
    return messages


def _canonical_message(message: Mapping[str, Any], control_tokens: Sequence[str]) -> dict[str, Any]:
    if "role" not in message or "content" not in message:
        raise ValueError(f"A chat message needs 'role' and 'content', got the keys {sorted(message)}.")
    if message["role"] not in ROLES:
        raise ValueError(
            f"A chat message has the role {message['role']!r}; PLUME knows {', '.join(ROLES)}. A pair of inputs is not "
            "one input: embed its two sides separately."
        )
    content = message["content"]
    given = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = [part for entry in given for part in _canonical_parts(entry, control_tokens)]
    texts = [part for part in parts if part["type"] == "text"]
    if len(texts) == 1:
        parts = [part for part in parts if part["type"] != "text"] + texts
    return {"role": message["role"], "content": parts}


def _canonical_parts(part: Mapping[str, Any], control_tokens: Sequence[str]) -> list[dict[str, Any]]:
    kind = part.get("type")
    if kind not in MODALITIES:
        raise ValueError(
            f"A message part has the unknown type {kind!r}, which this model cannot embed. Use {', '.join(MODALITIES)}."
        )
    for key in (kind, "url", "path"):
        if part.get(key) is not None:
            values = _as_several(kind, part[key])
            if kind == "text":
                values = [neutralize(value, control_tokens) for value in values]
            return [{"type": kind, kind: value} for value in values]
    raise ValueError(f"A message part of type {kind!r} holds no {kind}: add the key {kind!r}, 'url' or 'path'.")
