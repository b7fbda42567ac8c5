"""What may stand in a saved field: its annotation, in code and in words."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin


def _is_integer(value: Any, least: int = 0, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most  # True is no number


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _three(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) == 3 and all(map(fits, value))


Switch = Annotated[bool, lambda value: isinstance(value, bool), "true or false"]
Text = Annotated[str, lambda value: isinstance(value, str), "a text"]
Count = Annotated[int, lambda value: _is_integer(value, 1), "a positive integer"]
Index = Annotated[int, _is_integer, "an integer of at least 0"]
TokenIds = Annotated[list[int], lambda value: isinstance(value, list) and all(map(_is_integer, value)), "token ids"]
Share = Annotated[float, lambda value: _is_number(value) and 0 <= value < 1, "a number in [0, 1)"]
Rate = Annotated[float | None, lambda value: value is None or (_is_number(value) and value > 0), "a positive number"]
Floats = Annotated[Sequence[float], _three(_is_number), "three numbers"]
Colour = Annotated[Sequence[int], _three(lambda part: _is_integer(part, 0, 255)), "three integers in 0..255"]


def check_fields(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse values that do not fit a ``Literal`` or an annotation above; other annotations are left to the caller."""
    for name, kind in kinds.items():
        if get_origin(kind) is Literal:
            fits, expected = get_args(kind).__contains__, " or ".join(map(repr, get_args(kind)))
        elif get_origin(kind) is Annotated:
            _, fits, expected = get_args(kind)
        else:
            continue
        if not fits(values[name]):
            raise ValueError(f"{name} must be {expected}, got {values[name]!r}.")
