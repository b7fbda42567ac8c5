"""Draw the pictures, the clip and the page in examples/media/: run once, results are committed.

python examples/make_media.py
"""

import random
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

from plume.playground.tasks import TASKS, draw_example

MEDIA = Path(__file__).parent / "media"
SKY, GRASS, ROAD, SEA = "#cfe8fa", "#7db46c", "#8a8a92", "#2f6f9f"


def draw_bus() -> Image.Image:
    """A red bus at a stop."""
    picture = Image.new("RGB", (280, 196), SKY)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 140, 280, 196), fill=ROAD)
    pen.rounded_rectangle((30, 60, 210, 150), 12, fill="#c8281e")
    for left in range(44, 190, 40):
        pen.rectangle((left, 74, left + 30, 102), fill="#f4f7fa")
    for left in (56, 160):
        pen.ellipse((left, 134, left + 30, 164), fill="#222226")
    pen.line((244, 60, 244, 150), fill="#44444a", width=4)
    pen.rectangle((230, 44, 260, 66), fill="#f2c230")
    return picture


def draw_boat() -> Image.Image:
    """A sailing boat in front of the setting sun."""
    picture = Image.new("RGB", (280, 196), "#f6b26b")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((170, 60, 250, 140), fill="#f7e27c")
    pen.rectangle((0, 120, 280, 196), fill=SEA)
    pen.polygon([(70, 130), (190, 130), (168, 156), (92, 156)], fill="#6d4527")
    pen.polygon([(126, 30), (126, 124), (78, 124)], fill="#fbfbf6")
    pen.polygon([(134, 46), (134, 124), (178, 124)], fill="#e8e4d8")
    return picture


def draw_mountain() -> Image.Image:
    """A mountain with snow above a meadow."""
    picture = Image.new("RGB", (280, 196), SKY)
    pen = ImageDraw.Draw(picture)
    pen.polygon([(20, 160), (130, 30), (240, 160)], fill="#6f7480")
    pen.polygon([(130, 30), (100, 66), (120, 60), (134, 74), (146, 58), (160, 66)], fill="#ffffff")
    pen.rectangle((0, 150, 280, 196), fill=GRASS)
    return picture


def draw_page() -> Image.Image:
    """A page with a bus timetable."""
    page = Image.new("RGB", (336, 448), "#fffdf7")
    pen = ImageDraw.Draw(page)
    pen.text((24, 20), "Bus timetable, line 7", fill="#1d1d22", font=ImageFont.load_default(22))
    rows = [("Stop", "Weekday", "Sunday"), ("Harbour", "08:10", "09:40"), ("Museum", "08:22", "09:52")]
    rows += [("Station", "08:31", "10:01"), ("Hospital", "08:45", "10:15")]
    for line, row in enumerate(rows):
        top = 72 + 44 * line
        pen.line((24, top - 10, 312, top - 10), fill="#b8b4a8")
        for column, cell in enumerate(row):
            pen.text((28 + 100 * column, top), cell, fill="#1d1d22", font=ImageFont.load_default(17))
    pen.text((24, 320), "Tickets are sold on board.", fill="#1d1d22", font=ImageFont.load_default(16))
    return page


def draw_boxes() -> Image.Image:
    """A puzzle of the playground: asked to "open purple", plume-tiny finds "box yellow cross"."""
    picture = draw_example(TASKS["image-chain"], random.Random("demo-image-chain-0"), "test").query.image
    assert picture is not None
    return picture


def draw_ball(step: int, steps: int) -> Image.Image:
    """One frame of a blue ball that rolls from left to right."""
    frame = Image.new("RGB", (168, 112), "#f1efe8")
    pen = ImageDraw.Draw(frame)
    pen.rectangle((0, 90, 168, 112), fill="#a9977c")
    left = 4 + step * (168 - 44) // (steps - 1)
    pen.ellipse((left, 52, left + 38, 90), fill="#2456c7")
    return frame


def save_clip(path: Path, steps: int = 24) -> None:
    """Encode the rolling ball as MP4 (MPEG-4, 12 frames per second)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 168, 112, "yuv420p"
        for step in range(steps):
            container.mux(stream.encode(av.VideoFrame.from_image(draw_ball(step, steps))))
        container.mux(stream.encode())


def main() -> None:
    """Write all files."""
    MEDIA.mkdir(exist_ok=True)
    pictures = {"bus": draw_bus(), "boat": draw_boat(), "mountain": draw_mountain(), "timetable_page": draw_page()}
    pictures["boxes"] = draw_boxes()
    for name, picture in pictures.items():
        picture.save(MEDIA / f"{name}.png", optimize=True)
    save_clip(MEDIA / "rolling_ball.mp4")


if __name__ == "__main__":
    main()
