"""What a processor is told: its saved settings, and the options of a call, as the libraries pass them."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from .fields_plume import Count, Rate, check_fields

_KNOWN = {
    "text": {"return_tensors", "padding", "padding_side", "pad_to_multiple_of", "truncation", "max_length"},
    "image": {"min_pixels", "max_pixels"},
    "video": {"min_pixels", "max_pixels", "num_frames", "video_metadata"},
}
_COUNTS = {"min_pixels": Count, "max_pixels": Count, "num_frames": Count, "max_length": Count}
# The libraries send these to every processor. They mean nothing here unless they are set to something.
_UNSET = ("audio", "load_audio_from_video", "do_sample_frames", "tools", "documents", "continue_final_message",
          "return_assistant_tokens_mask", "sanitize_control_tokens", "restore_suffix")  # fmt: skip
# Files from when Qwen2-VL was the only backbone state this many settings; later files state all.
_FIRST_SETTINGS = 17


@cache
def warn_once(message: str) -> None:
    """Log a warning the first time."""
    logging.getLogger(__name__).warning(message)


def check_settings(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse settings that do not fit their annotations, or contradict each other."""
    check_fields(kinds, values)
    for kind in ("", "video_"):
        check_limits(values[f"{kind}min_pixels"], values[f"{kind}max_pixels"], kind)
    if min(values["image_std"]) <= 0:
        raise ValueError(f"image_std must be three positive numbers, got {values['image_std']}.")
    if values["timestamps"] and values["fps"] is None:
        raise ValueError("timestamps need fps, the rate of frames that come without a file. Set it.")


def check_stated(known: Mapping[str, Any], saved: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse a ``processor_config.json`` that, with what the caller sets, leaves open what changes vectors."""
    if not known.keys() & saved.keys():
        cause = "There is no processor_config.json, or it is empty, so prompt and pixels are unknown."
        raise ValueError(f"{cause} Take the checkpoint's, or make one with plume.start.build_processor.")
    stated = {*saved, *overrides}
    missing = [name for name in known if name not in stated]
    unknown = sorted(saved.keys() - known.keys() - {"processor_class", "auto_map", "chat_template"})
    if unknown or (missing and missing != list(known)[_FIRST_SETTINGS:]):
        cause = f"processor_config.json lacks the settings {missing} and has the unknown ones {unknown}."
        raise ValueError(f"{cause} Its vectors are unknown: take the file of the checkpoint, or mend the names.")
    if "chat_template" not in stated:
        raise ValueError("The file chat_template.jinja is missing, so the prompt is unknown. Take the checkpoint's.")


def check_limits(low: int, high: int, kind: str = "") -> None:
    """Refuse limits of pixels that no size fits."""
    if low > high:
        raise ValueError(f"{kind}min_pixels={low} exceeds {kind}max_pixels={high}, so no size fits. Change one.")


def split_options(kwargs: dict[str, Any], variables: set[str] | None) -> tuple[dict[str, dict], dict[str, Any]]:
    """Sort keyword arguments into options for text, image and video; what is left are template variables.

    Accepts them flat or grouped, the way transformers and sentence-transformers of all supported versions pass them.
    Flat pixel limits hold for images and for videos, which may count them per frame or per clip. ``variables`` are the
    template variables that there may be; any if None.

    Raises:
        ValueError: If an option is unknown or has an impossible value.
    """
    left = {**kwargs.pop("processor_kwargs", {}), **kwargs}
    left.pop("audio_kwargs", None)
    groups = ("text", "images", "videos", "common")
    text, image, video, common = ({**left.pop(f"{group}_kwargs", {})} for group in groups)
    for name in ("return_tensors", "padding"):  # media have one form each
        image.pop(name, None)
        video.pop(name, None)
    left, video = (
        {name: value for name, value in given.items() if name not in _UNSET or value not in (None, False, [], {})}
        for given in (left, video)
    )
    options = {"text": {**common, **text}, "image": image, "video": video}
    for kind, known in _KNOWN.items():
        options[kind] = {name: left[name] for name in known & left.keys()} | options[kind]
        check_fields({name: _COUNTS[name] for name in _COUNTS if options[kind].get(name) is not None}, options[kind])
    left = {name: value for name, value in left.items() if name not in set().union(*_KNOWN.values())}
    unknown = {name for kind, chosen in options.items() for name in chosen.keys() - _KNOWN[kind]}
    unknown |= set() if variables is None else left.keys() - variables
    if unknown:
        raise ValueError(f"Unknown options {sorted(unknown)}: they would have no effect. Remove or rename them.")
    return options, left


def clip_rates(chosen: dict[str, Any], num_clips: int) -> list[float | None]:
    """Frames per second of each clip, taken out of the options of videos; None if unknown."""
    entries = flatten_media(chosen.pop("video_metadata", None), "image") or [{}] * num_clips
    if len(entries) != num_clips or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"video_metadata holds {len(entries)} entries for {num_clips} videos. Give each a dict.")
    for entry in entries:
        check_fields({"fps": Rate}, {"fps": entry.get("fps")})
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
