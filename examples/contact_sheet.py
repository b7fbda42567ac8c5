"""Draw ranked retrieval results: one row per query, its best documents from left to right."""

from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

from plume.vision_plume import load_clip, load_image

TILE, GAP, CAPTION = 150, 14, 22
_TEXT = 36
INK, MUTED, PAPER, CARD, RIGHT, WRONG = "#22252b", "#7a7f89", "#ffffff", "#f2f3f5", "#2e8b57", "#c0392b"


def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font with more letters than Pillow's own."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def thumbnail(item: Any) -> Image.Image:
    """A square picture of any input: the text itself, the image, or a strip of video frames."""
    tile = Image.new("RGB", (TILE, TILE), CARD)
    content = item if isinstance(item, dict) else {"text": item}
    room = (TILE, TILE if "text" not in content else TILE - _TEXT)  # a text stands below its picture
    if "video" in content:
        frames = load_clip(content["video"], num_frames=3).frames
        strip = Image.new("RGB", (frames[0].width, sum(frame.height + 4 for frame in frames)), CARD)
        for place, frame in enumerate(frames):
            strip.paste(frame, (0, place * (frame.height + 4)))
        tile.paste(ImageOps.pad(strip, room, color=CARD))
    elif "image" in content:
        tile.paste(ImageOps.pad(load_image(content["image"]), room, color=CARD))
    if "text" in content:
        text = _wrap(content["text"], _font(12), TILE - 20)
        pen = ImageDraw.Draw(tile)
        if len(content) == 1:
            pen.multiline_text((10, TILE // 2), text, fill=INK, font=_font(12), anchor="lm")
        else:
            pen.rectangle((0, TILE - _TEXT, TILE, TILE), fill=PAPER)
            pen.multiline_text((6, TILE - _TEXT // 2), text, fill=INK, font=_font(10), anchor="lm")
    return tile


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def draw(
    path: Path,
    title: str,
    rows: list[tuple[str, Any, list[tuple[Any, float, bool | None]]]],
    abreast: int = 1,
) -> None:
    """Write a contact sheet.

    Args:
        path: PNG file.
        title: Heading.
        rows: Per query a caption, its input and its best documents as (input, similarity, right or wrong or unknown).
        abreast: Rows side by side.
    """
    columns = 1 + max(len(ranked) for _, _, ranked in rows)
    width = GAP + columns * (TILE + GAP) + GAP
    lines = -(-len(rows) // abreast)
    sheet = Image.new("RGB", (abreast * width, 56 + lines * (TILE + CAPTION + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 14), title, fill=INK, font=ImageFont.load_default(18))
    for number, (caption, query, ranked) in enumerate(rows):
        start, top = width * (number // lines), 52 + number % lines * (TILE + CAPTION + GAP)
        sheet.paste(thumbnail(query), (start + GAP, top))
        pen.text((start + GAP, top + TILE + 4), caption, fill=MUTED, font=ImageFont.load_default(13))
        for place, (document, similarity, right) in enumerate(ranked):
            left = start + 2 * GAP + (place + 1) * (TILE + GAP)
            sheet.paste(thumbnail(document), (left, top))
            color = MUTED if right is None else RIGHT if right else WRONG
            pen.rectangle((left - 1, top - 1, left + TILE, top + TILE), outline=color, width=1 if right is None else 3)
            rank = f"{place + 1}.  {similarity:.3f}"
            pen.text((left, top + TILE + 4), rank, fill=color, font=ImageFont.load_default(13))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
