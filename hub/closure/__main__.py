"""``python -m plume.hub.closure FOLDER``: link the code that a checkpoint of this repository needs into its folder."""

from pathlib import Path

from plume.arguments import ArgumentParser
from plume.hub.closure import link_closure


def main(arguments: list[str] | None = None) -> None:
    """Link the files and print their names.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.hub.closure", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder in this repository")
    for link in link_closure(parser.parse_args(arguments).folder):
        print(f"{link.name} -> {link.readlink()}")


if __name__ == "__main__":
    main()
