"""Texts of files, cut into passages: plain text and tables as they are, HTML and Word without their markup.

Pictures, scripts and styles of a page, and pictures, headers and notes of a Word file are left out.
"""

import re
import zipfile
from functools import lru_cache
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

from plume.apps.shared.limits import MediaError

PASSAGE = 1000  # characters; a page of print has about 2500
_SPACE = re.compile(r"\s*")
_MAX_XML = 128 * 1024 * 1024  # bytes of the text of a Word file, which is compressed
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
# A comment, a declaration, or a tag: "<" before anything else is a character.
_TAG = re.compile(r"<!--|<[!?]|</?(?P<name>[a-z][a-z0-9-]*)", re.IGNORECASE)
_TAG_END, _COMMENT_END = re.compile(">"), re.compile("-->")
_HIDDEN = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "template", "noscript")}
_INLINE = {"a", "abbr", "b", "code", "em", "i", "mark", "q", "s", "small", "span", "strong", "sub", "sup", "u"}


@lru_cache(maxsize=1)  # passages are asked for one after the other, and cutting a file takes as long for one as for all
def passages_of(location: Path, stamp: str) -> list[str]:
    """The passages of a text file.

    Args:
        location: The file.
        stamp: Its size and time: the passages are cut again when it changes.

    Raises:
        MediaError: If it is not UTF-8, or no Word file.
    """
    return passages(read_text(location))


def passages(text: str, size: int = PASSAGE) -> list[str]:
    """Cut a text into passages of at most ``size`` characters, at paragraphs, lines, sentences or words if possible.

    >>> passages("One two. Three four.", size=12)
    ['One two.', 'Three four.']
    """
    text = text.strip()
    found, start = [], 0
    while len(text) - start > size:
        cuts = (text.rfind(mark, start + 1, start + size) + len(mark.rstrip()) for mark in ("\n\n", "\n", ". ", " "))
        cut = next((cut for cut in cuts if cut - start > size // 3), start + size)
        found.append(text[start:cut].strip())
        space = _SPACE.match(text, cut)
        assert space is not None, "the pattern matches nothing, too"
        start = space.end()
    return [passage for passage in (*found, text[start:]) if passage]


def read_text(location: Path) -> str:
    """The text of a file.

    Raises:
        MediaError: If it is not UTF-8, or no Word file.
    """
    ending = location.suffix.lower()
    if ending == ".docx":
        return _read_word(location)
    try:
        text = location.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MediaError(f"The text is not UTF-8 ({error.reason}).") from error
    if ending in (".html", ".htm"):
        return _read_page(text)
    return text


def _read_page(text: str) -> str:
    """What a browser would show of a page, a line per block.

    Python's own parser is quadratic in comments and tags that do not end. This loop looks at each character once.
    """
    shown, place = [], 0
    while (start := text.find("<", place)) >= 0:
        shown.append(text[place:start].replace("\n", " "))
        tag = _TAG.match(text, start)
        if tag is None:
            shown.append("<")
            place = start + 1
            continue
        name = (tag["name"] or "").lower()
        hidden = name in _HIDDEN and tag[0][1] != "/"
        mark = _HIDDEN[name] if hidden else _COMMENT_END if tag[0] == "<!--" else _TAG_END
        end = mark.search(text, tag.end())
        if end is None:
            return _tidy(shown)
        shown.append("" if name in _INLINE else "\n")
        place = end.start() if hidden else end.end()
    return _tidy([*shown, text[place:]])


def _tidy(shown: list[str]) -> str:
    lines = (" ".join(line.split()) for line in unescape("".join(shown)).split("\n"))
    return "\n".join(line for line in lines if line)


def _read_word(location: Path) -> str:
    try:
        with zipfile.ZipFile(location) as file:
            if file.getinfo("word/document.xml").file_size > _MAX_XML:
                raise MediaError(f"The text of the Word file has more than {_MAX_XML} bytes. Split it.")
            tree = ElementTree.fromstring(file.read("word/document.xml"))
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, NotImplementedError, RuntimeError) as error:
        raise MediaError(f"The Word file is damaged or locked ({error}).") from error
    paragraphs = tree.iter(f"{_WORD}p")
    return "\n".join("".join(run.text or "" for run in one.iter(f"{_WORD}t")) for one in paragraphs)
