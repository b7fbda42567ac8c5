"""What turns inputs into vectors: a model in memory, or a checkpoint on one or several devices.

All have one method, ``encode(inputs, role) -> (B, D)``: inputs are dicts of ``text``, ``image`` and ``video``, the
role is ``"query"`` or ``"document"``. Instructions are part of the texts already, so the checkpoint's own are not used.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig

import plume
from plume import PlumeModel, PlumeProcessor, embed_early
from plume.early_exit import check_exit
from plume.hub.identity import SETTINGS_FILES

_LIMITS = ("min_pixels", "max_pixels", "video_min_pixels", "video_max_pixels", "blank_image_size")
_PIXEL_SETTINGS = (
    *("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "background_color", "resize"),
    *("video_limits", "fps", "timestamps", "time_positions"),
)
_MANY_FRAMES = 1_000_000  # frames are chosen by the task: the processor keeps all that it is given


class Embedder(Protocol):
    """Anything that embeds inputs; ``condition`` holds what a reader of its scores must know."""

    condition: dict[str, Any]

    def encode(self, inputs: Sequence[Mapping[str, Any]], role: str) -> torch.Tensor:
        """Vectors of the inputs, ``(B, D)``."""
        ...


class ModelEmbedder:
    """A model and a processor in memory.

    Args:
        model: The model; it is put into evaluation mode for the time of a call.
        processor: Its processor.
        latent_steps: K; the checkpoint's if omitted, 0 for the single-pass baseline.
        checkpoint: What identifies the weights; a hash over them as they are now if omitted, so build a new embedder
            after training on.
    """

    def __init__(
        self,
        model: PlumeModel,
        processor: PlumeProcessor,
        latent_steps: int | None = None,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.processor, self.latent_steps = model, processor, latent_steps
        identity = checkpoint or {"hash": weights_hash(model)}
        self.condition = processor_condition(processor, steps_condition(model.config, latent_steps)) | {
            "dtype": str(model.dtype).removeprefix("torch."),
            "checkpoint": identity,
        }

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Mapping[str, Any]], role: str) -> torch.Tensor:
        """Vectors of the inputs, ``(B, D)``, fp32, on the CPU; each role at its K of the checkpoint."""
        with evaluating(self.model):
            features = prepare(self.model, self.processor, inputs)
            output = self.model(**features, task=role, num_latent_steps=self.latent_steps)
        return output.embeddings.float().cpu()

    @torch.inference_mode()
    def readouts(self, inputs: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> torch.Tensor:
        """Vectors after several numbers of steps from one rollout, ``(B, R, D)``, fp32, on the CPU."""
        with evaluating(self.model):
            features = prepare(self.model, self.processor, inputs)
            output = self.model(**features, num_latent_steps=steps[-1], readout_steps=steps)
        return output.readout_embeddings.float().cpu()


class EarlyEmbedder(ModelEmbedder):
    """A model in memory whose inputs stop thinking when their steps no longer move them.

    Args:
        model: As in :class:`ModelEmbedder`.
        processor: Likewise.
        exit_threshold: As in :func:`~plume.embed_early`.
        exit_steps: Where to read out. Defaults to every step.
        **options: Of :class:`ModelEmbedder`.
    """

    def __init__(
        self,
        model: PlumeModel,
        processor: PlumeProcessor,
        exit_threshold: float,
        exit_steps: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, processor, **options)
        for role in ("query", "document"):
            check_exit(model, exit_threshold, self.latent_steps, role, exit_steps)
        self.early = {"exit_threshold": exit_threshold, "readout_steps": exit_steps}
        self.condition |= {"exit_threshold": exit_threshold, "exit_steps": list(exit_steps) if exit_steps else None}
        self.taken: dict[str, list[int]] = {}  # steps of every input, per role

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Mapping[str, Any]], role: str) -> torch.Tensor:
        """Vectors of the inputs, ``(B, D)``, fp32, on the CPU."""
        with evaluating(self.model):
            features = prepare(self.model, self.processor, inputs)
            early: Any = self.early
            settled = embed_early(self.model, features, task=role, num_latent_steps=self.latent_steps, **early)
        self.taken.setdefault(role, []).extend(settled.steps.tolist())
        return settled.embeddings.cpu()

    def mean_steps(self) -> dict[str, float]:
        """Mean number of steps per role."""
        return {role: sum(steps) / len(steps) for role, steps in self.taken.items()}


@contextmanager
def evaluating(model: PlumeModel) -> Iterator[None]:
    """The model in evaluation mode for as long as the context is open."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def prepare(
    model: PlumeModel, processor: PlumeProcessor, inputs: Sequence[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """Model inputs of a batch, on the model's device. Tasks write instructions and choose frames themselves."""
    features = processor.process_documents(list(inputs), prompt="", num_frames=_MANY_FRAMES)
    return dict(features.to(model.device))


class PooledEmbedder:
    """A checkpoint on several devices, through sentence-transformers' pool of processes.

    Args:
        path: Folder or Hub id.
        devices: One process each, e.g. ``["cuda:0", "cuda:1"]``.
        latent_steps: K. Defaults to the checkpoint's.
        batch_size: Inputs per forward pass.
        dtype: Of the weights.
        revision: Of a Hub checkpoint.
    """

    def __init__(
        self,
        path: str,
        devices: Sequence[str],
        latent_steps: int | None = None,
        batch_size: int = 8,
        dtype: str = "auto",
        revision: str | None = None,
    ) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(path, device="cpu", revision=revision, model_kwargs={"dtype": dtype})
        transformer: Any = self.model[0]
        processor, config = transformer.processor, transformer.model.config
        self.condition = processor_condition(processor, steps_condition(config, latent_steps)) | {
            "dtype": str(transformer.model.dtype).removeprefix("torch."),
            "checkpoint": fingerprint(path, revision),
        }
        processor.num_frames = _MANY_FRAMES
        self.steps = {role: config.check_num_latent_steps(latent_steps, role) for role in ("query", "document")}
        self.batch_size = batch_size
        self.pool = self.model.start_multi_process_pool(list(devices))

    def encode(self, inputs: Sequence[Mapping[str, Any]], role: str) -> torch.Tensor:
        """Vectors of the inputs, ``(B, D)``, fp32, on the CPU."""
        vectors = self.model.encode(
            list(inputs),
            prompt="",
            pool=self.pool,
            batch_size=self.batch_size,
            chunk_size=self.batch_size,
            num_latent_steps=self.steps[role],
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return torch.as_tensor(vectors).float()

    def close(self) -> None:
        """End the processes."""
        self.model.stop_multi_process_pool(self.pool)


def load_embedder(
    path: str | Path,
    *,
    latent_steps: int | None = None,
    devices: Sequence[str] = (),
    batch_size: int = 8,
    dtype: str = "auto",
    revision: str | None = None,
    exit_threshold: float | None = None,
    exit_steps: Sequence[int] | None = None,
) -> ModelEmbedder | PooledEmbedder:
    """Load a checkpoint for evaluation.

    Args:
        path: Folder or Hub id.
        latent_steps: K. Defaults to the checkpoint's.
        devices: Torch devices; a GPU or the CPU if omitted, a pool of processes where several.
        batch_size: Inputs per forward pass, where several devices share a call.
        dtype: Of the weights, e.g. ``"bfloat16"``; the checkpoint's with ``"auto"``.
        revision: Of a Hub checkpoint.
        exit_threshold: As in :class:`EarlyEmbedder`; none lets every input take all steps.
        exit_steps: Likewise.

    Raises:
        ValueError: If there is a threshold and several devices.
    """
    if len(devices) > 1:
        if exit_threshold is not None:
            raise ValueError("Early exit runs on one device: give one with --devices, or leave out --exit-threshold.")
        return PooledEmbedder(str(path), devices, latent_steps, batch_size, dtype, revision)
    device = devices[0] if devices else None
    model, processor = plume.load(path, device=device, dtype=dtype, revision=revision or "main")
    options: dict[str, Any] = {"latent_steps": latent_steps, "checkpoint": fingerprint(path, revision)}
    if exit_threshold is None:
        return ModelEmbedder(model, processor, **options)
    return EarlyEmbedder(model, processor, exit_threshold, exit_steps, **options)


def steps_condition(config: Any, latent_steps: int | None = None) -> int | str:
    """K for the condition of a score; a text if the checkpoint has another one for documents.

    Raises:
        ValueError: If the model cannot run it.
    """
    of_queries, of_documents = (config.check_num_latent_steps(latent_steps, role) for role in ("query", "document"))
    return of_queries if of_queries == of_documents else f"{of_queries} (documents {of_documents})"


def processor_condition(processor: PlumeProcessor, latent_steps: int | str) -> dict[str, Any]:
    """What of the processor changes vectors, and K; settings of newer processors only where they are not the usual."""
    usual = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(processor)
    }
    settings = {
        name: value
        for name, value in vars(processor).items()
        if name in _LIMITS or (name in _PIXEL_SETTINGS and value != usual[name])
    }
    return {"latent_steps": latent_steps, "anchor_token": processor.anchor_token, **settings}


def fingerprint(path: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What identifies a checkpoint: hashes over weights and settings of a folder, the commit of a Hub id."""
    folder = Path(path)
    if not folder.is_dir():
        config = AutoConfig.from_pretrained(path, revision=revision or "main")
        return {"name": str(path), "revision": config._commit_hash}
    settings = [folder / name for name in SETTINGS_FILES if (folder / name).is_file()]
    return {
        "name": folder.name,
        "hash": _hash_files(sorted(folder.glob("*.safetensors"))),
        "settings": _hash_files(settings),
    }


def _hash_files(files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as opened:
            for block in iter(lambda: opened.read(1 << 24), b""):
                digest.update(block)
    return digest.hexdigest()


def weights_hash(model: PlumeModel) -> str:
    """A hash over the weights and the configuration of a model in memory."""
    digest = hashlib.blake2b(model.config.to_json_string().encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
