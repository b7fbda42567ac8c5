"""The fresh model that learns pictures and words: a Qwen2-VL of two layers over a vocabulary of CLDR's words."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from plume import PlumeForEmbedding, PlumeProcessor, PromptLayout
from plume.hub.random_checkpoint import SPECIAL_TOKENS, build_backbone_config
from plume.playground.pictures.drawing import EDGE
from plume.playground.pictures.words import WISHES, Word
from plume.start import build_config
from plume.start import build_processor as new_processor

LAYOUT = PromptLayout(system="", query_prompt="")
# The whole picture is one visual token. Its merger sees all patches side by side, each in its place. Means of several
# tokens, as a fresh decoder takes them, do not know where anything was: the tower then learned nothing in 400 steps.
PATCH, MERGE = 12, 5
SHAPE: dict[str, Any] = {
    "text": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "vision": {
        "depth": 4,
        "embed_dim": 72,
        "num_heads": 3,
        "mlp_ratio": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
    },
    "mrope_section": [4, 6, 6],
    "vocab_size": None,
}
_NUM_PIECES = 12600
# A word with its marks, which Thai and Hindi write their vowels with; a digit; signs. The space before belongs to each.
_WORD = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s"
_NAME_WEIGHT, _ENGLISH_WEIGHT = 3, 3
_ROLES = ("user", "assistant", "system")
_NO_WEIGHT = -1.5


def build_tokenizer(words: Sequence[Word]) -> PreTrainedTokenizerFast:
    """Pieces of all languages, and every word of an English name or of a wish as one piece of its own.

    Text is read in lower case, and a word is the same piece at the beginning of a line and after a space. Bytes are the
    fallback, so every script can be written.
    """
    learned = _pipeline(Tokenizer(models.BPE()))
    learned.train_from_iterator(
        _weighted(words),
        trainers.BpeTrainer(
            vocab_size=_NUM_PIECES, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    content = json.loads(learned.to_str())
    vocabulary = content["model"]["vocab"]
    whole = [*(word.text for word in words if word.language == "en" and word.is_name), *WISHES, *_ROLES]
    for piece in sorted({piece for text in whole for piece in _cut(learned, text)} - vocabulary.keys()):
        vocabulary[piece] = len(vocabulary)
    content["model"]["ignore_merges"] = True  # what is a piece is not put together from smaller ones
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        padding_side="left",
        model_max_length=4096,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("</think>", "<answer>", "</answer>")])
    return tokenizer


def _pipeline(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Prepend(" "),
            normalizers.Replace(" \n", "\n"),
            normalizers.Replace(Regex(r"\n(?=\S)"), "\n "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def _weighted(words: Sequence[Word]) -> Iterator[str]:
    for word in words:
        weight = (_NAME_WEIGHT if word.is_name else 1) * (_ENGLISH_WEIGHT if word.language == "en" else 1)
        yield from [word.text] * weight


def _cut(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text, in the letters that stand for bytes."""
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]


def build_processor(words: Sequence[Word]) -> PlumeProcessor:
    """Processor with a vocabulary trained on words."""
    tokenizer = build_tokenizer(words)
    return new_processor(tokenizer, LAYOUT, patch_size=PATCH, merge_size=MERGE, min_pixels=EDGE**2, max_pixels=EDGE**2)


def build_student(processor: PlumeProcessor, seed: int = 0, **fields: Any) -> PlumeForEmbedding:
    """A fresh model.

    Args:
        processor: From :func:`build_processor`.
        seed: Seed of the weights.
        **fields: Fields of [`PlumeConfig`].
    """
    backbone = build_backbone_config(processor.tokenizer, shape=SHAPE)
    config = build_config(
        backbone, **{**processor.token_fields(), "expert_dropout": 0.0, "expert_expansion": 1, **fields}
    )
    torch.manual_seed(seed)
    model: Any = PlumeForEmbedding(config)
    with torch.no_grad():  # transformers' scale of 0.02 is that of wide models; this narrow one hardly moves from there
        for part in (model.model.visual, model.get_decoder()):
            for module in part.modules():
                if isinstance(module, (nn.Linear, nn.Conv3d)):
                    module.weight.normal_(std=module.weight[0].numel() ** -0.5)
    _start_average(model, processor)
    return model


@torch.no_grad()
def _start_average(model: Any, processor: PlumeProcessor) -> None:
    """Let the decoder start by averaging pieces and visual tokens, each at unit size, and by doing nothing else.

    The first layer's values and outputs are the identity, and every other output is zero. The tokens of the prompt say
    nothing about an input: they lie on an axis of their own, which the values leave out.
    """
    layers = model.get_decoder().layers
    first = layers[0].self_attn
    for projection in (first.v_proj, first.o_proj):
        projection.weight.copy_(torch.eye(len(projection.weight)))
    first.v_proj.weight[:, 0] = 0
    first.q_proj.weight.zero_()
    for layer in layers:
        layer.mlp.down_proj.weight.zero_()
    for layer in layers[1:]:
        layer.self_attn.o_proj.weight.zero_()
    axis = torch.eye(model.config.text_config.hidden_size)[0]
    model.get_input_embeddings().weight[_prompt_tokens(model, processor)] = axis


def _prompt_tokens(model: Any, processor: PlumeProcessor) -> torch.Tensor:
    picture = Image.new("RGB", (EDGE, EDGE))
    prompt = processor.process_documents([{"image": picture}], prompt="")["input_ids"][0]
    return torch.cat([prompt, torch.tensor(model.config.suffix_token_ids)]).unique()


@torch.no_grad()
def start_weighing(model: Any, processor: PlumeProcessor, direction: torch.Tensor) -> None:
    """Let the first layer weigh what it averages, by the softmax of its products with a direction.

    Every head compares one number of a key, which its slowest rotation leaves as it is, with a bias of the query.
    Tokens of the prompt get no weight.

    Args:
        model: Changed in place.
        processor: Its processor.
        direction: ``(D,)``; for inputs at unit length.
    """
    attention, table = model.get_decoder().layers[0].self_attn, model.get_input_embeddings().weight
    width, size = len(direction), attention.head_dim
    said = torch.ones(len(table), dtype=torch.bool)
    said[_prompt_tokens(model, processor)] = False
    table[said, 0] = 0
    merger = model.model.visual.merger.mlp[-1]
    merger.weight[0], merger.bias[0] = 0, 0
    row = direction / width**0.5  # inputs of the layer have this length
    row[0] = _NO_WEIGHT
    attention.k_proj.weight[size - 1 :: size] = row
    attention.q_proj.bias[size - 1 :: size] = size**0.5


def save_student(folder: Path, words: Sequence[Word], seed: int = 0, **fields: Any) -> Path:
    """Write a fresh model and its processor as a checkpoint."""
    processor = build_processor(words)
    build_student(processor, seed, **fields).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
