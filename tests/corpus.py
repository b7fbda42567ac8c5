"""A small training corpus in the UME-R1 format, drawn and written in a second."""

import csv
import itertools
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from inputs import free_port

COLORS = {"red": "#d33", "blue": "#36c", "green": "#393", "black": "#222", "white": "#eee", "orange": "#e80"}
DIRECTIVE = "Represent the above input text, images, videos, or any combination of the three as embeddings."


def _draw(path: Path, outer: str, inner: str) -> None:
    picture = Image.new("RGB", (56, 56), COLORS[outer])
    ImageDraw.Draw(picture).rectangle((18, 18, 38, 38), fill=COLORS[inner])
    picture.save(path)


def _side(value: str, reply: str, **media) -> dict:
    question = f"{value}\n<disc_emb>\n{DIRECTIVE}"
    return {**media, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]}


def write_corpus(folder: Path, rows: int = 200, negatives: int = 0, seed: int = 0) -> Path:
    """Write ``pairs.jsonl`` and ``media/``: three datasets, images, clips of frames, and text; returns the file."""
    rng, media = random.Random(seed), folder / "media"
    media.mkdir(parents=True)
    for outer in COLORS:
        for inner in COLORS:
            _draw(media / f"{outer}-{inner}.png", outer, inner)
    lines = []
    for index in range(rows):
        outer, inner = rng.sample(sorted(COLORS), 2)
        name = ("boxes", "clips", "words")[index % 3]
        picture = f"{outer}-{inner}.png"
        thought = f"<think>The outside is {outer}. It is 3.5 cm wide. The inside is {inner}. That is all.</think>"
        reply = thought + f"<answer>{outer} around {inner}\n<gen_emb>"
        target = _side(f"a {inner} box inside a {outer} one", reply)
        if name == "boxes":
            query = _side("<image>\nFind the sentence about this picture.", reply, image=picture)
        elif name == "clips":
            query = _side(
                "<video>\nFind the sentence about this clip.", reply, videos=[picture, f"{outer}-{outer}.png"]
            )
        else:
            query, target = target, _side("<image>\n", reply, images=[picture])
        row = {"dataset_name": name, "qry": query, "pos": target}
        if negatives:
            row["neg"] = [_side(f"a {outer} box inside a {inner} one", reply) for _ in range(negatives)]
            row["teacher_scores"] = [1.0 + index % 3, *[0.5] * negatives]
        lines.append(json.dumps(row))
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def write_own_pairs(folder: Path) -> Path:
    """50 captions and their pictures, as a user would have them: a CSV next to its files."""
    combinations = [c for c in itertools.product(COLORS, COLORS, ("ellipse", "rectangle")) if c[0] != c[1]]
    with open(folder / "pairs.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["query", "positive"])
        for outer, inner, shape in random.Random(0).sample(combinations, 50):
            picture = Image.new("RGB", (56, 56), COLORS[outer])
            getattr(ImageDraw.Draw(picture), shape)((16, 16, 40, 40), fill=COLORS[inner])
            picture.save(folder / f"{outer}-{inner}-{shape}.png")
            table.writerow([f"a {inner} {shape} on {outer}", f"{outer}-{inner}-{shape}.png"])
    return folder / "pairs.csv"


def make_trainer(corpus: Path, output: Path, **options):
    """A trainer over a corpus folder; ``evaluate`` rows of it are evaluated on."""
    import torch
    from transformers import AutoModel

    from plume import PlumeProcessor
    from plume.training.config import PlumeTrainingConfig
    from plume.training.data import load_rows
    from plume.training.trainer import PlumeTrainer

    dropout = options.pop("expert_dropout", 0.1)
    dtype = options.pop("dtype", torch.float32)
    model = options.pop("model", None)
    if model is None:
        model = AutoModel.from_pretrained(corpus / "model", expert_dropout=dropout, dtype=dtype)
    peft_config, evaluate = options.pop("peft_config", None), options.pop("evaluate", 0)
    settings = {
        "output_dir": str(output), "media_root": str(corpus / "media"), "per_device_train_batch_size": 8,
        "sub_batch_size": 4, "max_steps": 10, "num_negatives": 1, "use_cpu": True, "bf16": False, "logging_steps": 1, "report_to": "none",
        "learning_rate": 1e-3, "save_strategy": "no", "disable_tqdm": True, **options,
    }  # fmt: skip
    rows = load_rows([str(corpus / "pairs.jsonl")])
    return PlumeTrainer(
        model=model,
        args=PlumeTrainingConfig(**settings),
        train_dataset=rows,
        eval_dataset=rows.select(range(evaluate)) if evaluate else None,
        processing_class=PlumeProcessor.from_pretrained(corpus / "model"),
        peft_config=peft_config,
    )


def launcher_of_two() -> list[str]:
    """Arguments of Python in front of a script that two processes run on the CPU."""
    options = ["--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no"]
    port = ["--dynamo_backend", "no", "--main_process_port", str(free_port())]
    return ["-m", "accelerate.commands.launch", *options, *port]
