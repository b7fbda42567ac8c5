"""Dynamic batching: requests that arrive together are embedded together, and no more wait than fit.

1. **Admit**: all inputs of a request or none; what does not fit into the queue is refused at once.
2. **Linger** a few milliseconds for company.
3. **Take** from the front what shares role and K, up to a number and a budget of pixels. Only then are pictures and
   clips decoded: one batch of pixels is in memory, however many requests wait. What nobody waits for has left before.
4. **Answer** each input on its own: one that is unusable does not spoil its neighbours.
"""

import asyncio
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plume.apps.serving.schema import clips, decoded_pixels, pictures, texts, with_clip
from plume.apps.shared.batches import BatchEncoder, as_array
from plume.apps.shared.limits import Limits, MediaError, check_clip


class QueueFullError(Exception):
    """More inputs are waiting than allowed: try again later."""


class StorageError(ValueError):
    """The server's disk is full: not the client's fault, and no other input's."""


@dataclass(frozen=True)
class Embedded:
    """The vector of an input, ``(D,)``, and its number of tokens."""

    vector: np.ndarray
    tokens: int


@dataclass
class Job:
    """One input that waits for its vector."""

    content: Any
    role: str
    num_latent_steps: int
    weight: int
    answer: "asyncio.Future[Embedded]" = field(repr=False)


class Batcher:
    """A queue in front of an encoder.

    Args:
        encoder: What embeds, on a thread of its own.
        max_waiting: Inputs that may wait.
        max_batch: Inputs per batch.
        linger: Seconds to wait for company.
        clip_limits: Bounds of a clip while it is decoded.
        observe: Told the size of every batch.
    """

    def __init__(
        self,
        encoder: BatchEncoder,
        max_waiting: int = 256,
        max_batch: int = 32,
        linger: float = 0.005,
        clip_limits: Limits | None = None,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.encoder, self.max_waiting, self.max_batch, self.linger = encoder, max_waiting, max_batch, linger
        self.observe, self.clip_limits = observe, clip_limits or Limits()
        self.waiting: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether inputs are being worked on."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Start working; call it inside the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Let the batch in progress end, leave the rest unanswered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for job in self.waiting:
            job.answer.cancel()
        self._thread.shutdown()

    # 1. Admit

    async def embed(self, contents: Sequence[Any], role: str, num_latent_steps: int) -> list[Embedded]:
        """Queue inputs and wait for their vectors.

        Raises:
            QueueFullError: If they do not fit into the queue.
            ValueError: If one of them is unusable.
        """
        if len(self.waiting) + len(contents) > self.max_waiting:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        jobs = [
            Job(content, role, num_latent_steps, self._weigh(content), loop.create_future()) for content in contents
        ]
        self.waiting.extend(jobs)
        self._arrived.set()
        try:
            return await asyncio.gather(*(job.answer for job in jobs))
        finally:
            for job in jobs:  # one is unusable, or the client is gone: nobody waits for the others any more
                job.answer.cancel()
            self.waiting = deque(job for job in self.waiting if not job.answer.done())

    def _weigh(self, content: Any) -> int:
        """Pixels after resizing, or a quarter of those to be decoded before: both are bounded by the budget."""
        frames = clips(content) * self.encoder.processor.num_frames
        resized = self.encoder.weigh({"image": pictures(content), "video": frames, "text": texts(content)})
        return max(resized, decoded_pixels(content) // 4)

    # 2.-4. Linger, take, answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if len(self.waiting) < self.max_batch:
                await asyncio.sleep(self.linger)
            batch = self._take()
            if not batch:
                continue
            self.observe(len(batch))
            work = loop.run_in_executor(self._thread, embed_batch, self.encoder, batch, self.clip_limits)
            await asyncio.wait([work])
            error = work.exception()  # a fault of ours, not of an input: all of them are told
            answers = [error] * len(batch) if error is not None else work.result()
            for job, answer in zip(batch, answers, strict=True):
                if job.answer.done():
                    continue
                if isinstance(answer, BaseException):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)

    def _take(self) -> list[Job]:
        """The oldest input and later ones that can share its batch; those that nobody waits for are dropped."""
        batch: list[Job] = []
        rest: deque[Job] = deque()
        heaviest = 0
        for job in self.waiting:
            if job.answer.done():
                continue
            heavier = max(heaviest, job.weight)
            fits = len(batch) < self.max_batch and heavier * (len(batch) + 1) <= self.encoder.pixel_budget
            alike = not batch or (job.role, job.num_latent_steps) == (batch[0].role, batch[0].num_latent_steps)
            if not batch or (fits and alike):
                batch.append(job)
                heaviest = heavier
            else:
                rest.append(job)
        self.waiting = rest
        if not rest:
            self._arrived.clear()
        return batch


def embed_batch(encoder: BatchEncoder, batch: Sequence[Job], clip_limits: Limits) -> list[Embedded | ValueError]:
    """Decode and embed inputs of one role and K, once: per input its vector, or why there is none."""
    try:
        contents = [_decode(encoder, job.content, clip_limits) for job in batch]
        usable = [content for content in contents if not isinstance(content, ValueError)]
        embedded = iter(_try_embed(encoder, usable, batch[0].role, batch[0].num_latent_steps))
        return [content if isinstance(content, ValueError) else next(embedded) for content in contents]
    finally:  # a request may wait for other batches, and its pictures shall not do so decoded
        for job in batch:
            for picture in pictures(job.content):
                picture.close()


def _decode(encoder: BatchEncoder, content: Any, clip_limits: Limits) -> Any:
    """The input with its pictures in memory and the frames of its clip, or why it is unusable."""
    try:
        for picture in pictures(content):
            picture.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        return MediaError(f"A picture is damaged or cut off ({error}). Send a complete file.")
    try:
        for clip in clips(content):
            with tempfile.TemporaryDirectory(prefix="plume-") as folder:  # the decoder seeks in a file
                path = Path(folder, "clip")
                path.write_bytes(clip.data)
                check_clip(path, clip_limits)
                content = with_clip(content, encoder.clip(path))
    except MediaError as error:
        return error
    except OSError as error:
        return StorageError(f"The server has no room for the clip ({error.strerror}). Try again later.")
    return content


def _try_embed(encoder: BatchEncoder, contents: Sequence[Any], role: str, steps: int) -> list[Embedded | ValueError]:
    if not contents:
        return []
    try:
        # A text that is too long is refused, not cut: the client would not learn of it.
        inputs = encoder.process(contents, role, truncation=False)
        tokens = inputs["attention_mask"].sum(1).tolist()
        vectors = encoder.run(inputs, role, steps).embeddings
        assert vectors is not None
        return [Embedded(*pair) for pair in zip(as_array(vectors), tokens, strict=True)]
    except ValueError as error:
        if len(contents) == 1:
            return [error]
        return [_try_embed(encoder, [content], role, steps)[0] for content in contents]
