"""``python -m plume.hub.random_checkpoint FOLDER``: a checkpoint with random weights, to try commands on."""

from pathlib import Path

from plume.arguments import ArgumentParser
from plume.hub import MODEL_TYPES
from plume.hub.random_checkpoint import save_random_backbone, save_random_plume
from plume.hub.sizes import SIZES


def main(arguments: list[str] | None = None) -> None:
    """Write the checkpoint.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.hub.random_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="shape of the model")
    parser.add_argument("--model-type", choices=MODEL_TYPES, default="qwen2_vl", help="backbone")
    parser.add_argument("--backbone", action="store_true", help="write the plain backbone, without PLUME")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    options = parser.parse_args(arguments)
    save = save_random_backbone if options.backbone else save_random_plume
    save(options.folder, options.size, model_type=options.model_type, seed=options.seed)
    print(f"{options.folder}: a random {'backbone' if options.backbone else 'PLUME checkpoint'}, {options.size}")


if __name__ == "__main__":
    main()
