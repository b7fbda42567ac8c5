"""Pictures of the world, with PIL alone: boxes, spreadsheet cells, pages. A cell is one visual token (28 px)."""

from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": "#e02020",
    "green": "#20b040",
    "blue": "#2040e0",
    "yellow": "#f0d020",
    "purple": "#9030c0",
    "orange": "#f08020",
    "cyan": "#20c8d8",
    "pink": "#f080b8",
    "brown": "#805030",
}
DIGITS = {"one": "1", "four": "4", "seven": "7", "eight": "8"}  # said in words: a digit is no token with its space
SIGNS = ("cross", "bar", "dot", "ring")
CELL = 28  # pixels: 2x2 patches of 14, merged into one visual token
_EDGE = 6
_INK, _PAPER = "black", "white"


def draw_sign(pen: ImageDraw.ImageDraw, sign: str, left: int, top: int, size: int = 12) -> None:
    """Draw one of :data:`SIGNS` into a square of ``size`` pixels."""
    right, bottom = left + size - 1, top + size - 1
    if sign == "cross":
        pen.line((left, top, right, bottom), fill=_INK, width=3)
        pen.line((left, bottom, right, top), fill=_INK, width=3)
    elif sign == "bar":
        pen.rectangle((left, top + size // 3, right, bottom - size // 3), fill=_INK)
    elif sign == "dot":
        pen.ellipse((left + 2, top + 2, right - 2, bottom - 2), fill=_INK)
    else:
        pen.ellipse((left, top, right, bottom), outline=_INK, width=2)


def draw_box(name: str, content: str | None) -> Image.Image:
    """A box: its border has the color ``name``; it holds a key (a disc of another color), a sign, or nothing."""
    box = Image.new("RGB", (CELL, CELL), COLORS[name])
    pen = ImageDraw.Draw(box)
    pen.rectangle((_EDGE, _EDGE, CELL - _EDGE - 1, CELL - _EDGE - 1), fill=_PAPER)
    if content in COLORS:
        pen.ellipse((_EDGE + 2, _EDGE + 2, CELL - _EDGE - 3, CELL - _EDGE - 3), fill=COLORS[content])
    elif content is not None:
        draw_sign(pen, content, _EDGE + 2, _EDGE + 2)
    return box


@cache
def _glyph(character: str) -> Image.Image:
    """A bold character that fills its half of a cell, as a mask."""
    mask = Image.new("L", (4 * CELL, 4 * CELL))
    font = ImageFont.load_default(3 * CELL)
    ImageDraw.Draw(mask).text((2 * CELL, 2 * CELL), character, fill=255, font=font, anchor="mm", stroke_width=5)
    return mask.crop(mask.getbbox()).resize((CELL // 2 - 3, CELL - 4), Image.Resampling.LANCZOS)


def draw_cell(name: str, content: str) -> Image.Image:
    """A table cell: its name on a dark left half, what it holds (another name, or a number) on the right half."""
    cell, half = Image.new("RGB", (CELL, CELL), _PAPER), CELL // 2
    pen = ImageDraw.Draw(cell)
    pen.rectangle((0, 0, half - 1, CELL - 1), fill="#203080")
    pen.rectangle((0, 0, CELL - 1, CELL - 1), outline="#b0b0b0")
    ink = "#c02020" if content in DIGITS else _INK
    for character, left, color in ((name, 2, _PAPER), (DIGITS.get(content, content), half + 1, ink)):
        glyph = _glyph(character)
        cell.paste(Image.new("RGB", glyph.size, color), (left, 2), glyph)
    return cell


def arrange(cells: Sequence[Image.Image | None], columns: int, title: str | None = None) -> Image.Image:
    """Lay cells out in rows of ``columns``; None leaves a place blank, a title makes it a page with a head."""
    rows, head = -(-len(cells) // columns), CELL if title else 0
    picture = Image.new("RGB", (CELL * columns, CELL * rows + head), "#f4f4f4" if title else "#d8d8d8")
    if title:
        pen = ImageDraw.Draw(picture)
        pen.text((4, 4), title, fill="#404040", font=ImageFont.load_default(14))
        pen.line((4, CELL - 4, CELL * columns - 5, CELL - 4), fill="#909090")
    for place, cell in enumerate(cells):
        if cell is not None:
            picture.paste(cell, (place % columns * CELL, place // columns * CELL + head))
    return picture


def enlarge(cell: Image.Image) -> Image.Image:
    """A cell at twice its size, as a picture of its own."""
    return cell.resize((2 * CELL, 2 * CELL), Image.Resampling.NEAREST)
