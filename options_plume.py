"""How a processor is called: options flat or grouped, media alone, flat or nested, as the libraries pass them."""

from typing import Any

_GROUPS = ("text_kwargs", "images_kwargs", "videos_kwargs", "common_kwargs")
_TEXT_OPTIONS = ("return_tensors", "padding", "padding_side", "truncation", "max_length")
_IMAGE_OPTIONS = {"min_pixels", "max_pixels"}
_VIDEO_OPTIONS = {"min_pixels", "max_pixels", "num_frames"}
# Sent by callers that serve audio models too; this processor has no use for them.
_IGNORED = ("audio_kwargs", "load_audio_from_video", "audio", "do_sample_frames")


def split_options(kwargs: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Sort keyword arguments into options for text, image and video; what is left are template variables.

    Accepts them flat or grouped, the way transformers and sentence-transformers of all supported versions pass
    them.
    """
    left = {**kwargs.pop("processor_kwargs", {}), **kwargs}
    text, image, video, common = ({**left.pop(group, {})} for group in _GROUPS)
    for ignored in _IGNORED:
        left.pop(ignored, None)
    text = {**common, **text}
    for name in _TEXT_OPTIONS:
        if name in left:
            text[name] = left.pop(name)
    for name in _IMAGE_OPTIONS & left.keys():
        image[name] = left.pop(name)
    if "num_frames" in left:
        video["num_frames"] = left.pop("num_frames")
    for options, known, kind in ((image, _IMAGE_OPTIONS, "image"), (video, _VIDEO_OPTIONS, "video")):
        unknown = sorted(options.keys() - known - {"return_tensors"})
        if unknown:
            raise ValueError(f"Unknown {kind} options {unknown}: they would have no effect. Use {sorted(known)}.")
        for name in known & options.keys():
            if isinstance(options[name], bool) or not isinstance(options[name], int) or options[name] < 1:
                raise ValueError(f"The {kind} option {name} must be a positive integer, got {options[name]!r}.")
    return {"text": text, "image": image, "video": video}, left


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
