"""The files, next to weights and code, that make a folder a complete Hub repository.

Three JSON files let sentence-transformers drive the model with its built-in module, so that there is no second
implementation. A save leaves no older weights behind, and a load looks at the headers of weights first.
"""

import importlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

# Weights of an earlier save or upload in other pieces would be loaded instead of the new ones.
WEIGHT_FILES = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
_FLOATS = ("F64", "F32", "F16", "BF16")
# What says how sentence-transformers drives the model; a repository's own stay.
ST_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
_PACKAGE = "plume.hub.folder"  # the card and the upload: no vector depends on them
PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr")

_TYPE = "sentence_transformers.base.modules.transformer.Transformer"
_MODULE = {"idx": 0, "name": "0", "path": "", "type": _TYPE, "kwargs": ["num_latent_steps", "task"]}
_MODALITY = {"method": "forward", "method_output_name": "embeddings"}
_TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {name: _MODALITY for name in ("text", "image", "video")}
    | {"message": {**_MODALITY, "format": "structured"}},
    "module_output_name": "sentence_embedding",
    # Where a text is cut, the processor keeps the ending: sentence-transformers shall not write its own over it.
    "processing_kwargs": {"chat_template": {"add_generation_prompt": True, "restore_suffix": False}},
    "unpad_inputs": False,  # flattened inputs would lose the rows that the rollout needs
}
_SENTENCE_TRANSFORMERS = {
    "model_type": "SentenceTransformer",
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
    "requirements": {
        "transformers": {"specifier": ">=5.0,<6", "reason": "PLUME subclasses the Qwen2-VL of transformers 5."}
    },
}


def write_hub_files(folder: str | os.PathLike, prompts: dict[str, str] | None = None) -> None:
    """Write the sentence-transformers files into ``folder``, and a model card if the package is installed.

    What the folder has already stays, because sentence-transformers saves its own before it asks model and processor to
    save theirs. ``prompts`` are the instructions per role, where the caller owns them.
    """
    root, settings = Path(folder), Path(folder, "config_sentence_transformers.json")
    existing = json.loads(settings.read_text("utf-8")) if settings.exists() else {}
    if prompts is not None and "__version__" not in existing:  # sentence-transformers writes its version
        existing["prompts"] = prompts
    for name, content in (("modules.json", [_MODULE]), ("sentence_bert_config.json", _TRANSFORMER)):
        if not (root / name).exists():
            (root / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    with suppress(ImportError):
        importlib.import_module(_PACKAGE).write_card(root)
    settings.write_text(json.dumps({**_SENTENCE_TRANSFORMERS, **existing}, indent=2), encoding="utf-8")


class HubFolder:
    """What is uploaded as the whole folder that its ``save_pretrained`` writes."""

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload all that is saved; ``options`` are those of ``plume.hub.folder.push_folder``.

        Raises:
            ImportError: If the package is not installed, which keeps the card and the prompts of a repository.
        """
        try:
            package = importlib.import_module(_PACKAGE)
        except ImportError as error:
            cause = "push_to_hub needs the package, which keeps a repository's card and prompts"
            raise ImportError(f"{cause}: pip install plume-embedding, or save_pretrained and `hf upload`.") from error
        return package.push_folder(self, repo_id, **options)


def check_weights(name: str | os.PathLike, options: Mapping[str, Any], loaded: bool) -> None:
    """Refuse a checkpoint of whose weights ``from_pretrained(name, **options)`` would make something else.

    A folder is looked at before it is loaded; a repository of the Hub afterwards, in the cache.

    Raises:
        ValueError: As :func:`weight_headers`. What is no safetensors passes.
    """
    subfolder = options.get("subfolder") or ""
    if os.path.isdir(name) and not loaded:
        weight_headers(Path(name, subfolder))
    elif loaded and not os.path.isdir(name):
        file = Path(subfolder, "config.json").as_posix()
        found = try_to_load_from_cache(str(name), file, options.get("cache_dir"), options.get("revision"))
        if isinstance(found, str):
            weight_headers(Path(found).parent)


def weight_headers(root: Path) -> dict[str, dict[str, tuple[str, list[int]]]]:
    """Type and shape of the tensors of each weight file in a folder, by the headers alone, in milliseconds.

    Raises:
        ValueError: If a file is missing, damaged or outside the folder, two sets of weights are there, a tensor of the
            index is in no file, or tensors of an unquantized model are no floating-point numbers.
    """
    placed, single = _placed(root), [WEIGHT_FILES[0]] * (root / WEIGHT_FILES[0]).is_file()
    if placed and not set(single) <= set(placed.values()):
        raise ValueError(f"{root} holds two sets of weights, {single[0]} and {WEIGHT_FILES[-1]}. Remove the older one.")
    headers = {file: _header(root / file) for file in sorted(set(placed.values())) or single}
    if lost := sorted(name for name, file in placed.items() if name not in headers[file]):
        where = f"{root / placed[lost[0]]} lacks {len(lost)} tensors that {WEIGHT_FILES[-1]} places there"
        raise ValueError(f"{where}, e.g. {lost[0]}: they are of different saves. Download or save both again.")
    config = root / "config.json"
    quantized = config.is_file() and "quantization_config" in json.loads(config.read_text("utf-8"))
    for file, header in headers.items():
        odd = sorted(name for name, (kind, _) in header.items() if kind not in _FLOATS)
        if odd and not quantized:
            cause = f"{root / file} holds {odd[0]} as {header[odd[0]][0]}, and config.json states no quantization"
            raise ValueError(f"{cause}: rounded weights give other vectors. Save it in float32 or bfloat16.")
    return headers


def _header(path: Path) -> dict[str, tuple[str, list[int]]]:
    try:
        with safe_open(path, "pt") as file:
            entries = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: (entry.get_dtype(), entry.get_shape()) for name, entry in entries.items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The shard {path} is missing, truncated or damaged: {error}. Download it again.") from error


def _placed(root: Path) -> dict[str, str]:
    """The file of each tensor by the index of a folder, nothing without one."""
    index = root / WEIGHT_FILES[-1]
    try:
        placed = json.loads(index.read_text("utf-8"))["weight_map"] if index.is_file() else {}
        outside = [file for file in placed.values() if Path(file).name != file]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is damaged: it has no weight_map from tensors to files. Take another.") from error
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}, a file outside the folder. Put the shards next to it.")
    return placed
