"""Load a model, embed a list: vectors, what failed and why, resumable.

:func:`embed` goes over a list of any length in five steps:

1. **Read** the items in order; a PDF becomes one unit per page.
2. **Prepare** each unit alone, so that a bad one fails alone, with its index and its reason.
3. **Batch** a window of units of similar length, up to a budget of tokens: memory follows tokens, not items.
4. **Embed** batch by batch; vectors do not depend on their batch.
5. **Store** the window in a part file, if there is an output. A killed run continues after the last part.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor, BatchFeature

from .checkpoints import locate
from .modeling_plume import PlumeModel
from .pages import count_pages, render_page
from .processing_plume import PlumeProcessor
from .resume import Embeddings, Failure, Parts, Unit, condition_of
from .speed.bfloat16 import warn_of_emulation
from .start import HUB_OPTIONS

_WINDOW = 4  # batches prepared at a time
TASKS = ("document", "query")
ON_ERROR = ("raise", "skip", "nan")


class Prepared(NamedTuple):
    """A unit with its model inputs, or without them and with the reason."""

    unit: Unit
    features: BatchFeature | None
    reason: str = ""

    @property
    def tokens(self) -> int:
        """Length of the row."""
        return 1 if self.features is None else self.features["input_ids"].shape[1]


def load(
    model: str | os.PathLike = "tiny", *, device: str | None = None, dtype: str = "auto", **options: Any
) -> tuple[PlumeModel, PlumeProcessor]:
    """Load a model and its processor.

    Args:
        model: ``"tiny"``, which comes with the package, or a folder or Hub id of a PLUME checkpoint.
        device: Torch device; CUDA if there is one, else the CPU, if omitted.
        dtype: Of the weights, e.g. ``"bfloat16"``; the checkpoint's by default.
        **options: Of ``from_pretrained``, e.g. ``revision`` and ``attn_implementation``.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        ValueError: If the checkpoint is no PLUME checkpoint.
    """
    path = locate(model)
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    model_type = AutoConfig.from_pretrained(path, **hub).model_type
    if not model_type.startswith("plume"):
        raise ValueError(
            f"{path} is a {model_type!r} model without an adapter, so it cannot think. Convert it with "
            "`plume convert`, then train it."
        )
    loaded = AutoModel.from_pretrained(path, dtype=dtype, **options).eval()
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = loaded.to(chosen)
    warn_of_emulation(loaded)
    return loaded, AutoProcessor.from_pretrained(path, **hub)


def embed(
    items: Iterable[Any],
    model: str | os.PathLike | tuple[PlumeModel, PlumeProcessor] = "tiny",
    *,
    task: Literal["document", "query"] = "document",
    on_error: Literal["raise", "skip", "nan"] = "raise",
    output: str | os.PathLike | None = None,
    prompt: str | None = None,
    num_latent_steps: int | None = None,
    batch_tokens: int = 8192,
    progress: bool = True,
    **options: Any,
) -> Embeddings:
    """Embed a list of any length, in which items may be unusable.

    Args:
        items: Inputs of the processor, or ``{"pdf": path}``, which gives one vector per page.
        model: As in :func:`load`, or a loaded model with its processor.
        task: The instruction in front, and whose K is the default: ``"document"`` or ``"query"``.
        on_error: What an unusable item does: ``"raise"`` ends the call and names it, ``"skip"`` leaves it out,
            ``"nan"`` gives it a row of NaN.
        output: File for the result, in numpy's ``.npz`` format. While the call runs, finished rows lie in
            ``OUTPUT.parts``; the same call after a kill continues from them, and returns a finished file at once.
        prompt: Instruction instead of the checkpoint's.
        num_latent_steps: K; the checkpoint's for the task if omitted.
        batch_tokens: Tokens per batch, padding included.
        progress: Whether to show a progress bar.
        **options: Of the processor, e.g. ``max_pixels``.

    Returns:
        Vectors with the indices of their items, and what failed.

    Raises:
        ValueError: If an argument is unknown, an item is unusable and ``on_error`` is ``"raise"``, or ``output`` holds
            vectors of other items or another condition.
    """
    if task not in TASKS or on_error not in ON_ERROR or batch_tokens < 1:
        raise ValueError(
            f"task={task!r}, on_error={on_error!r}, batch_tokens={batch_tokens}: use a task from {TASKS}, an on_error "
            f"from {ON_ERROR}, and a positive number of tokens."
        )
    loaded, processor = load(model) if isinstance(model, (str, os.PathLike)) else model
    if loaded.training:
        raise ValueError(
            "The model is in training mode, in which dropout changes its vectors. Call model.eval() first."
        )
    settings = {"task": task, "prompt": prompt, "num_latent_steps": num_latent_steps, **options}
    encoder = _Encoder(loaded, processor, settings, on_error, batch_tokens)
    total = len(items) if isinstance(items, Sized) else None
    bar = tqdm(desc="embedding", unit="item", total=total, disable=not progress, delay=1)  # none for a short list
    parts = Parts(Path(output) if output else None, condition_of(loaded, processor, {**settings, "on_error": on_error}))
    with bar:
        units = parts.skip_finished(_read(items))
        for window in encoder.windows(units):
            parts.append(encoder.embed(window), [prepared.unit for prepared in window])
            bar.update(window[-1].unit.index + 1 - bar.n)
    return parts.finish(loaded.config.text_config.hidden_size)


def _read(items: Iterable[Any]) -> Iterator[Unit]:
    """1. Items in order; a PDF that cannot be opened stays one unit, which fails when it is prepared."""
    for index, item in enumerate(items):
        if isinstance(item, Mapping) and "pdf" in item:
            try:
                numbers: Sequence[int] = range(1, count_pages(item["pdf"]) + 1)
            except ValueError:
                numbers = [0]
            yield from (Unit(index, number, item) for number in numbers)
        else:
            yield Unit(index, 0, item)


@dataclass(frozen=True)
class _Encoder:
    """Steps 2 to 4 for one call of :func:`embed`."""

    model: PlumeModel
    processor: PlumeProcessor
    settings: dict[str, Any]
    on_error: str
    batch_tokens: int

    def windows(self, units: Iterable[Unit]) -> Iterator[list[Prepared]]:
        """2. Prepared units in order, in lists of a few batches each."""
        window: list[Prepared] = []
        tokens = 0
        for unit in units:
            window.append(self._prepare(unit))
            tokens += window[-1].tokens
            if tokens >= _WINDOW * self.batch_tokens:
                yield window
                window, tokens = [], 0
        if window:
            yield window

    def _prepare(self, unit: Unit) -> Prepared:
        given = {name: value for name, value in self.settings.items() if name not in ("task", "num_latent_steps")}
        process = (
            self.processor.process_queries if self.settings["task"] == "query" else self.processor.process_documents
        )
        try:
            item = unit.item
            if isinstance(item, Mapping) and "pdf" in item:
                others = {name: value for name, value in item.items() if name != "pdf"}
                item = {**others, "image": render_page(unit.item["pdf"], unit.page)}
            return Prepared(unit, process([item], **given))
        except (ValueError, OSError) as error:
            return self._failed(unit, error)

    def _failed(self, unit: Unit, error: Exception) -> Prepared:
        reason = str(error).removeprefix("Input 0: ")  # the processor's number within its batch, which is this unit
        if self.on_error == "raise":
            page = f", page {unit.page}" if unit.page else ""
            item = repr(unit.item)[:100]
            raise ValueError(f"Item {unit.index}{page} ({item}) cannot be embedded. {reason}") from error
        return Prepared(unit, None, reason)

    def embed(self, window: list[Prepared]) -> Embeddings:
        """3.-4. The rows of a window, in its order."""
        vectors: dict[int, np.ndarray] = {}
        for places in self._batches(window):
            for place, outcome in zip(places, self._vectors([window[place] for place in places]), strict=True):
                if isinstance(outcome, ValueError):
                    window[place] = self._failed(window[place].unit, outcome)
                else:
                    vectors[place] = outcome
        if self.on_error == "nan":
            empty = np.full(self.model.config.text_config.hidden_size, np.nan, dtype=np.float32)
            vectors |= {place: empty for place in range(len(window)) if place not in vectors}
        units = [window[place].unit for place in sorted(vectors)]
        return Embeddings(
            np.array([vectors[place] for place in sorted(vectors)], dtype=np.float32).reshape(len(units), -1),
            np.array([unit.index for unit in units], dtype=np.int64),
            np.array([unit.page for unit in units], dtype=np.int64),
            [
                Failure(failed.unit.index, failed.unit.page, failed.reason)
                for failed in window
                if failed.features is None
            ],
        )

    def _batches(self, window: list[Prepared]) -> list[list[int]]:
        """Places of units of similar length, longest first: padded to its first, no batch exceeds the budget."""
        batches: list[list[int]] = []
        usable = [place for place, prepared in enumerate(window) if prepared.features is not None]
        for place in sorted(usable, key=lambda place: -window[place].tokens):
            if batches and window[batches[-1][0]].tokens * (len(batches[-1]) + 1) <= self.batch_tokens:
                batches[-1].append(place)
            else:
                batches.append([place])
        return batches

    def _vectors(self, batch: list[Prepared]) -> list[np.ndarray | ValueError]:
        """Per unit its vector ``(D,)``; where a batch fails, its units one by one."""
        features = self._collate([prepared.features for prepared in batch if prepared.features is not None])
        try:
            with torch.inference_mode():
                chosen = {name: self.settings[name] for name in ("task", "num_latent_steps")}
                output = self.model(**features, **chosen)
            return list(output.embeddings.float().cpu().numpy())
        except ValueError as error:
            return [error] if len(batch) == 1 else [self._vectors([prepared])[0] for prepared in batch]

    def _collate(self, features: list[BatchFeature]) -> dict[str, torch.Tensor]:
        """Rows padded on the left, media one after another."""
        rows = {"input_ids": [row["input_ids"][0].tolist() for row in features]}
        padded = self.processor.tokenizer.pad(rows, padding=True, padding_side="left", return_tensors="pt")
        batch = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        for name in sorted({name for row in features for name in row} - batch.keys()):
            batch[name] = torch.cat([row[name] for row in features if name in row])
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}
