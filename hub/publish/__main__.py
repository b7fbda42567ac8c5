"""``plume publish FOLDER org/name``: a checkpoint folder on the Hub, with a card from its own files."""

from pathlib import Path

from plume.arguments import ArgumentParser
from plume.hub.publish import build_card, files_to_publish, publish


def main(arguments: list[str] | None = None) -> None:
    """Print what would go up, or upload it.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="plume publish", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder")
    parser.add_argument("repo_id", help="repository, org/name")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--license", dest="license_id", help="SPDX id of the weights' licence")
    parser.add_argument("--dry-run", action="store_true", help="print files and card, upload nothing")
    options = parser.parse_args(arguments)
    if options.dry_run:
        for path in files_to_publish(options.folder):
            print(f"{path.stat().st_size:>14,}  {path.relative_to(options.folder)}")
        print(f"\n{build_card(options.folder, options.repo_id, options.license_id)}")
        return
    done = publish(
        options.folder,
        options.repo_id,
        create_pr=options.create_pr,
        private=options.private,
        license_id=options.license_id,
    )
    print(done.pr_url or f"https://huggingface.co/{options.repo_id}")


if __name__ == "__main__":
    main()
