"""What a processor is told: its saved settings, and the options of a call, as the libraries pass them."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from inspect import Parameter
from typing import Any, Literal, get_args, get_origin

_GROUPS = ("text_kwargs", "images_kwargs", "videos_kwargs", "common_kwargs")
_TEXT_OPTIONS = ("return_tensors", "padding", "padding_side", "pad_to_multiple_of", "truncation", "max_length")
_LIMITS = {"min_pixels", "max_pixels"}
_KNOWN = {"text": set(_TEXT_OPTIONS), "image": _LIMITS, "video": {*_LIMITS, "num_frames", "video_metadata"}}
# The libraries send these to every processor. They mean nothing here unless they are set to something.
_UNSET = ("audio", "audio_kwargs", "load_audio_from_video", "do_sample_frames", "tools", "documents",
          "continue_final_message", "return_assistant_tokens_mask", "sanitize_control_tokens",
          "restore_suffix")  # fmt: skip
# Files from when Qwen2-VL was the only backbone state this many settings; later files state all.
_FIRST_SETTINGS = 17


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_three(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(fits, value))


# Type of a setting -> what fits it, in code and in words.
_RULES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_count, "a positive integer"),
    str: (lambda value: isinstance(value, str), "a text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    float | None: (lambda value: value is None or (_is_number(value) and value > 0), "a positive number or none"),
    Sequence[float]: (lambda value: _are_three(value, _is_number), "three numbers"),
    Sequence[int]: (lambda value: _are_three(value, lambda c: _is_count(c, 0) and c < 256), "three integers in 0..255"),
}


def _check(what: str, name: str, value: Any, kind: Any = int) -> None:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    fits, expected = (choices.__contains__, " or ".join(map(repr, choices))) if choices else _RULES[kind]
    if not fits(value):
        raise ValueError(f"The {what} {name} must be {expected}, got {value!r}.")


@cache
def warn_once(message: str) -> None:
    """Log a warning the first time."""
    logging.getLogger(__name__).warning(message)


def check_settings(known: Mapping[str, Parameter], values: Mapping[str, Any]) -> None:
    """Refuse settings that do not fit the types of the constructor's parameters, or contradict each other."""
    for name, parameter in known.items():
        if parameter.default is not values[name]:  # a count may be 0 only where that is its default
            _check("setting", name, values[name], parameter.annotation)
    for kind in ("", "video_"):
        check_limits(values[f"{kind}min_pixels"], values[f"{kind}max_pixels"], kind)
    if min(values["image_std"]) <= 0:
        raise ValueError(f"The setting image_std must be three positive numbers, got {values['image_std']}.")
    if values["timestamps"] and values["fps"] is None:
        raise ValueError("timestamps need fps, the rate of frames that come without a file. Set it.")


def check_stated(known: Mapping[str, Parameter], saved: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse a ``processor_config.json`` that, with what the caller sets, leaves open what changes vectors."""
    if not known.keys() & saved.keys():
        raise ValueError(
            "There is no processor_config.json, or it is empty, so prompt and pixels of the model are unknown. Take "
            "the file of the checkpoint, or start a new one with plume.start.build_processor."
        )
    stated = {*saved, *overrides}
    missing = [name for name in known if name not in stated]
    unknown = sorted(saved.keys() - known.keys() - {"processor_class", "auto_map", "chat_template"})
    if unknown or (missing and missing != list(known)[_FIRST_SETTINGS:]):
        raise ValueError(
            f"processor_config.json lacks the settings {missing} and has the unknown ones {unknown}, so its vectors "
            "are unknown. Take the file of the checkpoint, or mend the names."
        )
    if "chat_template" not in stated:
        raise ValueError("The file chat_template.jinja is missing, so the prompt is unknown. Take the checkpoint's.")


def check_limits(low: int, high: int, kind: str = "") -> None:
    """Refuse limits of pixels that no size fits."""
    if low > high:
        raise ValueError(f"{kind}min_pixels={low} exceeds {kind}max_pixels={high}, so no size fits. Change one.")


def split_options(kwargs: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Sort keyword arguments into options for text, image and video; what is left are template variables.

    Accepts them flat or grouped, the way transformers and sentence-transformers of all supported versions pass
    them. Flat pixel limits hold for images and for videos, which may count them per frame or per clip.

    Raises:
        ValueError: If an option is unknown or has an impossible value.
    """
    left = {**kwargs.pop("processor_kwargs", {}), **kwargs}
    text, image, video, common = ({**left.pop(group, {})} for group in _GROUPS)
    options = {"text": {**common, **text}, "image": image, "video": video}
    for name in _TEXT_OPTIONS:
        if name in left:
            options["text"][name] = left.pop(name)
    for name in _KNOWN["video"] & left.keys():
        for kind in ("image", "video") if name in _LIMITS else ("video",):
            options[kind].setdefault(name, left[name])
        del left[name]
    if video.get("do_sample_frames") is False:
        del video["do_sample_frames"]
    for name in _UNSET:
        if left.get(name) in (None, False, [], {}) or name == "audio_kwargs":
            left.pop(name, None)
    for name in ("return_tensors", "padding"):  # media have one form each
        image.pop(name, None)
        video.pop(name, None)
    for kind, chosen in options.items():
        _check_group(kind, chosen)
    return options, left


def _check_group(kind: str, chosen: dict[str, Any]) -> None:
    unknown = sorted(chosen.keys() - _KNOWN[kind])
    if unknown:
        raise ValueError(f"Unknown {kind} options {unknown}: they would have no effect. Use {sorted(_KNOWN[kind])}.")
    for name in ("min_pixels", "max_pixels", "num_frames", "max_length"):
        if chosen.get(name) is not None:
            _check("option", name, chosen[name])


def clip_rates(chosen: dict[str, Any], num_clips: int) -> list[float | None]:
    """Frames per second of each clip, taken out of the options of videos; None if unknown."""
    entries = flatten_media(chosen.pop("video_metadata", None), "image") or [{}] * num_clips
    if len(entries) != num_clips or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"video_metadata holds {len(entries)} entries for {num_clips} videos. Give each a dict.")
    for entry in entries:
        _check("option", "fps", entry.get("fps"), float | None)
    return [entry.get("fps") for entry in entries]


def length_limit(options: dict[str, Any], default: int) -> tuple[int, bool]:
    """Take ``max_length`` and ``truncation`` out of text options: the limit, and whether text may be cut to it."""
    truncation = options.pop("truncation", None)
    limit = options.get("max_length") or default
    if options.get("padding") != "max_length":
        options.pop("max_length", None)
    return limit, truncation not in (False, "do_not_truncate")


def flatten_media(media: Any, kind: str) -> list[Any]:
    """One flat list from media given alone, flat, or one list per prompt."""
    if media is None:
        return []
    if not isinstance(media, (list, tuple)):
        return [media]
    if kind == "image":
        return [image for entry in media for image in (entry if isinstance(entry, (list, tuple)) else [entry])]
    # A video may itself be a list of frames, so only a list of lists of lists is nested per prompt.
    nested = any(isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], (list, tuple)) for entry in media)
    return [video for entry in media for video in entry] if nested else list(media)
