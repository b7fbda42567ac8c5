"""Has anything changed that a kept result depends on? Cheap enough to ask before every pass."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_OWN_CODE = ("torch.nn.", "transformers.", "plume.")


def stamp_weights(weights: Iterable[torch.Tensor]) -> list[Any]:
    """Equal as long as the weights are: their addresses, versions and last entries.

    A write through ``.data`` changes neither address nor version; it shows if it changes the last entry.
    """
    parts = [part for weight in weights for part in _parts(weight.detach())]
    last = torch.stack([part[(-1,) * part.ndim].float().cpu() for part in parts]).tolist() if parts else []
    return [(part.data_ptr(), 0 if part.is_inference() else part._version) for part in parts] + last


def _parts(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a weight is made of: itself, or those of a quantized one."""
    if not is_traceable_wrapper_subclass(weight):
        if weight.numel():
            yield weight
        return
    names, _ = weight.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(weight, name))


def stamp_module(root: nn.Module) -> list[Any]:
    """Equal as long as all weights of a module are, and the code that its parts run."""
    code = [(type(module).forward, vars(module).get("forward")) for module in root.modules()]
    return code + stamp_weights([*root.parameters(), *root.buffers()])


def runs_own_code(root: nn.Module, replaced: type | None = None) -> bool:
    """Whether a module does what its weights say and nothing else, so that :func:`stamp_module` tells all.

    Hooks, patched methods, adapters and dropout may change what they do at any time, and no stamp would show it.

    Args:
        root: The module.
        replaced: A class of replaced forwards that compute the same; none by default.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return False
    return all(_is_plain(module, replaced) for module in root.modules() if module is not root)


def _is_plain(module: nn.Module, replaced: type | None) -> bool:
    own = type(module).__module__.startswith(_OWN_CODE)
    state = vars(module)
    changing = state["training"] or state["_forward_hooks"] or state["_forward_pre_hooks"]
    forward = state.get("forward")
    return own and not changing and (forward is None or (replaced is not None and isinstance(forward, replaced)))


def is_served(module: nn.Module, device: torch.device) -> bool:
    """Whether kept results serve a call: on a CPU, without gradient, dropout and autocast."""
    return (
        device.type == "cpu"
        and not torch.is_grad_enabled()
        and not module.training
        and not torch.is_autocast_enabled("cpu")
    )


class Keeper:
    """Keeps results, between threads, until the module that they belong to changes; they are not copied with it.

    Args:
        owner: The module whose method it replaces.
    """

    nothing: Callable[[], Any]  # an empty collection of results

    def __init__(self, owner: Any) -> None:
        self.owner, self.kept = owner, self.nothing()
        self._stamp: list[Any] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.owner,)

    def fresh(self, watched: nn.Module) -> tuple[Any, list[Any]]:
        """A copy of what is kept, and the state of the module that it belongs to."""
        stamp = stamp_module(watched)
        with self._lock:
            if stamp != self._stamp:
                self.kept, self._stamp = self.nothing(), stamp
            return self.kept.copy(), self._stamp

    def keep(self, stamp: list[Any], change: Callable[[Any], Any]) -> None:
        """Change what is kept, unless the module has changed since."""
        with self._lock:
            if stamp is self._stamp:
                self.kept = change(self.kept)


__all__ = ["Keeper", "is_served", "runs_own_code", "stamp_module", "stamp_weights"]
