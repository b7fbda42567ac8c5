"""A checkpoint folder on the Hub: a card written from its own files, then one upload."""

import json
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from plume.hub.closure import closure
from plume.hub.folder import MODEL_CARD
from plume.hub.layout import open_source
from plume.hub_files_plume import WEIGHT_FILES

HANDLER = Path(__file__).parents[1] / "handler.py"
_LIMITS = (
    "vLLM and TEI cannot run the latent rollout; `plume export` writes graphs for onnxruntime. Scores of other "
    "embedders are comparable only on the same data version. Languages and topics are those of the backbone and the "
    "training data."
)
# What a checkpoint is made of; anything else in the folder stays there.
_KINDS = ("*.safetensors", "*.json", "*_plume*.py", "*.jinja", "merges.txt", "LICENSE*")
# What lets a Hugging Face Inference Endpoint serve it; a folder's own come first.
_ENDPOINT = {"handler.py": HANDLER.read_text("utf-8"), "requirements.txt": "transformers>=5.0,<6\nav>=14.1\n"}
_LEFT_OUT = ("trainer_state.json", "optimizer*", "scheduler*")


def endpoint_files(folder: Path) -> dict[str, str]:
    """Contents of the files that let an Inference Endpoint serve a checkpoint, by name; a folder's own are taken."""
    own = {name: folder / name for name in _ENDPOINT if (folder / name).is_file()}
    return _ENDPOINT | {name: path.read_text("utf-8") for name, path in own.items()}


def build_card(folder: Path, repo_id: str, license_id: str | None = None) -> str:
    """Model card of a checkpoint, from its configuration, conversion report, curriculum and score files.

    Args:
        folder: Checkpoint folder.
        repo_id: Repository it goes to.
        license_id: SPDX id of the weights' licence. Left open by default.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    conversion = _read(folder / "conversion.json")
    shared = "and a shared one" if config["use_shared_expert"] else "without a shared one"
    lines = [
        "",
        "## This checkpoint",
        "",
        f"K = {config['num_latent_steps']} latent steps, {config['num_active_experts']} of {config['num_experts']} "
        f"experts {shared}, positions `{config['position_scheme']}`.",
    ]
    if conversion:
        lines.append(
            f"Converted from `{conversion['source']}` ({conversion['kind']}). {'. '.join(conversion['notes'])}."
        )
        if conversion["kind"] != "plume" and not (folder / "curriculum.json").is_file():
            lines.append("**The transition adapter is untrained**: a start for training, not a retrieval model.")
    curriculum = _read(folder / "curriculum.json")
    lines += ["", "## Training", "", f"Curriculum: `{json.dumps(curriculum)}`." if curriculum else "Not stated."]
    lines += ["", "## Scores", "", *_score_lines(_read(folder / "scores.json"))]
    carbon = _read(folder / "emissions.json")
    lines += [
        "",
        f"CO2: {carbon['kg']} kg, {carbon['source']}." if carbon else "The emissions of training are not known.",
    ]
    lines += ["", "## Limits", "", _LIMITS]
    front, body = MODEL_CARD.split("---\n", 2)[1:]
    base = conversion.get("source")
    front += f"license: {license_id}\n" if license_id else ""
    front += f"base_model: {base}\n" if base and "/" in base else ""
    return f"---\n{front}---\n{body.replace('org/plume', repo_id)}" + "\n".join(lines) + "\n"


def _score_lines(scores: dict[str, Any]) -> list[str]:
    if not scores:
        return ["None measured."]
    head = f"Data version: {scores['data_version']}. Condition: {scores['condition']}."
    return [
        head,
        "",
        "| task | score |",
        "|---|---|",
        *(f"| {task} | {value} |" for task, value in scores["tasks"].items()),
    ]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def files_to_publish(folder: Path) -> list[Path]:
    """Files of a checkpoint folder that go up, sorted.

    Raises:
        ValueError: If the folder lacks weights, code or the sentence-transformers files.
    """
    open_source(folder)
    needed = [
        folder / name for name in ("config.json", "processor_config.json", "modules.json", "tokenizer_config.json")
    ]
    absent = [path.name for path in [*needed, *closure(folder, folder)] if not path.is_file()]
    if absent:
        raise ValueError(f"{folder} lacks {', '.join(absent)}: save model and processor there first.")
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    inside = [path for module in modules if module["path"] for path in (folder / module["path"]).rglob("*")]
    return sorted(path for path in [*folder.iterdir(), *inside] if path.is_file() and _is_published(path.name))


def _is_published(name: str) -> bool:
    return any(fnmatch(name, kind) for kind in _KINDS) and not any(fnmatch(name, pattern) for pattern in _LEFT_OUT)


def publish(
    folder: Path, repo_id: str, *, create_pr: bool = False, private: bool = False, license_id: str | None = None
) -> CommitInfo:
    """Upload a checkpoint with a card of its own.

    Args:
        folder: Checkpoint folder.
        repo_id: Repository, created where it does not exist.
        create_pr: Open a pull request instead of committing.
        private: Whether a new repository is private.
        license_id: SPDX id of the weights' licence.
    """
    files = files_to_publish(folder)
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as scratch:
        for path in files:
            copy = Path(scratch) / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                copy.symlink_to(path.absolute())  # not a copy: weights can be large
            except OSError:  # Windows wants a privilege for links
                shutil.copyfile(path, copy)
        for name, content in endpoint_files(folder).items():
            (Path(scratch) / name).write_text(content, encoding="utf-8")
        card = Path(scratch) / "README.md"
        card.unlink(missing_ok=True)
        card.write_text(build_card(folder, repo_id, license_id), encoding="utf-8")
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=scratch,
            commit_message="Upload PLUME checkpoint",
            create_pr=create_pr,
            delete_patterns=WEIGHT_FILES,
        )
