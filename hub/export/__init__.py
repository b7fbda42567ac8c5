"""A checkpoint as graphs for onnxruntime, which :class:`plume.runtime.Runtime` runs without torch.

1. **Load** the checkpoint in float32 and note its vectors of fixed inputs: the golden vectors.
2. **Graphs** (``graphs``): token embeddings and positions, the decoder with the adapter, the vision tower.
3. **Eight bits** (``eight_bits``), on request: the weights of decoder and adapter.
4. **Prompt**: tokenizer, template and settings of the processor.
5. **Manifest**, then the check: the folder, run, gives the golden vectors, or nothing is written.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch
import transformers
from onnxscript import opset18 as op

from plume.checkpoints import locate
from plume.embedding import load
from plume.hub.export.eight_bits import quantize
from plume.hub.export.graphs import Decoder, Tokens, Vision
from plume.hub.fixed import fixed_inputs
from plume.hub.identity import identity_of
from plume.modeling_plume import PlumeForEmbedding, PlumeModel
from plume.processing_plume import PlumeProcessor
from plume.runtime import Runtime
from plume.runtime.golden import check_golden, save_golden
from plume.runtime.manifest import (
    CHECKPOINT_KEY,
    DECODER,
    PROCESSOR,
    TEMPLATE,
    TOKENIZER,
    TOKENS,
    VISION,
    Manifest,
    Settings,
    cache_names,
    write_manifest,
)

OPSET = 20
_DYNAMIC = torch.export.Dim.DYNAMIC


def export(
    model: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    int8: bool = False,
    opset: int = OPSET,
    **options: Any,
) -> float:
    """Write a checkpoint as a folder for :class:`~plume.runtime.Runtime`.

    Args:
        model: ``"tiny"``, or a folder or Hub id of a PLUME checkpoint over Qwen2-VL.
        folder: Where to; must not exist, or be empty.
        int8: Whether the weights of decoder and adapter get eight bits.
        opset: Of ONNX.
        **options: Of ``from_pretrained``, e.g. ``revision``.

    Returns:
        What :func:`~plume.runtime.golden.check_golden` found: the largest difference to the model's vectors, or with
        ``int8`` the largest distance of a cosine from 1.

    Raises:
        ValueError: If the model is over another backbone, the folder is not empty, or the graphs do not give the
            model's vectors.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty: an export writes a folder of its own. Name another one.")
    loaded, processor = load(model, device="cpu", dtype="float32", attn_implementation="sdpa", **options)
    if type(loaded) is not PlumeForEmbedding:
        raise ValueError(
            f"{model} is a {loaded.config.model_type!r} model, and only those over Qwen2-VL ('plume') can be exported: "
            "the vision towers of the others are written in another way. Serve it with torch."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as place:
        scratch = Path(place, target.name)
        scratch.mkdir()
        checkpoint = identity_of(locate(model), "torch.float32")
        save_golden(scratch, _golden_vectors(loaded, processor))
        settings = _settings_of(loaded, processor)
        write_graphs(loaded, scratch, checkpoint, opset, int8=int8)
        del loaded
        _write_prompt(processor, scratch)
        write_manifest(scratch, Manifest(checkpoint, int8, settings, {}, _versions(opset)))
        worst = check_golden(Runtime(scratch))
        if target.exists():
            target.rmdir()
        scratch.rename(target)
        return worst


def _golden_vectors(model: PlumeModel, processor: PlumeProcessor) -> dict[int, np.ndarray]:
    """1. The vectors of the fixed inputs, by K."""
    features = processor.process_documents(fixed_inputs())
    chosen = {0, min(3, model.config.max_latent_steps), model.config.num_latent_steps}
    with torch.inference_mode():
        return {k: model(**features, num_latent_steps=k).embeddings.numpy() for k in sorted(chosen)}


def _settings_of(model: PlumeModel, processor: PlumeProcessor) -> Settings:
    config, text = model.config, model.config.text_config
    return Settings(
        num_latent_steps=config.num_latent_steps,
        num_latent_steps_query=config.num_latent_steps_query,
        num_latent_steps_document=config.num_latent_steps_document,
        max_latent_steps=config.max_latent_steps,
        hidden_size=text.hidden_size,
        num_active_experts=config.num_active_experts,
        num_layers=text.num_hidden_layers,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        spatial_merge_size=config.vision_config.spatial_merge_size,
        anchor_token_id=config.anchor_token_id,
        embedding_token_id=config.embedding_token_id,
        suffix_token_ids=config.suffix_token_ids,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        model_max_length=processor.tokenizer.model_max_length,
        pad_token_id=processor.tokenizer.pad_token_id,
    )


def write_graphs(model: PlumeModel, folder: Path, checkpoint: str, opset: int, *, int8: bool) -> None:
    """2. The three graphs of a model, with their weights next to them; the model is used up.

    Args:
        model: In evaluation mode.
        folder: Where to.
        checkpoint: Name that the graphs carry.
        opset: Of ONNX.
        int8: Whether decoder and adapter get weights of eight bits.
    """
    config = model.config
    width, text, vision = config.text_config.hidden_size, config.text_config, config.vision_config
    long, rows = torch.long, {0: _DYNAMIC, 1: _DYNAMIC}
    # Sizes that a graph must not take for fixed are all different here, and neither 0 nor 1.
    grids = torch.tensor([[1, 2, 2]] * 3), torch.tensor([[1, 2, 2]] * 2)
    first = {
        "input_ids": (torch.zeros(2, 7, dtype=long), rows),
        "attention_mask": (torch.ones(2, 7, dtype=long), rows),
        "image_grid_thw": (grids[0], {0: _DYNAMIC}),
        "video_grid_thw": (grids[1], {0: _DYNAMIC}),
        "places": (torch.arange(4), {0: _DYNAMIC}),
        "features": (torch.zeros(4, width), {0: _DYNAMIC}),
    }
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    second = {
        "patches": (torch.zeros(3, 16, values), rows),
        "position_ids": (torch.zeros(16, 2, dtype=long), {0: _DYNAMIC}),
    }
    head_dim, past, new = width // text.num_attention_heads, 5, 4
    # One tensor each: a tensor given twice would be one input of the graph.
    keys = [torch.zeros(2, text.num_key_value_heads, past, head_dim) for _ in range(2 * text.num_hidden_layers)]
    third = {
        "latents": (torch.zeros(2, 1, width), rows),
        "anchors": (torch.zeros(2, 1, width), rows),
        "step": (torch.tensor(1), {}),
        "vectors": (torch.zeros(2, new - 1, width), rows),
        "attention_mask": (torch.ones(2, past + new, dtype=long), rows),
        "position_ids": (torch.zeros(3, 2, new, dtype=long), {1: _DYNAMIC, 2: _DYNAMIC}),
        "past": (keys, [{0: _DYNAMIC, 2: _DYNAMIC}] * len(keys)),
    }
    write = _Writer(folder, checkpoint, opset)
    write(TOKENS, Tokens(model), first, ["vectors", "position_ids"], list(first))
    write(VISION, Vision(model), second, ["features"], list(second))
    inputs = [*list(third)[:-1], *cache_names("past", text.num_hidden_layers)]
    write(
        DECODER,
        Decoder(model),
        third,
        ["states", "router_probs", *cache_names("present", text.num_hidden_layers)],
        inputs,
        int8,
    )


class _Writer:
    """Writes graphs of one checkpoint into a folder."""

    def __init__(self, folder: Path, checkpoint: str, opset: int) -> None:
        self.folder, self.checkpoint, self.opset = folder, checkpoint, opset

    def __call__(
        self,
        name: str,
        module: torch.nn.Module,
        arguments: dict[str, tuple[Any, Any]],
        outputs: list[str],
        inputs: list[str],
        int8: bool = False,
    ) -> None:
        """Write one graph; an argument is an example and which of its sizes are free."""
        examples, shapes = zip(*arguments.values(), strict=True)
        with torch.no_grad(), _without_remarks():
            program = torch.onnx.export(
                module.eval(),
                examples,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=inputs,
                output_names=outputs,
                opset_version=self.opset,
                custom_translation_table={torch.ops.aten.searchsorted.Tensor: _searchsorted},
                verbose=False,
            )
        assert program is not None
        if int8:
            quantize(program.model)
        program.model.metadata_props[CHECKPOINT_KEY] = self.checkpoint
        program.save(self.folder / name, external_data=True)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Silence torch on itself: its own old calls, and operators of torchvision, which no graph here has."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _searchsorted(
    sorted_sequence: Any,
    self: Any,  # its name in torch
    *,
    out_int32: bool = False,
    right: bool = False,
    side: Any = None,
    sorter: Any = None,
) -> Any:
    """How many of a few sorted numbers are at most each value; ONNX has no search."""
    assert right
    ops: Any = op  # which turns lists into constants, but is typed for tensors alone
    reached = ops.LessOrEqual(ops.Unsqueeze(sorted_sequence, [0]), ops.Unsqueeze(self, [1]))
    return ops.ReduceSum(ops.Cast(reached, to=onnx.TensorProto.INT64), [1], keepdims=0)


def _write_prompt(processor: PlumeProcessor, folder: Path) -> None:
    """4. What :func:`~plume.runtime.prompt.read_prompt` reads."""
    tokenizer: Any = processor.tokenizer
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    settings = {name: value for name, value in processor.to_dict().items() if name != "chat_template"}
    (folder / PROCESSOR).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / TEMPLATE).write_text(str(processor.chat_template), encoding="utf-8")


def _versions(opset: int) -> dict[str, str]:
    libraries: tuple[Any, ...] = (onnx, onnxruntime, onnxscript, torch, transformers)
    return {"opset": str(opset), **{library.__name__: library.__version__ for library in libraries}}


__all__ = ["OPSET", "export", "write_graphs"]
