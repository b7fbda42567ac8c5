"""The tensors of a published checkpoint: where they lie, what they are called there, and what they are called here."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from plume.hub_files_plume import weight_headers

ADAPTER = "latent_moe_transition."
_WRAPPERS = re.compile(r"^(?:module\.|base_model\.model\.)+")
_EXPERT = re.compile(r"(?:experts\.(\d+)|shared_expert)\.fc([12])\.(weight|bias)$")


@dataclass(frozen=True)
class Source:
    """Safetensors of a checkpoint, opened but not read.

    Attributes:
        folder: Where it lies.
        shards: File name -> name of a tensor -> its type and shape.
    """

    folder: Path
    shards: dict[str, dict[str, tuple[str, list[int]]]]

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return [name for names in self.shards.values() for name in names]

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum((self.folder / shard).stat().st_size for shard in self.shards)

    def read(self, shard: str, names: list[str]) -> dict[str, torch.Tensor]:
        """Tensors of one shard."""
        with safe_open(self.folder / shard, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}

    def num_rows(self, target: str) -> int:
        """Rows of the tensor that is called ``target`` here, without reading it.

        Raises:
            ValueError: If there is none.
        """
        for header in self.shards.values():
            for name, entry in header.items():
                if rename(name) == target:
                    return entry[1][0]
        raise ValueError(f"{self.folder} lacks {target}: it is no Qwen-VL checkpoint, or a shard is missing.")


def open_source(folder: Path) -> Source:
    """Find the safetensors of a checkpoint.

    Raises:
        ValueError: If there are none, or only pickles, or a shard is missing or damaged.
    """
    headers = weight_headers(folder)
    if not headers:
        pickles = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        why = f"only pickles ({', '.join(pickles)}), which can run code when read" if pickles else "no weights"
        raise ValueError(f"{folder} holds {why}. Save the checkpoint as safetensors first.")
    return Source(folder, headers)


def rename(name: str) -> str | None:
    """Name of a backbone tensor in this package; None if it is not one. Both key prefixes of Qwen2-VL are known.

    >>> rename("visual.patch_embed.proj.weight"), rename("model.layers.0.mlp.up_proj.weight")
    ('model.visual.patch_embed.proj.weight', 'model.language_model.layers.0.mlp.up_proj.weight')
    """
    name = _WRAPPERS.sub("", name)
    if name == "lm_head.weight" or name.startswith(("model.visual.", "model.language_model.")):
        return name
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("language_model."):
        return f"model.{name}"
    if re.match(r"model\.(?:embed_tokens|layers|norm)\.", name):
        return name.replace("model.", "model.language_model.", 1)
    return None


def convert_adapter(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The released adapter under the names and in the shapes of :class:`~plume.latent_plume.LatentTransition`.

    Linear layers become columns of one stacked bank of experts, the shared one first.

    Args:
        tensors: Tensors whose names begin with ``latent_moe_transition.``, by the rest of their names.

    Raises:
        ValueError: If a tensor is unknown or missing.
    """
    plain = {
        "ln.weight": "layer_norm.weight",
        "ln.bias": "layer_norm.bias",
        "step_embed.weight": "router.step_embedding.weight",
        "router.weight": "router.projection.weight",
        "router.bias": "router.projection.bias",
    }
    prefixes = _expert_prefixes(tensors)
    experts = {f"{prefix}.fc{layer}.{part}" for prefix in prefixes for layer in (1, 2) for part in ("weight", "bias")}
    unknown = sorted(tensors.keys() - plain.keys() - experts)
    missing = sorted((plain.keys() | experts) - tensors.keys())
    if unknown or missing:
        raise ValueError(
            f"The released adapter has unknown tensors {unknown} and lacks {missing}: it is of another kind, or "
            "a shard is missing."
        )
    converted = {target: tensors[name] for name, target in plain.items()}
    for layer, ours in (("fc1", "up"), ("fc2", "down")):
        weights = [tensors[f"{prefix}.{layer}.weight"].T for prefix in prefixes]
        biases = [tensors[f"{prefix}.{layer}.bias"].unsqueeze(0) for prefix in prefixes]
        converted[f"experts.{ours}_weight"] = torch.stack(weights).contiguous()
        converted[f"experts.{ours}_bias"] = torch.stack(biases).contiguous()
    return {f"latent_transition.{name}": tensor.contiguous() for name, tensor in converted.items()}


def _expert_prefixes(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Experts in the order of the bank: the shared one first."""
    found = {name.rsplit(".", 2)[0] for name in tensors if _EXPERT.match(name)}
    return sorted(found, key=lambda prefix: -1 if prefix == "shared_expert" else int(prefix.split(".")[1]))


def adapter_fields(adapter: dict[str, torch.Tensor]) -> dict[str, int | bool]:
    """Fields of the configuration that follow from the shapes of a converted adapter.

    Args:
        adapter: From :func:`convert_adapter`.
    """
    banked, width, expanded = adapter["latent_transition.experts.up_weight"].shape
    num_experts = len(adapter["latent_transition.router.projection.bias"])
    return {
        "num_experts": num_experts,
        "use_shared_expert": banked > num_experts,
        "expert_expansion": expanded // width,
        "max_latent_steps": len(adapter["latent_transition.router.step_embedding.weight"]),
    }
