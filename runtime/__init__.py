"""Embeddings without torch: an exported model on onnxruntime, numpy, tokenizers, Pillow and jinja2.

``plume export MODEL OUT`` writes a folder; ``Runtime(OUT).encode(items)`` gives the vectors of the model. In order:

1. **Check** (``manifest``): every file of the folder is the one that was exported.
2. **Read** (``prompt_plume``): the model's own prompt builder makes token ids and patches of the inputs.
3. **See**: pictures of one size, and the frames of clips, go through the vision tower together.
4. **Think** (:meth:`Runtime._think`): prefix, K latent steps and suffix, on the host: one graph serves every K.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plume.content_plume import MEDIA_KINDS
from plume.runtime.graphs import Graph
from plume.runtime.manifest import DECODER, TOKENS, VISION, cache_names, read_manifest
from plume.runtime.prompt import read_prompt

_WINDOW = 4  # batches prepared at a time
_SCORES = 1 << 24  # pairs of patches per head that the vision tower compares at a time; a larger frame goes alone
_EPSILON = 1e-12  # torch's, under a norm

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RuntimeOutput:
    """What one pass gives; all arrays are fp32.

    Attributes:
        embeddings: Unit vectors, ``(B, D)`` (Eq. 7).
        latent_states: z(1)..z(K), ``(B, K, D)``.
        router_probs: pi(1)..pi(K) over all experts, ``(B, K, E)`` (Eq. 4).
    """

    embeddings: np.ndarray
    latent_states: np.ndarray
    router_probs: np.ndarray


class Runtime:
    """An exported model.

    Args:
        folder: What ``plume export`` wrote.
        threads: Of the decoder and the vision tower. Defaults to one per core.

    Attributes:
        settings: What the runtime knows of the model, such as K and the length of a vector.
        prompt: Its :class:`~plume.prompt_plume.PromptBuilder`.

    Raises:
        ValueError: If a file of the folder is missing, damaged, or of another export, or this onnxruntime lacks an
            operator.
    """

    def __init__(self, folder: str | os.PathLike, *, threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.settings = self.manifest.settings
        self.prompt = read_prompt(self.folder, self.settings)
        threads = threads or 0  # onnxruntime's own default
        self._tokens = Graph(self.folder / TOKENS, self.manifest, threads=1)
        self._decoder = Graph(self.folder / DECODER, self.manifest, threads)
        self._vision = Graph(self.folder / VISION, self.manifest, threads)
        suffix = np.array([self.settings.suffix_token_ids])
        self._suffix, _ = self._lay_in({"input_ids": suffix, "attention_mask": np.ones_like(suffix)})

    def encode(
        self,
        items: Sequence[Any],
        task: Literal["document", "query"] = "document",
        num_latent_steps: int | None = None,
        *,
        prompt: str | None = None,
        batch_tokens: int = 8192,
        **options: Any,
    ) -> np.ndarray:
        """Embed inputs of any number and mixture.

        Args:
            items: Texts, pictures, clips and mixtures, as in :func:`~plume.content_plume.to_conversation`.
            task: The instruction in front: ``"document"`` or ``"query"``.
            num_latent_steps: K; the model's for the task if omitted.
            prompt: Instruction instead of the model's.
            batch_tokens: Tokens per batch, padding included.
            **options: Of the prompt builder, e.g. ``max_pixels`` and ``truncation``.

        Returns:
            Unit vectors, ``(len(items), D)``, fp32.

        Raises:
            ValueError: If an argument is unknown, K is out of range, or an input is unusable; it says which.
        """
        if task not in ("document", "query") or batch_tokens < 1:
            raise ValueError(
                f"task={task!r}, batch_tokens={batch_tokens}: use the task 'document' or 'query', and a positive "
                "number of tokens."
            )
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise ValueError(f"Pass a list of inputs, not a single {type(items).__name__}: [input].")
        steps = self.settings.check_num_latent_steps(num_latent_steps, task)
        vectors = np.empty((len(items), self.settings.hidden_size), dtype=np.float32)
        for window in self._windows(items, task, batch_tokens, {"prompt": prompt, **options}):
            for places in _batches({place: row["input_ids"].shape[1] for place, row in window.items()}, batch_tokens):
                batch = self.prompt.join([window[place] for place in places])
                vectors[places] = self.run(batch, steps).embeddings
        return vectors

    def _windows(
        self, items: Sequence[Any], task: str, batch_tokens: int, options: dict[str, Any]
    ) -> Iterator[dict[int, Inputs]]:
        """Model inputs of some batches at a time, by the places of their items."""
        window: dict[int, Inputs] = {}
        tokens = 0
        for place, item in enumerate(items):
            window[place] = self.prompt.read(item, task, place, **options)
            tokens += window[place]["input_ids"].shape[1]
            if tokens >= _WINDOW * batch_tokens:
                yield window
                window, tokens = {}, 0
        if window:
            yield window

    def run(self, inputs: Inputs, num_latent_steps: int) -> RuntimeOutput:
        """One batch, as the model's forward pass.

        Args:
            inputs: What the prompt builder returns: ids and mask ``(B, T)``, patches and grids of media.
            num_latent_steps: K.

        Raises:
            ValueError: If K is out of range, or a vector is not finite.
        """
        self.settings.check_num_latent_steps(num_latent_steps)
        anchors = _last(inputs["input_ids"] == self.settings.anchor_token_id)
        vectors, positions = self._lay_in(inputs)
        passes = list(self._think(vectors, inputs["attention_mask"], positions, anchors, num_latent_steps))
        last = _last(np.array(self.settings.suffix_token_ids) == self.settings.embedding_token_id)
        embedding = passes[-1][0][:, last - len(self.settings.suffix_token_ids)]
        if not np.isfinite(embedding).all():
            raise ValueError(
                "The embeddings are not finite (NaN or infinity), so no similarity computed from them would mean "
                "anything. Check the checkpoint for NaN weights."
            )
        length = np.maximum(np.linalg.norm(embedding, axis=-1, keepdims=True), _EPSILON)
        # At K = 0 the one pass reads the suffix alone, and its probabilities are of no rows.
        experts = passes[0][1].shape[-1]
        latent_states = np.empty((len(vectors), num_latent_steps, vectors.shape[-1]), np.float32)
        router_probs = np.empty((len(vectors), num_latent_steps, experts), np.float32)
        for place, (states, probs) in enumerate(passes[:num_latent_steps]):
            latent_states[:, place], router_probs[:, place] = states[:, 0], probs
        return RuntimeOutput(embedding / length, latent_states, router_probs)

    # 3. See

    def _lay_in(self, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
        """Input vectors ``(B, T, D)`` with visual features, and positions of the prefix and what follows it."""
        input_ids = inputs["input_ids"]
        places, features = [np.empty(0, np.int64)], [np.empty((0, self.settings.hidden_size), np.float32)]
        grids = {}
        # The graph needs a grid of either kind; the last one is not looked at.
        edge = self.settings.spatial_merge_size
        unused = np.array([[1, edge, edge]])
        placeholders = {"image": self.settings.image_token_id, "video": self.settings.video_token_id}
        for kind, names in MEDIA_KINDS.items():
            grids[names.grid] = np.concatenate([inputs.get(names.grid, unused[:0]), unused])
            if names.pixels in inputs:
                places.append(np.flatnonzero(input_ids == placeholders[kind]))
                features += self._see(inputs[names.pixels], inputs[names.grid])
        vectors, positions = self._tokens(
            input_ids=input_ids,
            attention_mask=inputs["attention_mask"],
            places=np.concatenate(places),
            features=np.concatenate(features),
            **grids,
        )
        return vectors.numpy(), positions.numpy()

    def _see(self, patches: np.ndarray, grids: np.ndarray) -> list[np.ndarray]:
        """Visual tokens of each picture or clip; frames of one size go together."""
        items = np.split(patches, np.cumsum(grids.prod(axis=1))[:-1])
        seen: dict[int, np.ndarray] = {}
        for height, width in sorted({(int(height), int(width)) for _, height, width in grids}):
            alike = [place for place, grid in enumerate(grids) if tuple(grid[1:]) == (height, width)]
            frames = np.concatenate([items[place] for place in alike]).reshape(-1, height * width, patches.shape[1])
            together = max(1, _SCORES // (height * width) ** 2)
            position_ids = _patch_places(height, width, self.settings.spatial_merge_size)
            tokens = np.concatenate(
                [
                    self._vision(patches=frames[start : start + together], position_ids=position_ids)[0].numpy()
                    for start in range(0, len(frames), together)
                ]
            )
            ends = np.cumsum(grids[alike].prod(axis=1)) // self.settings.spatial_merge_size**2
            seen |= dict(zip(alike, np.split(tokens, ends[:-1]), strict=True))
        return [seen[place] for place in range(len(grids))]

    # 4. Think

    def _think(
        self, vectors: np.ndarray, mask: np.ndarray, positions: np.ndarray, anchors: np.ndarray, num_latent_steps: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rollout of ``rollout_plume`` on the host: states and routing probabilities of every pass over the cache.

        Args:
            vectors: Of the prefix, ``(B, T, D)``.
            mask: ``(B, T)``.
            positions: Of the prefix and what follows it, ``(3, B, T + 1)``.
            anchors: Column of ``<anchor>``, ``(B,)``.
            num_latent_steps: K. The suffix is read in the pass of the last step; at K = 0 it is the only pass.
        """
        none, suffix = vectors[:, :0], np.broadcast_to(self._suffix, (len(vectors), *self._suffix.shape[1:]))
        states, _, *past = self._extend(
            none, none, 1, vectors, mask, positions[..., :-1], self._empty_cache(len(vectors))
        )
        z, c = states[:, -1:], states[np.arange(len(states)), anchors][:, None]  # z(0), Eq. 2, and c(x)
        if num_latent_steps == 0:
            z = c = none
        for k in range(1, max(1, num_latent_steps) + 1):
            tail = suffix if k >= num_latent_steps else none
            width = z.shape[1] + tail.shape[1]
            mask = np.pad(mask, ((0, 0), (0, width)), constant_values=1)
            places = positions[..., -1:] + np.arange(k - 1, k - 1 + width)  # p_slt + k, Eq. 3
            states, probs, *past = self._extend(z, c, k, tail, mask, places, past)
            yield states, probs
            z = states[:, :1]

    def _extend(
        self,
        latents: np.ndarray,
        anchors: np.ndarray,
        step: int,
        vectors: np.ndarray,
        mask: np.ndarray,
        position_ids: np.ndarray,
        past: Sequence[Any],
    ) -> list[Any]:
        """One pass of the decoder: states of the new columns, routing probabilities, and the cache with them."""
        states, probs, *present = self._decoder(
            latents=latents,
            anchors=anchors,
            step=np.array(step),
            vectors=vectors,
            attention_mask=mask,
            position_ids=position_ids,
            **dict(zip(cache_names("past", self.settings.num_layers), past, strict=True)),
        )
        return [states.numpy(), probs.numpy(), *present]

    def _empty_cache(self, batch: int) -> list[np.ndarray]:
        shape = (batch, self.settings.num_key_value_heads, 0, self.settings.head_dim)
        return [np.empty(shape, np.float32)] * (2 * self.settings.num_layers)


def _last(found: np.ndarray) -> np.ndarray:
    """Place of the last True along the last axis."""
    return found.shape[-1] - 1 - found[..., ::-1].argmax(axis=-1)


def _patch_places(height: int, width: int, merge_size: int) -> np.ndarray:
    """Row and column of each patch, ``(height * width, 2)``; those of a visual token lie next to each other."""
    places = np.indices((height, width)).reshape(2, height // merge_size, merge_size, width // merge_size, merge_size)
    return places.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def _batches(lengths: Mapping[int, int], budget: int) -> list[list[int]]:
    """Places of rows of similar length, longest first: padded to its first, no batch exceeds the budget of tokens."""
    batches: list[list[int]] = []
    for place in sorted(lengths, key=lambda place: -lengths[place]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
