"""What an exported folder holds, byte for byte: written by the export, checked before anything of it runs.

``manifest.json`` names every file with its size and SHA-256, the settings of the model that the runtime needs, and the
checkpoint; it ends in a digest of itself. Every graph carries the checkpoint's name too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1  # of the folder; another number is refused
TOKENS, DECODER, VISION = "tokens.onnx", "decoder.onnx", "vision.onnx"
TOKENIZER, PROCESSOR, TEMPLATE, GOLDEN = "tokenizer.json", "processor_config.json", "chat_template.jinja", "golden.npz"
CHECKPOINT_KEY = "plume.checkpoint"  # in the metadata of a graph

_AGAIN = "Export the checkpoint again with `plume export`, or copy the folder again, whole."


@dataclass(frozen=True)
class Settings:
    """What the runtime must know of the model.

    Attributes:
        num_latent_steps: K of a call that names none.
        num_latent_steps_query: K of queries, if they have one of their own.
        num_latent_steps_document: K of documents, likewise.
        max_latent_steps: The largest K.
        hidden_size: D, length of a vector.
        num_active_experts: K_r, experts that the router selects per step.
        num_layers: Layers of the decoder.
        num_key_value_heads: Heads of keys and values.
        head_dim: Width of a head.
        spatial_merge_size: Patches of a visual token along an edge.
        anchor_token_id: Token whose state is the semantic anchor.
        embedding_token_id: Token whose state is the embedding.
        suffix_token_ids: Tokens after the latent steps.
        image_token_id: Placeholder of pictures.
        video_token_id: Placeholder of clips.
        model_max_length: Most tokens of an input.
        pad_token_id: What fills short rows.
    """

    num_latent_steps: int
    num_latent_steps_query: int | None
    num_latent_steps_document: int | None
    max_latent_steps: int
    hidden_size: int
    num_active_experts: int
    num_layers: int
    num_key_value_heads: int
    head_dim: int
    spatial_merge_size: int
    anchor_token_id: int
    embedding_token_id: int
    suffix_token_ids: list[int]
    image_token_id: int
    video_token_id: int
    model_max_length: int
    pad_token_id: int

    def check_num_latent_steps(self, num_latent_steps: int | None = None, task: str | None = None) -> int:
        """Return K of a call if the model can run it; as in [`PlumeConfig`].

        Args:
            num_latent_steps: K. Defaults to that of the task.
            task: ``"query"`` or ``"document"``.

        Raises:
            ValueError: If K is no integer, negative, or above the step embedding table.
        """
        own = {"query": self.num_latent_steps_query, "document": self.num_latent_steps_document}.get(task or "")
        steps = next(k for k in (num_latent_steps, own, self.num_latent_steps) if k is not None)
        if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= self.max_latent_steps:
            raise ValueError(
                f"num_latent_steps={steps!r} is no integer in 0..{self.max_latent_steps}: the step embedding e(k) of "
                "the exported model has no row for it. Choose a K in that range."
            )
        return steps


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        checkpoint: Hash of the exported model: settings, prompt and weights.
        int8: Whether the decoder's weights have eight bits.
        settings: Of the model.
        files: Name of a file -> its size in bytes and its SHA-256.
        versions: Libraries that wrote the folder.
    """

    checkpoint: str
    int8: bool
    settings: Settings
    files: dict[str, tuple[int, str]]
    versions: dict[str, str]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, with the files that lie in it."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "checkpoint": manifest.checkpoint,
        "int8": manifest.int8,
        "settings": vars(manifest.settings),
        "versions": manifest.versions,
        "files": {
            path.name: [path.stat().st_size, digest_of(path)]
            for path in sorted(folder.iterdir())
            if path.name != MANIFEST
        },
    }
    content["digest"] = _digest(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a folder, and every file that it names.

    Raises:
        ValueError: If the folder is no export, its manifest or a file differs from what was written, or one is missing.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} has no {MANIFEST}, so it is no exported model. {_AGAIN}")
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("digest")
        intact = digest == _digest(content)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it cannot be read. {_AGAIN}") from error
    if not intact:
        raise ValueError(f"{path} was changed after the export, so what it says of the graphs may be wrong. {_AGAIN}")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{folder} has format {content['format']}, and this version of plume reads {FORMAT}. Export the checkpoint "
            "again with it, or install the version that wrote the folder."
        )
    settings = Settings(**content["settings"])
    files = {name: (size, sha256) for name, (size, sha256) in content["files"].items()}
    _check_files(folder, files)
    return Manifest(content["checkpoint"], content["int8"], settings, files, content["versions"])


def _check_files(folder: Path, files: Mapping[str, tuple[int, str]]) -> None:
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder} lacks {name}, which its manifest names. {_AGAIN}")
        if path.stat().st_size != size or digest_of(path) != sha256:
            raise ValueError(f"{path} is not the file that was exported: its bytes differ. {_AGAIN}")


def cache_names(prefix: str, num_layers: int) -> list[str]:
    """Names of the keys and values of all layers in the graph of the decoder."""
    return [f"{prefix}_{part}_{layer}" for layer in range(num_layers) for part in ("key", "value")]


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
