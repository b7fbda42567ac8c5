"""What an embedding costs: ``python -m plume.evaluation efficiency --model M --out O``, the protocol of Table 2.

1. **Draw** an evaluation set per modality: N inputs, after W inputs to warm up; D independently drawn sets.
2. **Time** every system on the same sets and weights in one run, in turns, so that a machine that slows down slows
   all of them: PLUME at K = 4, 6, 8, the single pass (K = 0), and explicit chain of thought. Reading an input
   (``prepare``) and embedding it are timed apart; the latency is their sum.
3. **Report** latency, throughput and reasoning steps or tokens: mean and standard deviation over the sets.

Every finished set is on disk at once; an interrupted run goes on behind it.
"""

import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel

from plume import PlumeConfig, PlumeForEmbedding, PlumeProcessor
from plume.arguments import ArgumentParser
from plume.evaluation.efficiency.inputs import DRAWS, Sizes
from plume.evaluation.efficiency.protocol import SYSTEMS, Cell, Protocol, measure
from plume.evaluation.efficiency.report import draw, summarize, table
from plume.evaluation.embedders import ModelEmbedder, load_embedder
from plume.evaluation.store import write_json
from plume.hub.random_checkpoint import SIZES, build_backbone_config, build_tokenizer


def efficiency(
    model: PlumeForEmbedding,
    processor: PlumeProcessor,
    protocol: Protocol,
    sizes: Sizes,
    out: str | Path,
    condition: Mapping[str, Any],
) -> list[Cell]:
    """Measure what embeddings cost and write ``efficiency.json``, ``efficiency.md`` and ``efficiency.png``.

    Args:
        model: The checkpoint, in evaluation mode.
        processor: Its processor.
        protocol: What to measure.
        sizes: Of the inputs.
        out: Folder of the results; cells that are there already are kept.
        condition: What else the numbers hold for.

    Returns:
        Rows of :func:`~plume.evaluation.efficiency.report.summarize`.

    Raises:
        ValueError: If ``out`` holds costs of another condition.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "efficiency.json"
    whole = {**condition, **asdict(protocol), **asdict(sizes), **_machine(model)}
    whole = json.loads(json.dumps(whole))  # as it will be read back
    cells = _read_cells(file, whole) if file.is_file() else []

    def keep(measured: Sequence[Cell], rows: Sequence[Cell] = ()) -> None:
        write_json(file, {"condition": whole, "rows": rows, "cells": measured})

    cells = measure(model, processor, protocol, sizes, keep, cells)
    rows = summarize(cells)
    keep(cells, rows)
    draw(rows, folder / "efficiency.png")
    listed = "\n".join(f"- {name}: `{value}`" for name, value in whole.items())
    page = f"# What an embedding costs\n\n{table(rows)}\n\n![latency](efficiency.png)\n\n{listed}\n"
    (folder / "efficiency.md").write_text(page, encoding="utf-8")
    return rows


def _machine(model: PlumeForEmbedding) -> dict[str, Any]:
    """What the figures depend on beside the protocol."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _read_cells(file: Path, condition: Mapping[str, Any]) -> list[Cell]:
    kept = json.loads(file.read_text(encoding="utf-8"))
    before = kept["condition"]
    differing = sorted(key for key in {*condition, *before} if condition.get(key) != before.get(key))
    if differing:
        raise ValueError(
            f"{str(file)!r} was measured under another condition ({', '.join(differing)}), so its figures and new ones "
            "cannot be compared. Choose another --out, or remove that file."
        )
    return kept["cells"]


def random_checkpoint(size: str, device: str, dtype: str) -> tuple[PlumeForEmbedding, PlumeProcessor]:
    """A model of random weights and a processor: costs do not depend on what a model knows."""
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer().save_pretrained(folder)
        processor = PlumeProcessor.from_backbone(folder)
    backbone = build_backbone_config(processor.tokenizer, size)
    config = PlumeConfig.from_backbone(backbone, **processor.token_fields())
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModel.from_config(config, dtype="float32" if dtype == "auto" else dtype).eval(), processor


def build_parser() -> ArgumentParser:
    """The command line."""
    default = Protocol()
    parser = ArgumentParser(prog="plume evaluate efficiency", description="What embeddings cost.")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--model", help="checkpoint: a folder or a Hub id")
    weights.add_argument("--size", choices=SIZES, help="random weights of this size instead")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=default.systems, help="what to compare")
    parser.add_argument("--modalities", nargs="*", choices=list(DRAWS), default=default.modalities, help="inputs")
    for name, value, text in (
        ("inputs", default.inputs, "inputs per modality and set"),
        ("warmup", default.warmup, "inputs before each set that are not timed"),
        ("draws", default.draws, "independently drawn sets"),
        ("batch-size", default.batch_size, "inputs per batch"),
        ("rationale-tokens", default.rationale_tokens, "length of explicit rationales; 0 lets them end by themselves"),
        ("seed", default.seed, "of the first set"),
        ("text-words", Sizes.text_words, "words of a text"),
        ("image-size", Sizes.image_size, "edge of an image, in pixels"),
        ("page-size", Sizes.page_size, "width of a page image, in pixels"),
        ("frame-size", Sizes.frame_size, "edge of a video frame, in pixels"),
        ("num-frames", Sizes.num_frames, "frames of a video"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text}; {value} where omitted")
    parser.add_argument("--device", help="torch device; a GPU where there is one")
    parser.add_argument("--dtype", default="auto", help="dtype of the weights, e.g. bfloat16")
    parser.add_argument("--revision", help="of a Hub checkpoint")
    return parser


def main(argv: Sequence[str] | None = None) -> str:
    """Run the command line; returns what it has to say."""
    options = vars(build_parser().parse_args(argv))
    protocol = Protocol(**{name: _frozen(options[name]) for name in asdict(Protocol())})
    sizes = Sizes(**{name: options[name] for name in asdict(Sizes())})
    condition: dict[str, Any] = {"weights": f"random, {options['size']}"}
    device = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    if options["size"]:
        model, processor = random_checkpoint(options["size"], device, options["dtype"])
    else:
        loaded = load_embedder(options["model"], devices=[device], dtype=options["dtype"], revision=options["revision"])
        assert isinstance(loaded, ModelEmbedder), "one device, one model"
        model, processor, condition = loaded.model, loaded.processor, {"weights": loaded.condition["checkpoint"]}
    rows = efficiency(model, processor, protocol, sizes, options["out"], condition)
    return f"{table(rows)}\n\nReport: {options['out'] / 'efficiency.md'}"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
