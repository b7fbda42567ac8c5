"""Write a trained checkpoint with weights of 16 bits: ``python -m plume.playground.pictures.shrink RUN OUTPUT``.

Stored are float16 numbers, half the size; the configuration says float32, so the model computes as it did.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

import plume
from plume.arguments import ArgumentParser


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.playground.pictures.shrink", description=__doc__)
    parser.add_argument("run", type=Path, help="trained checkpoint")
    parser.add_argument("output", type=Path, help="new folder; not one whose code files are links")
    args = parser.parse_args(arguments)
    model, processor = plume.load(args.run)
    model.to(torch.float16).save_pretrained(args.output)
    processor.save_pretrained(args.output)
    file = args.output / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
