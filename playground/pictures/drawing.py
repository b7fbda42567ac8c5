"""Pictures of every concept in every style, as PNG files of one size on white."""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from plume.playground.pictures.concepts import Concept, key_of, names_to_keys, region_of
from plume.playground.pictures.sources import Archive

EDGE = 60
ICON_SETS = (
    "noto-v1", "fluent-flat", "fluent", "fluent-line", "emojione", "emojione-line", "emojione-v1", "fxemoji",
)  # fmt: skip
STYLES = ("noto", "openmoji", "openmoji-line", *ICON_SETS, "flag-icons", "twemoji")

Draw = Callable[[], Image.Image]


def draw_all(folder: Path, concepts: list[Concept], archives: Mapping[str, Archive], progress: bool = True) -> None:
    """Write ``folder/STYLE/KEY.png`` for everything that a set draws, skin tones included.

    Args:
        folder: Where to.
        concepts: What to draw.
        archives: From :func:`~plume.playground.pictures.sources.fetch`.
        progress: Whether to show progress.
    """
    wanted = {key for concept in concepts for key in (concept.key, *concept.toned.values())}
    for style in STYLES:
        (folder / style).mkdir(parents=True, exist_ok=True)
        drawn = {key: draw for key, draw in _drawings(style, concepts, archives) if key in wanted}
        for key, draw in tqdm(sorted(drawn.items()), desc=style, disable=not progress):
            path = folder / style / f"{key}.png"
            if not path.exists():
                part = path.with_suffix(".part")
                draw().save(part, format="PNG")
                os.replace(part, path)


def _drawings(style: str, concepts: list[Concept], archives: Mapping[str, Archive]) -> Iterator[tuple[str, Draw]]:
    if style in ("noto", "twemoji"):
        folder = f"img/{'google' if style == 'noto' else 'twitter'}/64"
        for name in archives[style].names(folder, ".png"):
            yield key_of(Path(name).stem), lambda name=name: on_white(_open(archives[style].read(name)))  # type: ignore[misc]
    elif style in ("openmoji", "openmoji-line"):
        folder = "color/svg" if style == "openmoji" else "black/svg"
        for name in archives["openmoji"].names(folder, ".svg"):
            yield key_of(Path(name).stem), lambda name=name: render(archives["openmoji"].read(name).decode())  # type: ignore[misc]
    elif style == "flag-icons":
        yield from _flags(concepts, archives[style])
    else:
        yield from _icons(archives[style], names_to_keys(concepts, archives))


def _flags(concepts: list[Concept], archive: Archive) -> Iterator[tuple[str, Draw]]:
    files = {Path(name).stem: name for name in archive.names("flags/4x3", ".svg")}
    for concept in concepts:
        region = region_of(concept.key).lower()
        if region in files:
            yield concept.key, lambda name=files[region]: render(archive.read(name).decode())  # type: ignore[misc]


def _icons(archive: Archive, keys: Mapping[str, str]) -> Iterator[tuple[str, Draw]]:
    content = archive.json("icons.json")
    squeezed = {name.replace("-", ""): key for name, key in keys.items()}
    parents = {name: alias["parent"] for name, alias in content.get("aliases", {}).items() if len(alias) == 1}
    for name in (*parents, *content["icons"]):
        key = keys.get(name) or squeezed.get(name)
        icon = content["icons"].get(parents.get(name, name))
        if key and icon:
            width, height = (icon.get(side, content.get(side, 16)) for side in ("width", "height"))
            box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
            head = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
            )
            yield key, lambda svg=f"{head}{icon['body']}</svg>": render(svg)  # type: ignore[misc]


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def on_white(picture: Image.Image) -> Image.Image:
    """A picture with transparency, on white, in the middle of a square of the common size."""
    picture = picture.convert("RGBA")
    picture.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (EDGE, EDGE), "white")
    place = ((EDGE - picture.width) // 2, (EDGE - picture.height) // 2)
    square.alpha_composite(picture, place)
    return square.convert("RGB")


def render(svg: str) -> Image.Image:
    """Draw an SVG picture, twice as large and then reduced.

    Args:
        svg: Its source.
    """
    import resvg_py  # the extra "pictures"; everything after the build does without

    return on_white(_open(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * EDGE))))
