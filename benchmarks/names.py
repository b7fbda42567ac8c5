"""What the command line can name: inputs, dtypes and systems. Light, because a help does not wait for torch."""

from typing import NamedTuple

# Systems, with their K.
LATENT_STEPS = {
    "prepare": 0,
    "single_pass": 0,
    "plume_k4": 4,
    "plume_k6": 6,
    "plume_k8": 8,
    "plume_k8_plain": 8,
    "plume_k8_reuse": 8,
    "plume_k8_int8": 8,
    "one_at_a_time": 8,
    "explicit_cot": 0,
    "runtime_k8": 8,
    "runtime_k8_int8": 8,
}
RUNTIMES = ("runtime_k8", "runtime_k8_int8")  # they need exports of the model
SYSTEMS = tuple(name for name in LATENT_STEPS if name not in RUNTIMES)
# Systems that need other words after the same instruction every turn.
_QUERY, _OF_QUERIES = "query12", ("plume_k8_reuse", "plume_k8_int8")
DTYPE_NAMES = ("fp32", "bf16")


def runs_on(system: str, kind: str) -> bool:
    """Whether a system is measured on a kind of input."""
    return kind == _QUERY or system not in _OF_QUERIES


class Shape(NamedTuple):
    """What an input holds: text of so many ``tokens``, the prompt's own among them; pictures of a size; frames."""

    tokens: int
    size: tuple[int, int] | None = None
    num_frames: int = 0


INPUTS = {
    "query12": Shape(0),  # twelve words after the processor's instruction, however many tokens that makes
    "text64": Shape(64),
    "text512": Shape(512),
    "image448": Shape(64, (448, 448)),
    "page896": Shape(64, (896, 1267)),
    "video8": Shape(64, (336, 336), 8),
}
