"""The prompt: which strings surround an input.

A prefix reads, in one line per part::

    <|im_start|>system            [system message]<|im_end|>       (left out where there is none)
    <|im_start|>user              [media blocks][instruction][text]
                                  <anchor>[directive]<|im_end|>
    <|im_start|>assistant         [opening]<slt>

The chat template is a file of the checkpoint; :func:`build_chat_template` writes it from a :class:`PromptLayout`.
"""

import json
from dataclasses import dataclass

_DIRECTIVE = (
    "\nRepresent the above input text, images, videos, or any combination of the three as embeddings. First output the "
    "thinking process in <think> </think> tags and then summarize the entire input in a word or sentence. Finally, use "
    "the <gen_emb> tag to represent the entire input."
)


@dataclass(frozen=True)
class PromptLayout:
    """Strings of a checkpoint: the five tokens and what stands around them; ``system`` may be empty."""

    anchor: str = "<anchor>"
    latent_start: str = "<slt>"
    latent_end: str = "<elt>"
    latent: str = "<ct>"
    embedding: str = "<gen>"
    directive: str = ""
    opening: str = ""
    suffix: str = "<elt><gen>"
    system: str = "You are a helpful assistant."

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
{{- @SYSTEM@ -}}
{%- for message in messages -%}
    {%- set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content -%}
    {%- if message.role == 'system' -%}
        {%- for part in parts -%}
            {%- set state.instruction = state.instruction + ('\n' if state.instruction else '') + part.text -%}
        {%- endfor -%}
    {%- elif message.role == 'user' -%}
        {{- '<|im_start|>user\n' -}}
        {%- for part in parts -%}
            {%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif part.text -%}
                {%- if state.instruction -%}
                    {{- state.instruction + '\n' -}}
                    {%- set state.instruction = '' -%}
                {%- endif -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
        {{- state.instruction + '\n' + @ANCHOR@ + @DIRECTIVE@ + '<|im_end|>\n' -}}
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
    {{- '<|im_start|>assistant\n' + @OPENING@ -}}
    {%- if latent is not defined or latent -%}{{- @START@ -}}{%- endif -%}
{%- endif -%}
"""
# Variables that a caller may set, beside those of the rendering itself.
TEMPLATE_VARIABLES = {"latent"}


def build_chat_template(layout: PromptLayout) -> str:
    """Chat template of a layout; ``latent=False`` leaves out ``<slt>``, to generate an explicit rationale."""
    filled = {
        "@ANCHOR@": layout.anchor,
        "@DIRECTIVE@": layout.directive,
        "@OPENING@": layout.opening,
        "@START@": layout.latent_start,
        "@SYSTEM@": f"<|im_start|>system\n{layout.system}<|im_end|>\n" if layout.system else "",
    }
    template = _TEMPLATE.strip()
    for mark, text in filled.items():
        template = template.replace(mark, json.dumps(text))
    return template
