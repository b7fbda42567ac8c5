"""``plume convert``, ``verify``, ``publish`` and ``export``: from, at and to published checkpoints."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from plume.arguments import ArgumentParser
from plume.checkpoints import SHIPPED, locate
from plume.hub import KINDS
from plume.layouts import LAYOUTS


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="plume")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "a published checkpoint in the layout of this package"
    convert = commands.add_parser("convert", help=about, description=about)
    convert.add_argument("source", help="folder or Hub id of a Qwen-VL, UME-R1 or released PLUME checkpoint")
    convert.add_argument("target", type=Path, help="new folder")
    convert.add_argument("--from", dest="kind", choices=["auto", *KINDS], default="auto", help="layout of the source")
    convert.add_argument("--num-latent-steps", type=int, help="K; a released PLUME checkpoint does not store it")
    convert.add_argument("--num-active-experts", type=int, default=2, help="K_r; not stored either")
    convert.add_argument("--ignore", help="regular expression of tensors to leave out")
    convert.add_argument("--seed", type=int, default=0, help="seed of a fresh adapter")
    convert.add_argument("--layout", choices=LAYOUTS, default="paper", help="prompt of a plain backbone")
    convert.set_defaults(command=run_convert)

    about = "check a checkpoint folder; the exit status is 1 if a check fails"
    verify = commands.add_parser("verify", help=about, description=about)
    verify.add_argument("folder", help="checkpoint folder")
    verify.add_argument("--int8", action="store_true", help="compare speed_up(int8=True) with it, for every K")
    verify.add_argument(
        "--quantized", type=Path, help="folder of the same checkpoint, quantized: compare it, for every K"
    )
    verify.set_defaults(command=run_verify)

    about = "a checkpoint folder on the Hub, with a card from its own files"
    publish = commands.add_parser("publish", help=about, description=about)
    publish.add_argument("folder", type=Path, help="checkpoint folder")
    publish.add_argument("repo_id", help="repository, org/name")
    publish.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    publish.add_argument("--private", action="store_true", help="make a new repository private")
    publish.add_argument("--license", dest="license_id", help="SPDX id of the weights' licence")
    publish.add_argument("--dry-run", action="store_true", help="print files and card, upload nothing")
    publish.set_defaults(command=run_publish)

    about = "a checkpoint as graphs that run without torch, checked against the model before they stay"
    export = commands.add_parser("export", help=about, description=about)
    export.add_argument("model", help=f"folder or Hub id of a checkpoint, or {', '.join(SHIPPED)}")
    export.add_argument("folder", type=Path, metavar="OUT", help="folder to write; must not exist, or be empty")
    export.add_argument("--int8", action="store_true", help="weights of eight bits for decoder and adapter")
    export.add_argument("--opset", type=int, help="of ONNX; 20 if omitted")
    export.add_argument("--revision", help="of a Hub checkpoint; its main branch if omitted")
    export.set_defaults(command=run_export)
    return parser


def run_convert(options: argparse.Namespace) -> int:
    """Convert and say what was done."""
    from plume.hub.convert import convert  # here and below: a help does not wait for libraries

    report = convert(**{name: value for name, value in vars(options).items() if name != "command"})
    for note in report.notes:
        print(note)
    counts = Counter(report.tensors.values())
    print(", ".join(f"{count} tensors {what}" for what, count in sorted(counts.items())))
    print(f"{options.target}: ready. Check it with `plume verify {options.target}`")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Check and print one line per check."""
    from plume.hub.verify import verify

    findings = verify(Path(locate(options.folder)), options.int8, options.quantized)
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.name:<22} {finding.detail}")
    return 0 if all(finding.passed for finding in findings) else 1


def run_publish(options: argparse.Namespace) -> int:
    """Print what would go up, or upload it."""
    from plume.hub.publish import build_card, endpoint_files, files_to_publish, publish

    if options.dry_run:
        for path in files_to_publish(options.folder):
            print(f"{path.stat().st_size:>14,}  {path.relative_to(options.folder)}")
        for name, content in endpoint_files(options.folder).items():
            print(f"{len(content):>14,}  {name}, for Inference Endpoints")
        print(f"\n{build_card(options.folder, options.repo_id, options.license_id)}")
        return 0
    done = publish(
        options.folder,
        options.repo_id,
        create_pr=options.create_pr,
        private=options.private,
        license_id=options.license_id,
    )
    print(done.pr_url or f"https://huggingface.co/{options.repo_id}")
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Export, and say what the check found."""
    from plume.hub.export import export

    given = {name: value for name, value in vars(options).items() if name in ("opset", "revision") and value}
    worst = export(options.model, options.folder, int8=options.int8, **given)
    if options.int8:
        found = f"cosines with the model's vectors are at least {1 - worst:.5f}"
    else:
        found = f"vectors differ from the model's by at most {worst:.1e}"
    print(f"{options.folder}: {found}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.

    Returns:
        The exit status.
    """
    options = build_parser().parse_args(arguments)
    return options.command(options)


if __name__ == "__main__":
    sys.exit(main())
