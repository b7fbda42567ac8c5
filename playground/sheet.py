"""A contact sheet: what each task looks like, for people."""

import random
import textwrap

from PIL import Image, ImageDraw, ImageFont

from plume.playground.tasks import TASKS, Item, Task, draw_example

_SCALE, _WIDTH, _HEIGHT, _TEXT = 2, 980, 300, 300
_INK, _FAINT, _RULE = "#202020", "#707070", "#d0d0d0"


def draw_sheet(split: str = "train", seed: int = 0) -> Image.Image:
    """One example of every task, with its question, its rationale and what should be found.

    Args:
        split: Whose layouts to draw.
        seed: Seed of the examples.
    """
    sheet = Image.new("RGB", (_WIDTH, _HEIGHT * len(TASKS) + 20), "white")
    for row, task in enumerate(TASKS.values()):
        _draw_row(sheet, task, split, seed, 10 + row * _HEIGHT)
    return sheet


def _draw_row(sheet: Image.Image, task: Task, split: str, seed: int, top: int) -> None:
    example = draw_example(task, random.Random(f"sheet-{task.name}-{seed}"), split)
    pen = ImageDraw.Draw(sheet)
    kind = "control" if task.control else f"{task.hops} look-ups"
    pen.line((10, top, _WIDTH - 10, top), fill=_RULE)
    pen.text((14, top + 8), task.name, fill=_INK, font=ImageFont.load_default(18))
    thought = "".join(task.rationale(example)).strip()
    lines = [kind, task.description, "", "thought:", thought, "answer:", example.answer]
    y = top + 34
    for line in lines:
        for piece in _wrap(line, 44):
            pen.text((14, y), piece, fill=_FAINT, font=ImageFont.load_default(13))
            y += 18
    _draw_item(sheet, example.query, (_TEXT + 20, top + 8), "query")
    _draw_item(sheet, example.target, (_TEXT + 400, top + 8), "should be found")


def _draw_item(sheet: Image.Image, item: Item, corner: tuple[int, int], title: str) -> None:
    pen, (left, top) = ImageDraw.Draw(sheet), corner
    pen.text((left, top), title, fill=_FAINT, font=ImageFont.load_default(13))
    x, bottom = left, top + 22
    pictures = [item.image] if item.image else list(item.video[::2])
    for picture in pictures:
        large = picture.resize((picture.width * _SCALE, picture.height * _SCALE), Image.Resampling.NEAREST)
        sheet.paste(large, (x, top + 22))
        x, bottom = x + large.width + 8, max(bottom, top + 26 + large.height)
    for number, piece in enumerate(_wrap(item.text, 46)):
        pen.text((left, bottom + number * 18), piece, fill=_INK, font=ImageFont.load_default(14))


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]
