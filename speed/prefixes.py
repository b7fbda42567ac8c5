"""What inputs have in common at their beginning is read once: system line, instruction, or a picture in front.

Keys and values of a token depend on what precedes it and on nothing after it, so those of a common beginning are exact
whatever follows. Nobody has to name the beginning: it is found.

Legend: B batch, T columns of the prefix, C columns that need not be read, N tokens of an entry, D width.

1. :func:`reuse_prefixes` replaces the ``forward`` of the decoder. After a pass it keeps input vectors, positions, keys,
   values and states of the batch's longest row: an **entry**. The oldest give way.
2. The next batch is compared with the entries by input vectors and positions. Rows are padded on the left and may have
   more or less in common with the entry; C is the first column that some row has to read itself.
3. Columns before C are copied from the entry, row by row to where that row begins. The decoder reads the others.

Everything is dropped when weights or the code of a module change. A decoder with hooks, adapters or replaced modules
reads everything itself, and a message says so.
"""

from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from plume.cache_plume import CACHE_ARGUMENT, PieceCache
from plume.modeling_plume import PlumeModel
from plume.speed.freshness import Keeper, is_served, runs_own_code
from plume.speed.packed import PackedForward

logger = logging.get_logger(__name__)

_MOST_ENTRIES = 16
_MOST_TOKENS = 512  # of an entry; 29 kB each in the 2b shape in bfloat16
# A smaller part of the columns is not worth an explicit mask over the others.
_LEAST_SHARE = 1 / 8
_FORWARD = "forward"
_ARGUMENTS = {"inputs_embeds", "attention_mask", "position_ids", "use_cache", CACHE_ARGUMENT}


class Entry(NamedTuple):
    """The first N tokens of a row that was read.

    Attributes:
        vectors: Input vectors, ``(N, D)``.
        positions: ``(3, N)``.
        layers: Keys and values by layer, ``(heads, N, head width)`` each.
        hidden: States, ``(N, D)``, post-norm.
    """

    vectors: torch.Tensor
    positions: torch.Tensor
    layers: dict[int, list[torch.Tensor]]
    hidden: torch.Tensor


class PrefixForward(Keeper):
    """Replaces the forward of a decoder; keeps entries, the most recent first."""

    nothing: Any = list

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the decoder's own forward, to rounding."""
        own = type(self.owner).forward
        if args or not self._serves(kwargs):
            return own(self.owner, *args, **kwargs)
        vectors, positions, cache = kwargs["inputs_embeds"], kwargs["position_ids"], kwargs[CACHE_ARGUMENT]
        starts = kwargs["attention_mask"].long().argmax(dim=-1)
        entries, stamp = self.fresh(self.owner)
        # 2. The columns that need not be read.
        entry, first = _find(entries, vectors, positions, starts.tolist())
        if entry is None:
            output = own(self.owner, **kwargs)
        else:
            # 3. Copy them, read the others. Padding gets the first token's: finite, and hidden by the mask.
            index_BC = (torch.arange(first) - starts.unsqueeze(1)).clamp(min=0)
            known = PieceCache()
            for layer, (keys, values) in entry.layers.items():
                known.update(keys[:, index_BC].transpose(0, 1), values[:, index_BC].transpose(0, 1), layer)
            cache.past, cache.start = (known,), first
            rest = {"inputs_embeds": vectors[:, first:], "position_ids": positions[..., first:]}
            output = own(self.owner, **{**kwargs, **rest})
            output.last_hidden_state = torch.cat([entry.hidden[index_BC], output.last_hidden_state], dim=1)
        # 1. Keep the longest row, unless all of it is known.
        row = int(starts.argmin())
        part = slice(int(starts[row]), min(int(starts[row]) + _MOST_TOKENS, vectors.shape[1] - 1))
        new = []
        if first < part.stop:
            keys_and_values = {n: [t[row, :, part].clone() for t in cache.columns(n)] for n in cache.buffers}
            hidden = output.last_hidden_state[row, part].clone()
            new = [Entry(vectors[row, part].clone(), positions[:, row, part].clone(), keys_and_values, hidden)]
        recent = [*new, *([entry] if entry else [])]
        self.keep(stamp, lambda kept: [*recent, *(old for old in kept if old is not entry)][:_MOST_ENTRIES])
        return output

    def _serves(self, kwargs: dict[str, Any]) -> bool:
        cache: Any = kwargs.get(CACHE_ARGUMENT)
        if kwargs.keys() != _ARGUMENTS or type(cache) is not PieceCache or cache.get_seq_length():
            return False
        if not is_served(self.owner, kwargs["inputs_embeds"].device):
            return False
        if runs_own_code(self.owner, PackedForward):
            return True
        self.kept = self.nothing()
        logger.warning_once(
            "speed_up(): the decoder has hooks, adapters or replaced modules, so common beginnings of inputs are read "
            "every time. Merge adapters (merge_and_unload) or remove hooks to have them read once."
        )
        return False


def _find(
    entries: list[Entry], vectors_BTD: torch.Tensor, positions_3BT: torch.Tensor, starts: list[int]
) -> tuple[Entry | None, int]:
    """The entry that the longest row has most in common with, and the first column that a row has to read itself."""

    def common(entry: Entry, row: int) -> int:
        vectors, positions = vectors_BTD[row, starts[row] :], positions_3BT[:, row, starts[row] :]
        length = min(len(vectors), len(entry.vectors))
        equal = (vectors[:length] == entry.vectors[:length]).all(dim=-1)
        equal &= (positions[:, :length] == entry.positions[:, :length]).all(dim=0)
        return int(equal.long().cumprod(dim=0).sum())

    longest, columns = min(range(len(starts)), key=starts.__getitem__), vectors_BTD.shape[1]
    lengths = [common(entry, longest) for entry in entries]
    if not entries:
        return None, 0
    best = entries[max(range(len(entries)), key=lengths.__getitem__)]
    first = min(columns - 1, *(start + common(best, row) for row, start in enumerate(starts)))
    return (best, first) if first >= _LEAST_SHARE * columns else (None, 0)


def reuse_prefixes(model: Any, enabled: bool) -> None:
    """Let a model read common beginnings once, or every time again; says why where it cannot."""
    decoder = model.model.language_model
    if isinstance(vars(decoder).get(_FORWARD), PrefixForward):
        del decoder.forward
    if not enabled:
        return
    if not isinstance(model, PlumeModel):
        logger.warning(
            "speed_up(): this model runs the code of its checkpoint, so common beginnings of inputs are read every "
            "time. Import plume before it is loaded to run the package's code."
        )
    elif _FORWARD in vars(decoder):
        logger.warning(
            "speed_up(): something else replaces the forward of the decoder, so common beginnings are read every time."
        )
    else:
        decoder.forward = PrefixForward(decoder)


__all__ = ["reuse_prefixes"]
