"""The files of a checkpoint folder: what makes it a complete Hub repository, and which weights are its own.

Three JSON files let sentence-transformers drive the model with its built-in module, so that no custom module
(and no second implementation) exists; a model card tells people how to load it. Existing cards are kept. Weights are
looked at by their headers alone: :func:`check_weights` names what is damaged before a model is built.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi

# Weights of an earlier save or upload in other pieces would be loaded instead of the new ones.
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = [_WEIGHTS, "model-*-of-*.safetensors", _INDEX]
_FLOATS = ("F64", "F32", "F16", "BF16")
# What says how sentence-transformers drives the model; a repository's own stay.
ST_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
# Beside the weights, what changes vectors.
SETTINGS_FILES = ("config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja")
PUSH_OPTIONS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr")
HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")

_MODALITY = {"method": "forward", "method_output_name": "embeddings"}

_MODULES = [
    {
        "idx": 0,
        "name": "0",
        "path": "",
        "type": "sentence_transformers.base.modules.transformer.Transformer",
        "kwargs": ["num_latent_steps"],
    }
]

_TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {
        "text": _MODALITY,
        "image": _MODALITY,
        "video": _MODALITY,
        "message": {**_MODALITY, "format": "structured"},
    },
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

MODEL_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- transformers
- multimodal-embedding
- visual-document-retrieval
- video-retrieval
- latent-reasoning
- custom_code
---
# PLUME

Text, images, videos and page images in one retrieval space. Before it embeds, the model thinks a few latent
steps over its key-value cache (PLUME, arXiv 2604.02073). Replace `org/plume` by this repository's id.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("org/plume", trust_remote_code=True)
queries = model.encode_query(["a red bus at a stop"])
documents = model.encode_document([{"image": "bus.jpg"}, {"video": "bus.mp4"}, "a bus timetable"])
print(model.similarity(queries, documents))
```

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("org/plume", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("org/plume", trust_remote_code=True)
embeddings = model(**processor.process_queries(["a red bus at a stop"])).embeddings
```

The number of latent steps, the token positions, the prompt and the pixel limits are stored with the weights.
State here: training data, scores with their condition, limits, licence and base model.
"""


def write_hub_files(folder: str | os.PathLike, prompts: dict[str, str] | None = None) -> None:
    """Write the sentence-transformers files into ``folder``, and a model card where there is none.

    Settings that the folder has already stay, because sentence-transformers saves its own before it asks model and
    processor to save theirs.

    Args:
        folder: Directory of a saved model or processor.
        prompts: Instruction per role (``"query"``, ``"document"``), where the caller owns them.
    """
    root = Path(folder)
    settings = root / "config_sentence_transformers.json"
    existing = json.loads(settings.read_text("utf-8")) if settings.exists() else {}
    if prompts is not None and "__version__" not in existing:  # sentence-transformers writes its version
        existing["prompts"] = prompts
    contents = {
        "modules.json": _MODULES,
        "sentence_bert_config.json": _TRANSFORMER,
        settings.name: {**_SENTENCE_TRANSFORMERS, **existing},
    }
    for name, content in contents.items():
        if name == settings.name or not (root / name).exists():
            (root / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    card = root / "README.md"
    if not card.exists():
        card.write_text(MODEL_CARD, encoding="utf-8")


def push_saved(
    save: Callable[[str], Any],
    repo_id: str,
    *,
    commit_message: str = "Upload PLUME",
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Upload what ``save`` writes into a folder; card and settings of sentence-transformers of the repository are kept.

    Args:
        save: Saves into the folder it is given.
        repo_id: Repository, created where it does not exist.
        commit_message: Title of the commit.
        commit_description: Text of the commit.
        private: Whether a new repository is private.
        token: Hub token; the stored one where omitted.
        revision: Branch to commit to.
        create_pr: Whether to open a pull request instead of committing.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        for name in ST_FILES:
            if api.file_exists(repo_id, name, revision=revision):
                api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder)
        save(folder)
        has_weights = any(Path(folder).glob("model*.safetensors"))  # a processor has none
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=WEIGHT_FILES if has_weights else None,
            ignore_patterns=["README.md"] if api.file_exists(repo_id, "README.md", revision=revision) else None,
        )


@contextmanager
def replacing_weights(folder: str | os.PathLike, is_main_process: bool = True) -> Iterator[None]:
    """Around a save: afterwards the folder holds the new weights and no older ones in other pieces.

    Args:
        folder: Where the model is saved.
        is_main_process: Whether this process writes; the others touch nothing.
    """
    root = Path(folder)
    if not is_main_process:
        yield
        return
    (root / _INDEX).unlink(missing_ok=True)  # so that the one that is there afterwards is new
    yield
    kept = {_INDEX, *_read_index(root).values()} if (root / _INDEX).is_file() else {_WEIGHTS}
    if all((root / name).is_file() for name in kept):
        for path in [path for pattern in WEIGHT_FILES for path in root.glob(pattern)]:
            if path.name not in kept:
                path.unlink()


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
        raise ValueError(f"{root / _INDEX} names {outside[0]!r}, a file outside the folder. Put the shards beside it.")
    return placed


def _is_quantized(root: Path) -> bool:
    config = root / "config.json"
    return config.is_file() and "quantization_config" in json.loads(config.read_text("utf-8"))
