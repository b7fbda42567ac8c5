"""The tasks of the world: ten ways to ask about a puzzle, each with its answer and the thought that leads there.

A multi-hop task needs as many look-ups, one after another, as its hop count; a *control* needs at most one, so thinking
should not matter there. Rationales are one short sentence per look-up.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from plume.playground.drawing import CELL, COLORS, DIGITS, SIGNS, arrange, draw_box, draw_cell, enlarge
from plume.playground.puzzles import Puzzle, make_puzzle, split_of

LETTERS = tuple("AHJLOTVXZ")  # apart enough to be read at this size
HOPS = 3
EXTRAPOLATION = (2, 4)
LONGER = (5, 6)  # extrapolation where the chains of a training set vary from one to four
_SCENES = 3  # scenes of a clip, three boxes each
_FRAMES = 2  # frames of a scene: one temporal patch
PLAIN = (" here.",)  # what is written as the thought of a control: nothing has to be followed


@dataclass(frozen=True)
class Item:
    """One input: text, and an image or the frames of a clip."""

    text: str = ""
    image: Image.Image | None = None
    video: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Example:
    """One query with its answer.

    Attributes:
        query: The input.
        target: What should be found.
        others: Further candidates of a local pool; empty where all targets of the task are candidates.
        thought: The rationale, one sentence per look-up.
        answer: The answer in words.
        layout: What must not be shared between splits.
    """

    query: Item
    target: Item
    others: tuple[Item, ...]
    thought: tuple[str, ...]
    answer: str
    layout: object


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes:
        name: Its name.
        make: Draws an example with so many look-ups.
        description: What is asked, for people.
        control: Whether thinking should not matter.
        hops: Look-ups in training and test.
        targets: ``"text"``, ``"image"``, ``"video"`` or ``"page"``.
        extrapolates: Whether other hop counts make sense.
        needs_media: Whether the text of the query alone says nothing about the answer.
        fewest: Look-ups that it takes at least where chains vary in one training set; a control keeps its number.
    """

    name: str
    make: Callable[[random.Random, int], Example]
    description: str
    control: bool
    hops: int
    targets: str
    extrapolates: bool = field(default=False)
    needs_media: bool = field(default=True)
    fewest: int = field(default=1)

    def lookups(self, varied: Sequence[int]) -> tuple[int, ...]:
        """Its numbers of look-ups in a world whose chains vary so; its own where they do not."""
        fitting = () if self.control else tuple(hops for hops in varied if hops >= self.fewest)
        return fitting or (self.hops,)

    def rationale(self, example: Example) -> tuple[str, ...]:
        """What is written down as the thought: that of a control is plain, since nothing has to be followed."""
        return PLAIN if self.control else example.thought


def _answer(name: str, sign: str) -> str:
    return f"box {name} {sign}"


def _thought(chain: tuple[str, ...]) -> tuple[str, ...]:
    """What each look-up finds, one sentence each.

    The start of the chain is no sentence: it could be copied, and the latent steps that replace it would learn nothing.
    """
    return tuple(f" {step}." for step in chain[1:])


def _draw(rng: random.Random, hops: int) -> tuple[Puzzle, tuple[str, ...]]:
    """A puzzle of boxes and the chain that is asked for; for one look-up, the end of a chain."""
    puzzle = make_puzzle(rng, tuple(COLORS), SIGNS, hops)
    chain = rng.choice([chain for chain in puzzle.chains if len(chain) > hops])
    return puzzle, chain[-hops - 1 :]


def _boxes(puzzle: Puzzle, hidden: str | None = None) -> list[Image.Image | None]:
    """The boxes in their places; the one named ``hidden`` is shown empty."""
    pairs = zip(puzzle.names, puzzle.contents, strict=True)
    return [draw_box(name, None if name == hidden else content) for name, content in pairs]


def _picture(puzzle: Puzzle, hidden: str | None = None) -> Image.Image:
    return arrange(_boxes(puzzle, hidden), columns=3)


def _box_pictures(puzzle: Puzzle, end: str) -> tuple[Item, tuple[Item, ...]]:
    """The box at the end of the chain, and the other boxes of the puzzle, as pictures."""
    pictures = {n: Item(image=enlarge(draw_box(n, c))) for n, c in zip(puzzle.names, puzzle.contents, strict=True)}
    return pictures.pop(end), tuple(pictures.values())


