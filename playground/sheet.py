"""A contact sheet: what each task looks like, for people."""

import random
import textwrap

from PIL import Image, ImageDraw, ImageFont

from plume.playground.tasks import TASKS, Item, Task, draw_example

_SCALE, _WIDTH, _TEXT, _MARGIN = 2, 980, 300, 10
_TALLEST = 600
_INK, _FAINT, _RULE = "#202020", "#707070", "#d0d0d0"


def draw_sheet(split: str = "train", seed: int = 0) -> Image.Image:
    """One example of every task, with its question, its rationale and what should be found.

    Args:
        split: Whose layouts to draw.
        seed: Seed of the examples.
    """
    rows = [_draw_row(task, split, seed) for task in TASKS.values()]
    sheet = Image.new("RGB", (_WIDTH, sum(row.height for row in rows) + 2 * _MARGIN), "white")
    top = _MARGIN
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _draw_row(task: Task, split: str, seed: int) -> Image.Image:
    """A strip as high as what is in it."""
    strip = Image.new("RGB", (_WIDTH, _TALLEST), "white")
    example = draw_example(task, random.Random(f"sheet-{task.name}-{seed}"), split)
    pen = ImageDraw.Draw(strip)
    kind = "control" if task.control else f"{task.hops} look-ups"
    pen.line((10, 0, _WIDTH - 10, 0), fill=_RULE)
    pen.text((14, 8), task.name, fill=_INK, font=ImageFont.load_default(18))
    thought = "".join(task.rationale(example)).strip()
    lines = [kind, task.description, "", "thought:", thought, "answer:", example.answer]
    bottom = 34
    for line in lines:
        for piece in textwrap.wrap(line, 44) or [""]:
            pen.text((14, bottom), piece, fill=_FAINT, font=ImageFont.load_default(13))
            bottom += 18
    query = _draw_item(strip, example.query, _TEXT + 20, "query")
    target = _draw_item(strip, example.target, _TEXT + 400, "should be found")
    return strip.crop((0, 0, _WIDTH, max(bottom, query, target) + _MARGIN))


def _draw_item(strip: Image.Image, item: Item, left: int, title: str) -> int:
    """Draw an input; returns where it ends."""
    pen = ImageDraw.Draw(strip)
    pen.text((left, 8), title, fill=_FAINT, font=ImageFont.load_default(13))
    x, top, bottom = left, 30, 30
    pictures = [item.image] if item.image else list(item.video[::2])
    for picture in pictures:
        large = picture.resize((picture.width * _SCALE, picture.height * _SCALE), Image.Resampling.NEAREST)
        strip.paste(large, (x, top))
        x, bottom = x + large.width + 8, max(bottom, top + 4 + large.height)
    for piece in textwrap.wrap(item.text, 46):
        pen.text((left, bottom), piece, fill=_INK, font=ImageFont.load_default(14))
        bottom += 18
    return bottom
