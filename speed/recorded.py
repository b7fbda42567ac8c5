"""The rollout recorded once per shape and replayed: a CUDA graph, the opt-in of ``speed_up`` on a GPU.

A latent step is hundreds of small kernels; launching them one by one takes the host longer than the device takes to run
them. A recording launches all K steps at once.

1. **Slot**: fixed tensors for what a rollout reads: cache, rotary factors, masks, z(0), anchor, suffix. Prefixes are
   padded on the left to a multiple of 64 columns, so that few recordings serve all lengths.
2. **Record**: the model's one rollout runs over the slot while the device writes down what it is asked.
3. **Replay**: fill the slot, run the recording, copy the results out.

Invariant: a recording reads the model's own weights in place; it is dropped where they have moved.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .context_plume import CachedContext, Context
from .decode_plume import is_watched, projections

logger = logging.get_logger(__name__)

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# A rollout over (context, anchor, suffix, K); a slot stands in for the context.
Rollout = Callable[[Any, torch.Tensor, torch.Tensor, int], Outputs]

_COLUMNS = 64
_MOST_SLOTS = 8  # each holds a cache of its own


class RecordedRollouts:
    """Recordings of one model's rollout; leaves them behind when copied or pickled."""

    def __init__(self) -> None:
        self._slots: OrderedDict[tuple[Any, ...], _Slot] = OrderedDict()
        self._lock = threading.Lock()
        self._refused = False

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def run(
        self,
        rollout: Rollout,
        model: Any,
        context: Context,
        anchor_BD: torch.Tensor,
        suffix_BSD: torch.Tensor,
        num_latent_steps: int,
    ) -> Outputs:
        """What ``rollout(context, anchor_BD, suffix_BSD, num_latent_steps)`` returns, by a recording where possible.

        Args:
            rollout: The model's rollout.
            model: Whose weights it reads.
            context: The backbone after the prefix.
            anchor_BD: As in the rollout.
            suffix_BSD: As in the rollout.
            num_latent_steps: K.
        """
        can_record = _can_record(anchor_BD.device) and _calls_are_plain(model, anchor_BD.device)
        if can_record and isinstance(context, CachedContext) and context.decoder is not None:
            # Slots are shared by all calls: made and filled as plain tensors whatever mode the caller is in.
            with self._lock, torch.inference_mode(False), torch.no_grad():
                slot = self._slot(rollout, model, context, anchor_BD, suffix_BSD, num_latent_steps)
                if slot is not None:
                    return slot.replay(context, anchor_BD, suffix_BSD)
        return rollout(context, anchor_BD, suffix_BSD, num_latent_steps)

    def _slot(
        self,
        rollout: Rollout,
        model: Any,
        context: CachedContext,
        anchor_BD: torch.Tensor,
        suffix_BSD: torch.Tensor,
        num_latent_steps: int,
    ) -> "_Slot | None":
        """The slot of these shapes, recorded where it is new; None, with a message, where recording failed once."""
        if self._refused:
            return None
        places = tuple(weight.data_ptr() for weight in model.parameters())
        columns = -(-context.hidden.shape[1] // _COLUMNS) * _COLUMNS
        choice = model.latent_transition.num_active_experts
        key = (columns, *suffix_BSD.shape, num_latent_steps, choice, suffix_BSD.dtype, hash(places))
        try:
            slot = self._slots.get(key) or _Slot(rollout, context, anchor_BD, suffix_BSD, num_latent_steps, columns)
        except RuntimeError as error:
            self._refused = True
            logger.warning(f"Latent steps run without a recording, which is slower: {str(error).splitlines()[0]}.")
            return None
        self._slots[key] = slot
        self._slots.move_to_end(key)
        while len(self._slots) > _MOST_SLOTS:
            self._slots.popitem(last=False)
        return slot


class _Slot:
    """Fixed tensors of one shape and the recording over them; stands in for the context of a rollout."""

    def __init__(
        self,
        rollout: Rollout,
        context: CachedContext,
        anchor_BD: torch.Tensor,
        suffix_BSD: torch.Tensor,
        num_latent_steps: int,
        columns: int,
    ) -> None:
        assert context.decoder is not None
        self.hidden, self.mix = context.hidden[:, -1:].clone(), context.mix
        self._anchor_BD, self._suffix_BSD = anchor_BD.clone(), suffix_BSD.clone()
        self._decoder, self._columns = context.decoder.with_room(columns), columns
        self._decoder.take(context.decoder)

        def run() -> Outputs:
            self._length = self._columns
            self._decoder.rewind()
            return rollout(self, self._anchor_BD, self._suffix_BSD, num_latent_steps)

        self._replay, self._outputs = _record(run, anchor_BD.device)

    def extend(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """As :meth:`~plume.context_plume.Context.extend`."""
        start, self._length = self._length, self._length + inputs_embeds.shape[1]
        return self._decoder.read(inputs_embeds, start, self._length)

    def replay(self, context: CachedContext, anchor_BD: torch.Tensor, suffix_BSD: torch.Tensor) -> Outputs:
        """Run the recording on what a fresh context has read."""
        assert context.decoder is not None
        self.hidden.copy_(context.hidden[:, -1:])
        self._anchor_BD.copy_(anchor_BD)
        self._suffix_BSD.copy_(suffix_BSD)
        self._decoder.take(context.decoder)
        self._replay()
        latents, probs, states = self._outputs
        return latents.clone(), probs.clone(), states.clone()


def _can_record(device: torch.device) -> bool:
    return device.type == "cuda"


def _calls_are_plain(model: Any, device: torch.device) -> bool:
    """Whether every later call would launch what a recording of this one holds.

    Not with gradient, dropout, autocast (whose casts do not outlive the call), hooks, or layers that may change what
    they do, as those of peft.
    """
    layers = model.model.language_model.layers
    linears = (linear for layer in layers for linear in projections(layer))
    return not (
        torch.is_grad_enabled()
        or model.training
        or torch.is_autocast_enabled(device.type)
        or any(type(linear) is not nn.Linear for linear in linears)
        or any(is_watched(module) for module in (*layers.modules(), *model.latent_transition.modules()))
    )


def _record(run: Callable[[], Outputs], device: torch.device) -> tuple[Callable[[], None], Outputs]:
    """A function that runs again what ``run`` asked of the device, and the tensors that it fills."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries set themselves up in their first calls
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on reading prefixes, and so ask for memory.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = run()
    return graph.replay, outputs


__all__ = ["RecordedRollouts"]
