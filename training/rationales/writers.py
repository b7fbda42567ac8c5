"""Who writes: a model on this machine, or a server that speaks OpenAI's protocol.

Both take sides to ask (:class:`Ask`) and a function that reads one, and give replies in any order. A side that cannot
be read or answered gives its reason instead; what would fail for every side is raised.
"""

import io
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

_MOST_IN_A_ROW = 50  # failures after which a server is given up


class Ask(NamedTuple):
    """A side to be asked: what its content is known by, ``query`` or ``positive``, and its row."""

    key: str
    kind: str
    row: int


class Reply(NamedTuple):
    """What a writer said, whether it ran into the limit, and what it cost."""

    text: str
    is_cut: bool
    input_tokens: int
    output_tokens: int


class _Refusal(str):
    """A failure that every request would have."""


Parts: TypeAlias = list[str | Image.Image]
Reader: TypeAlias = Callable[[Ask], Parts]


class Writer(Protocol):
    """A writer.

    Attributes:
        name: What its replies are known by.
        place: Where the sides go, for people; empty if they stay on this machine.
        chances: How often a side is asked at most if the reply has no rationale.
    """

    name: str
    place: str
    chances: int

    def replies(self, asks: Iterable[Ask], read: Reader) -> Iterator[tuple[Ask, Reply | str]]:
        """Replies, or why there is none."""
        ...


