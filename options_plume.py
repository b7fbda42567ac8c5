"""What a processor is told: its saved settings, and the options of a call, as the libraries pass them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

_GROUPS = ("text_kwargs", "images_kwargs", "videos_kwargs", "common_kwargs")
_TEXT_OPTIONS = ("return_tensors", "padding", "padding_side", "pad_to_multiple_of", "truncation", "max_length")
_LIMITS = {"min_pixels", "max_pixels"}
_KNOWN = {"text": set(_TEXT_OPTIONS), "image": _LIMITS, "video": {*_LIMITS, "num_frames", "video_metadata"}}
# The libraries send these to every processor. They mean nothing here unless they are set to something.
_UNSET = ("audio", "audio_kwargs", "load_audio_from_video", "do_sample_frames", "tools", "documents",
          "continue_final_message", "return_assistant_tokens_mask", "sanitize_control_tokens",
          "restore_suffix")  # fmt: skip
# Media have one form each.
_WITHOUT_EFFECT = ("return_tensors", "padding")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _three(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) == 3 and all(map(check, value))


def _one_of(*choices: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, type(choices[0])) and value in choices


_COUNT = (_is_count, "a positive integer")
_TEXT = (lambda value: isinstance(value, str), "a text")
_SWITCH = (_one_of(True, False), "true or false")
# Name of a setting -> what it must be. First those that every processor_config.json states...
_FIRST_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("anchor_token", "latent_start_token", "latent_end_token", "latent_token"), _TEXT),
    **dict.fromkeys(("embedding_token", "suffix", "query_prompt", "document_prompt"), _TEXT),
    **dict.fromkeys(("min_pixels", "max_pixels", "video_min_pixels", "video_max_pixels", "num_frames"), _COUNT),
    **dict.fromkeys(("patch_size", "merge_size", "temporal_patch_size"), _COUNT),
    "blank_image_size": (lambda value: value == 0 and _is_number(value) or _is_count(value), "0 or a positive integer"),
}
# ... then those that files of Qwen2-VL checkpoints of version 0.1 do not have, and state together since.
_LATER_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_mean": (_three(_is_number), "three numbers"),
    "image_std": (_three(lambda value: _is_number(value) and value > 0), "three positive numbers"),
    "background_color": (_three(lambda value: _is_count(value + 1) and value < 256), "three integers in 0..255"),
    "resize": (_one_of("once", "released"), "'once' or 'released'"),
    "video_limits": (_one_of("frame", "clip"), "'frame' or 'clip'"),
    "fps": (lambda value: value is None or _is_number(value) and value > 0, "a positive number or none"),
    "min_frames": _COUNT,
    "timestamps": _SWITCH,
    "time_positions": _SWITCH,
}
_RULES = {**_FIRST_RULES, **_LATER_RULES}
_BESIDE_SETTINGS = {"processor_class", "auto_map", "chat_template"}


def _check_value(what: str, name: str, value: Any) -> None:
    fits, expected = _RULES.get(name, _COUNT)
    if not fits(value):
        raise ValueError(f"The {what} {name} must be {expected}, got {value!r}.")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of a processor, among its other attributes.

    Raises:
        ValueError: If one has the wrong type or value, or two contradict each other.
    """
    for name in _RULES:
        _check_value("setting", name, settings[name])
    for names in (("min_pixels", "max_pixels"), ("video_min_pixels", "video_max_pixels")):
        check_limits((settings[names[0]], settings[names[1]]), names)
    if settings["timestamps"] and settings["fps"] is None:
        raise ValueError("timestamps need fps, the rate of frames that come without a file. Set it.")


def check_stated(saved: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Check that saved settings leave nothing open that changes vectors.

    Args:
        saved: Content of ``processor_config.json``, with the chat template.
        overrides: What the caller sets instead.

    Raises:
        ValueError: If the file or the template is missing, or the file lacks settings or has unknown ones.
    """
    stated = {*saved, *overrides}
    missing = [name for name in _RULES if name not in stated]
    if not _RULES.keys() & saved.keys():
        raise ValueError(
            "There is no processor_config.json, or it is empty. It says which prompt and which pixels the model was "
            "trained with, so nothing can be embedded without it. Take the file of the checkpoint, or start a new "
            "processor with PlumeProcessor.from_backbone."
        )
    unknown = sorted(saved.keys() - _RULES.keys() - _BESIDE_SETTINGS)
    if unknown or (missing and missing != list(_LATER_RULES)):
        raise ValueError(
            f"processor_config.json lacks the settings {missing} and has the unknown ones {unknown}, so the vectors "
            "that it stands for are unknown. Take the file of the checkpoint, or mend the names."
        )
    if "chat_template" not in stated:
        raise ValueError("The file chat_template.jinja is missing, so the prompt is unknown. Take the checkpoint's.")


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
    for kind, chosen in options.items():
        for name in _WITHOUT_EFFECT if kind != "text" else ():
            chosen.pop(name, None)
        _check(kind, chosen)
    return options, left


def _check(kind: str, chosen: dict[str, Any]) -> None:
    unknown = sorted(chosen.keys() - _KNOWN[kind])
    if unknown:
        raise ValueError(f"Unknown {kind} options {unknown}: they would have no effect. Use {sorted(_KNOWN[kind])}.")
    for name in ("min_pixels", "max_pixels", "num_frames", "max_length"):
        if chosen.get(name) is not None:
            _check_value("option", name, chosen[name])


def check_limits(limits: tuple[int, int], names: tuple[str, str]) -> None:
    """Refuse limits that no size fits.

    Raises:
        ValueError: If the lower one exceeds the upper one.
    """
    if limits[0] > limits[1]:
        raise ValueError(f"{names[0]}={limits[0]} exceeds {names[1]}={limits[1]}, so no size fits. Change one of them.")


def clip_rates(chosen: dict[str, Any], num_clips: int) -> list[float | None]:
    """Frames per second of each clip, taken out of the options of videos; none where nobody says.

    Raises:
        ValueError: If there is not one entry per clip, or a rate is no positive number.
    """
    metadata = chosen.pop("video_metadata", None)
    if metadata is None:
        return [None] * num_clips
    entries = flatten_media(metadata, "image")
    if len(entries) != num_clips or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"video_metadata holds {len(entries)} entries for {num_clips} videos. Give each a dict.")
    rates = [entry.get("fps") for entry in entries]
    for rate in rates:
        _check_value("option", "fps", rate)
    return rates


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
