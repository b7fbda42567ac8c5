"""Fine-tune on pairs from a table, with LoRA: a row is a query and the document that answers it.

python examples/finetune_pairs.py PAIRS.csv OUTPUT [MODEL] [--FLAG VALUE ...]

Columns: query_text, query_image, document_text, document_image; a side has a text, a picture (a path next to the table)
or both. Flags after the three are those of `python -m plume.training.train --help`. Needs the extra `train`.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

PAIRS, OUTPUT = Path(sys.argv[1]), Path(sys.argv[2])
MODEL = sys.argv[3] if len(sys.argv) > 3 and not sys.argv[3].startswith("--") else "checkpoints/plume-tiny"
FLAGS = sys.argv[3 + (MODEL in sys.argv[3:4]) :]


def side(row: dict[str, str], name: str) -> dict:
    """One side of a pair in the training format; see docs/training.md."""
    text, image = row.get(f"{name}_text") or "", row.get(f"{name}_image") or ""
    question = {"from": "human", "value": ("<image>\n" if image else "") + text}
    return {**({"image": image} if image else {}), "conversations": [question]}


OUTPUT.mkdir(parents=True, exist_ok=True)
with PAIRS.open(newline="", encoding="utf-8") as table, (OUTPUT / "pairs.jsonl").open("w", encoding="utf-8") as file:
    for row in csv.DictReader(table):
        pair = {"dataset_name": PAIRS.stem, "qry": side(row, "query"), "pos": side(row, "document")}
        file.write(json.dumps(pair) + "\n")

settings = {
    "model_name_or_path": MODEL,
    "train_files": OUTPUT / "pairs.jsonl",
    "media_root": PAIRS.parent,
    "output_dir": OUTPUT / "model",
    "dtype": "float32",
    "use_peft": "true",
    "lora_r": 16,
    "lora_alpha": 32,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 64,  # the contrastive pool; chunk_size bounds the memory
    "chunk_size": 4,
    "max_steps": 500,
    "warmup_steps": 0.03,
    "save_strategy": "no",
    "report_to": "none",
}
command = [sys.executable, "-m", "plume.training.train"]
command += [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
# Pairs have no written rationale to shorten stage by stage, so only the last stage is trained.
subprocess.run([*command, "--stage_weights", "0", "0", "0", "0", "1", *FLAGS], check=True)
print(f"{OUTPUT / 'model'} is a checkpoint like any other")
