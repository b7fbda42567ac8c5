"""Video question answering: a clip and a question with its options against the options.

The five data sets write options differently, and the differences change vectors, so each is spelled out. The
instruction ends in a space, so two spaces precede the question.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plume.evaluation.parsers.common import Item, MediaFiles, Parsed

_YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        clip: Folder of its frames.
        text: The question with its options.
        options: Key of an option -> its text as a candidate.
        answer: Key of the right option.
    """

    clip: str
    text: str
    options: dict[str, str]
    answer: str


def _lettered(question: str, options: list[str]) -> tuple[str, list[str]]:
    lettered = [f"({chr(ord('A') + index)}) {option}" for index, option in enumerate(options)]
    return "\n".join([question, "Options:", *lettered]).rstrip(), lettered


def _without_letter(option: str) -> str:
    """``"A. yes"`` -> ``"yes"``. Without ``". "`` only the last character stays, as in VLM2Vec."""
    return option[option.find(". ") :].strip(". ")


def _mvbench(row: Mapping[str, Any]) -> Question:
    text, options = _lettered(row["question"], list(row["candidates"]))
    # The last of equal options counts; an answer that is no option never matches.
    places = [index for index, option in enumerate(row["candidates"]) if option == row["answer"]]
    answer = options[places[-1]] if places else f"(@) {row['answer']}"
    return Question(f"{row['subset']}/{row['video']}", text, {option: option for option in options}, answer)


def _videomme(row: Mapping[str, Any]) -> Question:
    options = list(row["options"])
    text = "\n".join([row["question"], *options])
    return Question(
        str(row["videoID"]), text, {o: _without_letter(o) for o in options}, options["ABCD".index(row["answer"])]
    )


def _nextqa(row: Mapping[str, Any]) -> Question:
    options = [row[f"a{index}"] for index in range(5)]
    text, _ = _lettered(row["question"], options)
    return Question(str(row["video"]), text, {option: option for option in options}, options[int(row["answer"])])


def _egoschema(row: Mapping[str, Any]) -> Question:
    options = list(row["option"])
    text = row["question"] + " ".join(options)  # nothing between the question and the first option
    answer = options[int(row["answer"])]
    return Question(str(row["video_idx"]), text, {o: _without_letter(o) for o in options}, answer)


def _activitynetqa(row: Mapping[str, Any]) -> Question:
    text = row["question"] + "? (A) yes; (B) no."
    return Question(f"v_{row['video_name']}", text, {option: option for option in _YES_NO}, row["answer"])


SCHEMAS: dict[str, Callable[[Mapping[str, Any]], Question]] = {
    "mvbench": _mvbench,
    "videomme": _videomme,
    "nextqa": _nextqa,
    "egoschema": _egoschema,
    "activitynetqa": _activitynetqa,
}


def parse_video_qa(rows: Iterable[Mapping[str, Any]], media: MediaFiles, instruction: str, schema: str) -> Parsed:
    """Questions about clips.

    Args:
        rows: The data, whose columns ``schema`` (a key of :data:`SCHEMAS`) knows.
        media: Frames.
        instruction: In front of the question.
        schema: Which data set.
    """
    parsed = Parsed()
    for row in rows:
        question = SCHEMAS[schema](row)
        query = Item(f"{instruction} {question.text}".strip(), video=media.frames(question.clip))
        options = {key: Item(text.strip()) for key, text in question.options.items()}
        parsed.add(query, [question.answer], options)
    return parsed
