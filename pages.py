"""Pages of PDF files as pictures, with their numbers (extra ``pdf``)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

MAX_PIXELS = 1280 * 28 * 28  # as many as Qwen2-VL looks at by default


def pdf_pages(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[int, Image.Image]]:
    """The pages of a PDF, one at a time.

    Args:
        path: The file.
        max_pixels: Area of a picture; the scale of a page follows from it.

    Yields:
        Page number, from 1, and picture.

    Raises:
        ValueError: If the file is missing, damaged or locked, or a page cannot be rendered.
    """
    for number in range(1, count_pages(path) + 1):
        yield number, render_page(path, number, max_pixels)


def count_pages(path: str | os.PathLike) -> int:
    """Number of pages of a PDF.

    Raises:
        ValueError: If the file is missing, damaged or locked.
    """
    with _open(path) as pdf:
        return len(pdf)


def render_page(path: str | os.PathLike, number: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """One page of a PDF as a picture.

    Args:
        path: The file.
        number: Page number, from 1.
        max_pixels: Area of the picture.

    Raises:
        ValueError: If the file is missing, damaged or locked, or the page cannot be rendered.
    """
    with _open(path) as pdf:
        if not 1 <= number <= len(pdf):
            raise ValueError(f"The PDF {os.fspath(path)!r} has {len(pdf)} pages, and no page {number}.")
        page = pdf[number - 1]
        width, height = page.get_size()
        scale = (max_pixels / max(width * height, 1)) ** 0.5
        return page.render(scale=scale).to_pil().convert("RGB")


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Any]:
    try:
        import pypdfium2  # the extra `pdf`; imported here, because `import plume` must stay light
    except ImportError as error:
        raise ImportError("PDF files need pypdfium2: pip install 'plume-embedding[pdf]'.") from error
    if not os.path.isfile(path):
        raise ValueError(f"The PDF {os.fspath(path)!r} does not exist. Check the path.")
    try:
        with pypdfium2.PdfDocument(path) as pdf:
            yield pdf
    except pypdfium2.PdfiumError as error:
        locked = "password" in str(error).lower()
        why = "encrypted and needs a password. Save it without one." if locked else f"damaged ({error}). Repair it."
        raise ValueError(f"The PDF {os.fspath(path)!r} is {why}") from error
