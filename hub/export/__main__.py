"""``plume export MODEL OUT``: a checkpoint as graphs that run without torch, checked against the model before they stay."""

from pathlib import Path

from plume.arguments import ArgumentParser
from plume.checkpoints import SHIPPED
from plume.hub.export import OPSET, export


def main(arguments: list[str] | None = None) -> None:
    """Export, and say what the check found.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="plume export", description=__doc__)
    parser.add_argument("model", help=f"folder or Hub id of a checkpoint, or {', '.join(SHIPPED)}")
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder to write; must not exist, or be empty")
    parser.add_argument("--int8", action="store_true", help="weights of eight bits for decoder and adapter")
    parser.add_argument("--opset", type=int, default=OPSET, help="of ONNX")
    parser.add_argument("--revision", help="of a Hub checkpoint; its main branch if omitted")
    options = parser.parse_args(arguments)
    hub = {"revision": options.revision} if options.revision else {}
    worst = export(options.model, options.folder, int8=options.int8, opset=options.opset, **hub)
    found = f"cosines with the model's vectors are at least {1 - worst:.5f}" if options.int8 else ""
    print(f"{options.folder}: {found or f'vectors differ from the model by at most {worst:.1e}'}")


if __name__ == "__main__":
    main()