def open_boxes(rng: random.Random, hops: int, verb: str = "open") -> Example:
    """Picture of boxes: which box does the chain end in, and what is its sign? Answered in words.

    With one look-up and the verb "look" it is the control: what is in this box?
    """
    puzzle, chain = _draw(rng, hops)
    answer = _answer(*chain[-2:])
    return Example(
        Item(f"{verb} {chain[0]}", _picture(puzzle)),
        Item(answer),
        (),
        _thought(chain),
        answer,
        (puzzle.names, puzzle.contents),
    )


def crop_boxes(rng: random.Random, hops: int) -> Example:
    """Picture of boxes: which crop of it shows the end of the chain?"""
    puzzle, chain = _draw(rng, hops)
    target, others = _box_pictures(puzzle, chain[-2])
    layout = (puzzle.names, puzzle.contents)
    return Example(
        Item(f"crop {chain[0]}", _picture(puzzle)), target, others, _thought(chain), _answer(*chain[-2:]), layout
    )


def mixed_boxes(rng: random.Random, hops: int) -> Example:
    """Picture and text: one box of the chain is shown empty, the text says what it holds."""
    puzzle, chain = _draw(rng, hops)
    hidden = rng.choice(chain[:-2])
    target, others = _box_pictures(puzzle, chain[-2])
    text = f"mix {hidden} {puzzle.holds(hidden).capitalize()}, crop {chain[0]}"
    layout = (puzzle.names, puzzle.contents)
    return Example(Item(text, _picture(puzzle, hidden)), target, others, _thought(chain), _answer(*chain[-2:]), layout)


def read_page(rng: random.Random, hops: int) -> Example:
    """A page with a table whose cells refer to each other: which number does a cell come to?"""
    puzzle = make_puzzle(rng, LETTERS, tuple(DIGITS), hops)
    chain = rng.choice([chain for chain in puzzle.chains if len(chain) > hops])[-hops - 1 :]
    cells = [draw_cell(name, content) for name, content in zip(puzzle.names, puzzle.contents, strict=True)]
    answer = f"cell {chain[-2]} {chain[-1]}"
    layout = (puzzle.names, puzzle.contents)
    return Example(
        Item(f"read {chain[0]}", arrange(cells, 3, "Table")), Item(answer), (), _thought(chain), answer, layout
    )


def follow_text(rng: random.Random, hops: int) -> Example:
    """Text alone: what each box holds, and the box to start from; the answer is a picture.

    A color has another spelling where it holds, is held and is asked for: two layers must tell the three apart before
    they look anything up.
    """
    puzzle, chain = _draw(rng, hops)
    facts = " ".join(
        f"{name} {content.capitalize()}," for name, content in zip(puzzle.names, puzzle.contents, strict=True)
    )
    target, others = _box_pictures(puzzle, chain[-2])
    layout = (puzzle.names, puzzle.contents)
    return Example(
        Item(f"holds {facts} show {chain[0].upper()}"), target, others, _thought(chain), _answer(*chain[-2:]), layout
    )


def _scene(boxes: list[Image.Image | None], rng: random.Random) -> tuple[Image.Image, ...]:
    places = [*boxes, None]
    rng.shuffle(places)
    return (arrange(places, columns=2),) * _FRAMES


def track_clip(rng: random.Random, hops: int) -> Example:
    """A clip of scenes, the first with the first boxes of the chains and so on: which box does the ball end in?"""
    puzzle, chain = _draw(rng, max(hops, HOPS))  # a scene shows three boxes, so there are three chains at most
    chain = chain[-hops - 1 :]
    longest = max(len(chain) for chain in puzzle.chains) - 1
    frames: list[Image.Image] = []
    for step in range(longest):
        names = [chain[step] for chain in puzzle.chains if step < len(chain) - 1][:_SCENES]
        boxes: list[Image.Image | None] = [draw_box(name, puzzle.holds(name)) for name in names]
        frames += _scene([*boxes, *[None] * (_SCENES - len(boxes))], rng)
    pairs = zip(puzzle.names, puzzle.contents, strict=True)
    clips = {name: Item(video=(enlarge(draw_box(name, content)),) * _FRAMES) for name, content in pairs}
    target = clips.pop(chain[-2])
    return Example(
        Item(f"track {chain[0]}", video=tuple(frames)),
        target,
        tuple(clips.values()),
        _thought(chain),
        _answer(*chain[-2:]),
        (puzzle.names, puzzle.contents),
    )


