"""How a processor is called: options flat or grouped, media alone, flat or nested, as the libraries pass them."""

from typing import Any

_GROUPS = ("text_kwargs", "images_kwargs", "videos_kwargs", "common_kwargs")
_TEXT_OPTIONS = ("return_tensors", "padding", "padding_side", "pad_to_multiple_of", "truncation", "max_length")
_LIMITS = {"min_pixels", "max_pixels"}
_KNOWN = {"text": set(_TEXT_OPTIONS), "image": _LIMITS, "video": {*_LIMITS, "num_frames"}}
# The libraries send these to every processor. They mean nothing here unless they are set to something.
_UNSET = ("audio", "audio_kwargs", "load_audio_from_video", "do_sample_frames", "tools", "documents",
          "continue_final_message", "return_assistant_tokens_mask", "sanitize_control_tokens",
          "restore_suffix")  # fmt: skip
# Media have one form each, and frames are evenly spaced by their number, whatever a clip says of itself.
_WITHOUT_EFFECT = {"image": ("return_tensors", "padding"), "video": ("return_tensors", "padding", "video_metadata")}


def split_options(kwargs: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Sort keyword arguments into options for text, image and video; what is left are template variables.

    Accepts them flat or grouped, the way transformers and sentence-transformers of all supported versions pass
    them. Flat pixel limits hold for images and for video frames.

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
        for name in _WITHOUT_EFFECT.get(kind, ()):
            chosen.pop(name, None)
        _check(kind, chosen)
    return options, left


def _check(kind: str, chosen: dict[str, Any]) -> None:
    unknown = sorted(chosen.keys() - _KNOWN[kind])
    if unknown:
        raise ValueError(f"Unknown {kind} options {unknown}: they would have no effect. Use {sorted(_KNOWN[kind])}.")
    for name in ("min_pixels", "max_pixels", "num_frames", "max_length"):
        if chosen.get(name) is not None:
            check_positive(name, chosen[name])


def check_positive(name: str, value: Any) -> None:
    """Refuse what is no positive integer.

    Raises:
        ValueError: If ``value`` is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"The option {name} must be a positive integer, got {value!r}.")


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
