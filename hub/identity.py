"""What tells vectors of two checkpoints apart."""

import hashlib
import os
from pathlib import Path

from huggingface_hub import snapshot_download

# Apart from the weights, what changes vectors.
SETTINGS_FILES = ("config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja")


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