def find_moment(rng: random.Random, hops: int) -> Example:
    """A clip of scenes in any order: in which scene is the end of the chain?"""
    puzzle, chain = _draw(rng, hops)
    boxes = _boxes(puzzle)
    scenes = [_scene(boxes[3 * index : 3 * index + 3], rng) for index in range(_SCENES)]
    found = puzzle.names.index(chain[-2]) // 3
    clips = [Item(video=scene) for scene in scenes]
    others = [clip for index, clip in enumerate(clips) if index != found]
    while len(others) < 9:
        other, _ = _draw(rng, HOPS)
        first = rng.randrange(3) * 3
        others.append(Item(video=_scene(_boxes(other)[first : first + 3], rng)))
    return Example(
        Item(f"find {chain[0]}", video=tuple(frame for scene in scenes for frame in scene)),
        clips[found],
        tuple(others),
        _thought(chain),
        _answer(*chain[-2:]),
        (puzzle.names, puzzle.contents),
    )


def name_box(rng: random.Random, hops: int) -> Example:
    """Control, classification: a picture of one box somewhere between empty places, and its words."""
    name, sign = rng.choice(list(COLORS)), rng.choice(SIGNS)
    background = tuple(rng.randint(180, 255) for _ in range(3))
    left, top = (rng.choice((0, CELL)) + rng.randint(-2, 2) for _ in range(2))
    picture = Image.new("RGB", (2 * CELL, 2 * CELL), background)
    picture.paste(draw_box(name, sign), (left, top))
    answer = _answer(name, sign)
    return Example(Item("name", picture), Item(answer), (), (f" {sign}.",), answer, (name, sign, background, left, top))


def find_page(rng: random.Random, hops: int) -> Example:
    """Control, page retrieval: the page that bears a box and a sign in its head."""
    name, sign = rng.choice(list(COLORS)), rng.choice(SIGNS)
    puzzle = make_puzzle(rng, LETTERS, tuple(DIGITS), HOPS)
    cells = [draw_cell(name_, content) for name_, content in zip(puzzle.names, puzzle.contents, strict=True)]
    page = arrange(cells[:6], 3, " ")
    page.paste(draw_box(name, sign), (0, 0))
    answer = _answer(name, sign)
    return Example(
        Item(f"page {name} {sign}"),
        Item(image=page),
        (),
        (f" {sign}.",),
        answer,
        (name, sign, puzzle.names, puzzle.contents),
    )


TASKS = {
    task.name: task
    for task in (
        Task("image-chain", open_boxes, "Follow the keys; name the last box.", False, HOPS, "text", True),
        Task("image-crop", crop_boxes, "Follow the keys; pick the crop of the last box.", False, HOPS, "image", True),
        Task("mixed-chain", mixed_boxes, "One key is in the text, not in the picture.", False, HOPS, "image", fewest=2),
        Task("document-chain", read_page, "Follow the cells of a table to a number.", False, HOPS, "text", True),
        Task(
            "text-chain", follow_text, "Follow the keys in a text; pick the picture.", False, HOPS, "image", True, False
        ),
        Task("video-track", track_clip, "Follow the ball from scene to scene.", False, HOPS, "video"),
        Task("video-moment", find_moment, "Pick the scene in which the chain ends.", False, HOPS, "video"),
        Task("image-name", name_box, "Name the box.", True, 0, "text"),
        Task("image-look", partial(open_boxes, verb="look"), "What is in the box? One look-up.", True, 1, "text"),
        Task("page-find", find_page, "Find the page with this box in its head.", True, 0, "page", False, False),
    )
}


def draw_example(task: Task, rng: random.Random, split: str, hops: int | None = None) -> Example:
    """An example of a task whose layout belongs to a split.

    Args:
        task: The task.
        rng: Source of randomness.
        split: ``"train"``, ``"dev"`` or ``"test"``.
        hops: Look-ups. Defaults to the task's own.
    """
    while True:
        example = task.make(rng, task.hops if hops is None else hops)
        if split_of(example.layout) == split:
            return example
