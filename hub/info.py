"""What a checkpoint says of itself: its settings and the headers of its weights, without reading one of them."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from plume.hub_files_plume import ST_FILES, weight_headers

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def describe(model: str, revision: str | None = None) -> dict[str, str]:
    """Facts of a checkpoint by their names.

    Args:
        model: Folder or Hub id.
        revision: Of a Hub id.

    Raises:
        ValueError: If there is no PLUME checkpoint.
    """
    config, processor = _settings(model, "config.json", revision), _settings(model, "processor_config.json", revision)
    if not config:
        raise ValueError(
            f"config.json of {model} could not be read: there is no such folder or repository, or no connection."
        )
    if not str(config.get("model_type")).startswith("plume"):
        raise ValueError(
            f"{model} is no PLUME checkpoint: its config.json says model_type {config.get('model_type')!r}."
        )
    is_repository = "auto_map" in config and all(_settings(model, name, revision) for name in ST_FILES)
    shared = " and a shared one" if config["use_shared_expert"] else ""
    text = config["text_config"]
    return {
        "checkpoint": model,
        "type": f"{config['model_type']} ({', '.join(config['architectures'])})",
        "weights": _weights(model, revision),
        "backbone": f"{text['num_hidden_layers']} layers, width {text['hidden_size']}, which is the length of a vector",
        "latent steps": _steps(config),
        "experts": f"{config['num_active_experts']} of {config['num_experts']} per step{shared}",
        "positions": config["position_scheme"],
        "query prompt": repr(processor.get("query_prompt")),
        "document prompt": repr(processor.get("document_prompt")),
        "picture pixels": f"{processor.get('min_pixels')} to {processor.get('max_pixels')}",
        "clip": f"{processor.get('num_frames')} frames of {processor.get('video_min_pixels')} to "
        f"{processor.get('video_max_pixels')} pixels",
        "loads": "anywhere, with trust_remote_code=True" if is_repository else "after `import plume` only",
    }


def _steps(config: dict[str, Any]) -> str:
    """K, that of one side where it has its own, and the largest."""
    own = {side: config.get(f"num_latent_steps_{side}") for side in ("query", "document")}
    told = [f"{steps} for a {side}" for side, steps in own.items() if steps is not None]
    return ", ".join([str(config["num_latent_steps"]), *told, f"at most {config['max_latent_steps']}"])


def _settings(model: str, name: str, revision: str | None) -> Any:
    """A JSON file of a checkpoint; empty if there is none."""
    path = Path(model, name)
    if not Path(model).is_dir():
        try:
            path = Path(hf_hub_download(model, name, revision=revision))
        except EntryNotFoundError:
            return {}
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _weights(model: str, revision: str | None) -> str:
    counts: Counter[str] = Counter()
    if Path(model).is_dir():
        for header in weight_headers(Path(model)).values():
            for kind, shape in header.values():
                counts[kind] += math.prod(shape)
    else:
        counts.update(HfApi().get_safetensors_metadata(model, revision=revision).parameter_count)
    size = sum(count * _BYTES.get(dtype, 1) for dtype, count in counts.items())
    return ", ".join(f"{count:,} in {dtype}" for dtype, count in counts.items()) + f", {size / 1e6:,.1f} MB"
