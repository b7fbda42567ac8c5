"""Weights of a checkpoint folder, looked at by the headers of their files before a model is built.

What is damaged, or would silently give another model, is named with its file, its cause and what to do. This file does
not travel with the weights: without the package the libraries' own errors remain.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from .hub_files_plume import SETTINGS_FILES

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")


def check_folder(folder: str | os.PathLike, options: Mapping[str, Any]) -> None:
    """Refuse a checkpoint folder from which ``from_pretrained(folder, **options)`` would build something else.

    Raises:
        ValueError: If config.json is missing, which would give a model of the default size, or for the reasons of
            :func:`check_weights`. Hub ids and weights under other names pass.
    """
    root = Path(folder, options.get("subfolder") or "")
    if not root.is_dir() or options.get("variant") or (root / "adapter_config.json").is_file():
        return
    if options.get("config") is None and not (root / "config.json").is_file():
        raise ValueError(
            f"{root} has no config.json, so shape and settings of the model are unknown. Save the model there, or "
            "download the file of its repository."
        )
    check_weights(root)


def check_weights(folder: str | os.PathLike) -> dict[str, dict[str, dict[str, Any]]]:
    """Look at the weights of a checkpoint folder by their headers, in milliseconds.

    Args:
        folder: Checkpoint folder.

    Returns:
        Per file the entries of its header (``dtype``, ``shape``) by the names of the tensors; nothing if the folder has
        no safetensors.

    Raises:
        ValueError: If a file is missing, truncated or damaged, two sets of weights are there, a tensor of the index is
            in no file, or tensors of an unquantized model are no floating-point numbers.
    """
    root = Path(folder)
    placed = _read_index(root) if (root / _INDEX).is_file() else {}
    files = sorted(set(placed.values())) or [_WEIGHTS] * (root / _WEIGHTS).is_file()
    if placed and _WEIGHTS not in files and (root / _WEIGHTS).is_file():
        raise ValueError(
            f"{root} holds {_WEIGHTS} and {_INDEX}, two sets of weights, of which one is older. Remove the one that is "
            "not meant."
        )
    headers = {file: read_header(root / file) for file in files}
    lost = sorted(name for name, file in placed.items() if name not in headers[file])
    if lost:
        raise ValueError(
            f"{root / placed[lost[0]]} lacks {len(lost)} tensors that {_INDEX} places there, e.g. {lost[0]}: the files "
            "are of different saves. Download or save the checkpoint again."
        )
    for file, header in headers.items():
        odd = sorted(name for name, entry in header.items() if entry["dtype"] not in _FLOATS)
        if odd and not _is_quantized(root):
            raise ValueError(
                f"{root / file} holds {odd[0]} as {header[odd[0]]['dtype']}, and config.json states no quantization: "
                "rounded weights give other vectors. Save the model in float32 or bfloat16."
            )
    return headers


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The entries (``dtype``, ``shape``) of a safetensors file by the names of its tensors.

    Raises:
        ValueError: If the file is missing, truncated or damaged.
    """
    if not path.is_file():
        raise ValueError(f"The shard {path.name} is missing from {path.parent}. Download the checkpoint again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            entries = json.loads(file.read(length)) if 8 + length <= size else {}
            entries.pop("__metadata__", None)
            header = {name: {key: entry[key] for key in ("dtype", "shape")} for name, entry in entries.items()}
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"The shard {path} is damaged: it has no readable header. Download it again.") from error
    if size != 8 + length + end:
        raise ValueError(f"The shard {path} is truncated or damaged: it has {size} bytes. Download it again.")
    return header


def identity_of(model: str | os.PathLike, dtype: str) -> str:
    """What tells vectors of two checkpoints apart: the checkpoint's name, for people, and a hash after it.

    The hash covers weights, their dtype, settings and prompt; see :func:`~plume.apps.shared.rows.same_checkpoint`.

    Args:
        model: Folder, or Hub id of a checkpoint that was downloaded.
        dtype: Of the weights as they are loaded, e.g. ``torch.float32``.
    """
    folder = Path(model)
    name = folder.resolve().name if folder.is_dir() else str(model)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(model), local_files_only=True))
    digest = hashlib.blake2b(dtype.encode(), digest_size=12)
    for path in sorted([*folder.glob("*.safetensors"), *(folder / name for name in SETTINGS_FILES)]):
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return f"{name} {digest.hexdigest()}"


def _read_index(root: Path) -> dict[str, str]:
    """The file of each tensor, from the index.

    Raises:
        ValueError: If the index is no index, or names files of another folder.
    """
    try:
        placed = json.loads((root / _INDEX).read_text("utf-8"))["weight_map"]
        outside = sorted({file for file in placed.values() if Path(file).name != file})
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{root / _INDEX} is damaged: it has no weight_map from tensors to files. Download it again."
        ) from error
    if outside:
        raise ValueError(f"{root / _INDEX} names {outside[0]!r}, a file outside the folder. Put the shards next to it.")
    return placed


def _is_quantized(root: Path) -> bool:
    config = root / "config.json"
    return config.is_file() and "quantization_config" in json.loads(config.read_text("utf-8"))
