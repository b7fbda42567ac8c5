"""The prompt: which strings surround an input.

A prefix reads, in one line per part::

    <|im_start|>system            [system message]<|im_end|>       (left out if there is none)
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
    """Strings of a checkpoint: the five tokens and what surrounds them; ``system`` may be empty.

    A token is any string that the tokenizer reads as one id. The anchor may be ``<|im_end|>``, the end of the user's
    turn, and the start ``assistant``, the role before the answer.
    """

    anchor: str = "<anchor>"
    latent_start: str = "<slt>"
    latent_end: str = "<elt>"
    latent: str = "<ct>"
    embedding: str = "<gen>"
    directive: str = ""
    opening: str = ""
    suffix: str = "<elt><gen>"
    system: str = "You are a helpful assistant."
    instruction_in_system: bool = False  # in place of `system`; else it comes before the user's text
    query_prompt: str = "Find the item that matches the given query."

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
# Qwen3-VL-Embedding's published prompt. With K = 0 the embedding is its vector: the state of the last token, which
# plume.start.build_processor replaces by the one that the tokenizer appends, if it does.
EMBEDDER_LAYOUT = PromptLayout(
    anchor="<|im_end|>",
    latent_start="assistant",
    embedding="\n",
    suffix="\n",
    system="Represent the user's input.",
    instruction_in_system=True,
    query_prompt="",
)

# By the names that command lines and recipes use.
LAYOUTS = {"paper": PAPER_LAYOUT, "released": RELEASED_LAYOUT, "embedder": EMBEDDER_LAYOUT}

_TEMPLATE = r"""
{%- set state = namespace(instruction='') -%}
@HEAD@
{%- for message in messages -%}
    {%- set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content -%}
    {%- if message.role == 'system' -%}
@INSTRUCTION@
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
        {{- state.instruction + @CLOSING@ -}}
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
    {{- @PREFIX_END@ if latent is not defined or latent else @REASONING@ -}}
{%- endif -%}
"""
_COLLECT_INSTRUCTION = r"""
        {%- for part in parts -%}
            {%- set state.instruction = state.instruction + ('\n' if state.instruction else '') + part.text -%}
        {%- endfor -%}
"""
_WRITE_INSTRUCTION = r"""
        {{- '<|im_start|>system\n' -}}
        {%- for part in parts -%}{{- part.text -}}{%- endfor -%}
        {{- '<|im_end|>\n' -}}
"""


def build_chat_template(layout: PromptLayout) -> str:
    """Chat template of a layout; ``latent=False`` leaves out ``<slt>``, to generate an explicit rationale."""
    head, instruction = "{{- @SYSTEM@ -}}", _COLLECT_INSTRUCTION
    if layout.instruction_in_system:
        head, instruction = "{%- if messages[0].role != 'system' -%}{{- @SYSTEM@ -}}{%- endif -%}", _WRITE_INSTRUCTION
    turn_end, role = "<|im_end|>\n", "<|im_start|>assistant"
    reasoning = f"{role}\n{layout.opening}"
    filled = {
        "@SYSTEM@": f"<|im_start|>system\n{layout.system}{turn_end}" if layout.system else "",
        # Anchor and start may be strings that every turn has anyway.
        "@CLOSING@": turn_end if layout.anchor in turn_end else f"\n{layout.anchor}{layout.directive}{turn_end}",
        "@PREFIX_END@": role if layout.latent_start in role else reasoning + layout.latent_start,
        "@REASONING@": reasoning,
    }
    template = _TEMPLATE.strip().replace("@HEAD@", head).replace("@INSTRUCTION@", instruction.strip("\n"))
    for mark, text in filled.items():
        template = template.replace(mark, json.dumps(text))
    return template
