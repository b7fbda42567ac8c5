"""What a writer is asked, and how its reply is read.

The words are ours. They are part of every stored reply's key (:func:`~plume.training.rationales.plan`), so a reply to
other words is never taken for one to these.
"""

import re
from base64 import b64decode
from typing import NamedTuple

from PIL import Image

from plume.training.data import Side
from plume.vision_plume import load_clip, load_image

VERSION = 1
_FORM = (
    "Reply in exactly this form, with nothing outside the tags:\n"
    "<thinking>At most six short sentences, one finding each, each building on the ones before.</thinking>\n"
    "<answer>{answer}</answer>"
)
# A side is asked without the other one: at inference a query does not know what it will find.
PROMPTS = {
    "query": (
        "Below is what someone searches with: a text, pictures, or both. Work out step by step what they are looking "
        "for. Do not talk to them.\n" + _FORM.format(answer="One phrase that says what would match.")
    ),
    "positive": (
        "Below is an item that people search for: a text, pictures, or both. Work out step by step what it shows or "
        "says, and what sets it apart.\n" + _FORM.format(answer="One phrase that says what the item is.")
    ),
}
NUM_FRAMES = 8  # frames of a clip that a writer sees
_LONGEST_SIDE = 1024
# <thinking>, not <think>: that one is a control token of some models, and some servers cut it out of the reply.
_THINKING = re.compile(r"<(think|thinking)>(.*?)</\1>", re.DOTALL)
# What a training row could not hold: marks of its own, NUL, half of a surrogate pair.
_UNUSABLE = re.compile(r"</?(?:think|answer)|[\0\ud800-\udfff]")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Rationale(NamedTuple):
    """What a writer found: its thinking and its answer."""

    thinking: str
    answer: str

    def as_reply(self) -> str:
        """The rationale as training rows hold it."""
        return f"<think>{self.thinking}</think><answer>{self.answer}</answer>"


class FormatError(ValueError):
    """A reply that holds no rationale; ``kind`` is the fault, for counting."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"the reply has {kind}; it begins {text[:120]!r}")
        self.kind = kind


def parse_reply(text: str, is_cut: bool = False) -> Rationale:
    """Read a reply.

    Args:
        text: What the writer said.
        is_cut: Whether it ran into the limit of tokens.

    Raises:
        FormatError: If thinking or answer is missing or empty.
    """
    # A model that thinks by itself does so first, in tags of its own.
    thinking = [found[2].strip() for found in _THINKING.finditer(text)]
    answer = [found[1].strip() for found in _ANSWER.finditer(text)]
    if not text.strip():
        raise FormatError("no text", text)
    if not (thinking and answer) and is_cut:
        raise FormatError("no end within --max-tokens", text)
    for name, parts in (("thinking", thinking), ("answer", answer)):
        if not (parts and parts[-1]):
            raise FormatError(f"no {name}", text)
    found = Rationale(thinking[-1], answer[-1])
    if _UNUSABLE.search(found.thinking + found.answer):
        raise FormatError("tags within tags or characters that no row can hold", text)
    return found


def parts_of(side: Side, kind: str) -> list[str | Image.Image]:
    """What a writer reads of one side: the prompt, then pictures, frames of clips, and the text.

    Raises:
        ValueError: If a picture or clip cannot be read.
    """
    parts: list[str | Image.Image] = [PROMPTS[kind], *(_shrink(load_image(image)) for image in side.images)]
    for video in side.videos:
        source = list(video) if isinstance(video, tuple) else _file(video)
        parts += ["Frames of a clip, in order:", *map(_shrink, load_clip(source, NUM_FRAMES).frames)]
    return [*parts, f"The text:\n{side.text}"] if side.text else parts


def _file(video: str) -> str | bytes:
    return b64decode(video.partition(",")[2]) if video.startswith("data:") else video


def _shrink(picture: Image.Image) -> Image.Image:
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return picture