class LocalWriter:
    """An image-text-to-text model of transformers, greedy, in batches.

    Args:
        model: The model.
        processor: Its processor.
        name: What its replies are known by.
        batch_size: Sides per call.
        max_tokens: Most tokens of a reply.
    """

    place, chances = "", 1  # greedy: asked again it would say the same

    def __init__(self, model: Any, processor: Any, name: str, batch_size: int = 8, max_tokens: int = 512) -> None:
        self.model, self.processor, self.name = model.eval(), processor, f"local {name}"
        self.batch_size, self.max_tokens = batch_size, max_tokens
        processor.tokenizer.padding_side = "left"

    @classmethod
    def load(cls, name: str, batch_size: int, max_tokens: int) -> "LocalWriter":
        """Load a checkpoint, on a GPU if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
        return cls(model.to(device), AutoProcessor.from_pretrained(name), name, batch_size, max_tokens)

    def replies(self, asks: Iterable[Ask], read: Reader) -> Iterator[tuple[Ask, Reply | str]]:
        """Replies, or why there is none."""
        left = iter(asks)
        while batch := list(islice(left, self.batch_size)):
            ready: list[tuple[Ask, Parts]] = []
            for ask in batch:
                try:
                    ready.append((ask, read(ask)))
                except ValueError as error:
                    yield ask, str(error)
            if ready:
                yield from zip((ask for ask, _ in ready), self._generate([parts for _, parts in ready]), strict=True)

    @torch.inference_mode()
    def _generate(self, batch: list[Parts]) -> list[Reply]:
        chats = [[{"role": "user", "content": [_local_part(part) for part in parts]}] for parts in batch]
        inputs = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        ).to(self.model.device, dtype=self.model.dtype)
        start, pad = inputs["input_ids"].shape[1], self.processor.tokenizer.pad_token_id
        ids = self.model.generate(
            **inputs, max_new_tokens=self.max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
            pad_token_id=pad,
        )[:, start:]  # fmt: skip
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        asked, said = inputs["attention_mask"].sum(1).tolist(), (ids != pad).sum(1).tolist()
        return [Reply(text, out == self.max_tokens, *cost) for text, out, *cost in zip(texts, said, asked, said)]  # noqa: B905


def _local_part(part: str | Image.Image) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}


class EndpointWriter:
    """A server that speaks OpenAI's protocol, asked by several threads.

    Its client repeats what failed, waits longer each time, and heeds ``Retry-After``.

    Args:
        url: Address up to ``/v1``.
        model: Name of the model there.
        concurrency: Requests at a time.
        per_minute: Most requests per minute, repeated ones included; no limit if None.
        timeout: Seconds without a sign of the server after which a request is repeated.
        retries: How often a failed request is repeated.
        max_tokens: Most tokens of a reply.
        api_key: The key; that of the environment, as the client reads it, if None.

    Raises:
        ImportError: If the client is not installed.
        ValueError: If there is no key.
    """

    chances = 3

    def __init__(
        self,
        url: str,
        model: str,
        concurrency: int = 8,
        per_minute: float | None = None,
        timeout: float = 120.0,
        retries: int = 6,
        max_tokens: int = 512,
        api_key: str | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                f"--endpoint needs {error.name}, which is not installed: pip install 'plume-embedding[rationales]'."
            ) from error
        self.openai, self.model, self.concurrency, self.max_tokens = openai, model, concurrency, max_tokens
        self.name, self.place = f"{url} {model}", f"{url} (model {model})"
        hooks: Any = {"request": [_Pace(60 / per_minute)]} if per_minute else {}
        try:
            self.client = openai.OpenAI(
                base_url=url,
                api_key=api_key,
                timeout=timeout,
                max_retries=retries,
                http_client=openai.DefaultHttpxClient(event_hooks=hooks),
            )
        except openai.OpenAIError as error:
            raise ValueError(
                "There is no key for the endpoint. Put it into OPENAI_API_KEY; for a server that needs none, any word."
            ) from error

    def replies(self, asks: Iterable[Ask], read: Reader) -> Iterator[tuple[Ask, Reply | str]]:
        """Replies, or why there is none.

        Raises:
            ValueError: If the server refuses the key or the model, or fails too often in a row.
        """
        pool, waiting, failed, refusal = ThreadPoolExecutor(self.concurrency), dict[Future, Ask](), 0, ""
        left = iter(asks)
        try:
            while not refusal or waiting:  # what is on its way then still counts
                for ask in islice(left, 0 if refusal else 2 * self.concurrency - len(waiting)):
                    waiting[pool.submit(self._ask, ask, read)] = ask
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    reply, ask = future.result(), waiting.pop(future)
                    failed = failed + 1 if isinstance(reply, str) else 0
                    if isinstance(reply, _Refusal) or failed == _MOST_IN_A_ROW:
                        refusal = refusal or f"failed {failed} times in a row, the last time with {reply}"
                    yield ask, reply
                if refusal:
                    waiting = {future: ask for future, ask in waiting.items() if not future.cancel()}
            raise ValueError(
                f"{self.place} {refusal}. Check --endpoint, --model and OPENAI_API_KEY. What it answered is stored: "
                "the same command goes on from there."
            )
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, ask: Ask, read: Reader) -> Reply | str:
        try:
            content: Any = [_remote_part(part) for part in read(ask)]
        except ValueError as error:
            return str(error)
        try:
            completion = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                max_completion_tokens=self.max_tokens,
            )
        except (self.openai.AuthenticationError, self.openai.PermissionDeniedError, self.openai.NotFoundError) as error:
            return _Refusal(f"{type(error).__name__}: {error}")
        except self.openai.OpenAIError as error:
            return f"{type(error).__name__}: {error}"
        except ValueError:  # a body that calls itself JSON and is none
            return _read_completion(None)
        return _read_completion(completion)


class _Pace:
    """Called before every request: waits until it is its turn."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.next, self.lock = seconds, 0.0, Lock()

    def __call__(self, request: Any) -> None:
        with self.lock:
            now = time.monotonic()
            turn = max(now, self.next)
            self.next = turn + self.seconds
        time.sleep(turn - now)


def _remote_part(part: str | Image.Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    file = io.BytesIO()
    part.save(file, "JPEG", quality=95, subsampling=0)  # written anew: no EXIF data leave the machine
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"}}


def _read_completion(completion: Any) -> Reply:
    """The client checks no types, so a server may send anything."""
    try:
        choice, usage = completion.choices[0], completion.usage
        cost = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Reply(choice.message.content or "", choice.finish_reason == "length", *cost)
    except (AttributeError, IndexError, TypeError):
        return Reply("", False, 0, 0)
