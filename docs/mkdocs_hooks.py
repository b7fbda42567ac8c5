"""Hooks of mkdocs: the README as the start page, and links that work on a site without the repository.

1. ``.venv-docs/api/plume`` links to the root files, so that mkdocstrings finds the package by its name.
2. The README becomes ``index.md``, with its links as seen from ``docs/``.
3. Links to files outside ``docs/`` become plain text: the site holds the pages, not the code.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<!!)\[((?:[^][]|\[[^]]*\])+)\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):(?:<code>~?|`~?)")


def on_startup(command: str, dirty: bool) -> None:
    """1. A folder ``plume`` with the root files, whatever the clone is called."""
    package = ROOT / ".venv-docs" / "api" / "plume"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for module in ROOT.glob("*.py"):
        (package / module.name).symlink_to(module)


def on_files(files: Any, config: Any) -> Any:
    """2. The start page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """3. Links that leave the site lose their target."""
    here = Path(page.file.src_uri).parent

    def keep_or_drop(match: re.Match[str]) -> str:
        place = ROOT / "docs" / here / match[2]
        inside = place.is_file() and place.resolve().is_relative_to(ROOT / "docs")
        return match[0] if inside else match[1]

    return _LINK.sub(keep_or_drop, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Roles of the docstrings, such as ``:func:``, are not shown."""
    return _ROLE.sub("<code>", html)
