"""Bring a published checkpoint into the layout of this package: ``python -m plume.hub.convert SOURCE TARGET``.

1. **Recognise** the layout from the names of the tensors and the tokenizer, without reading a weight.
2. **Plan** the configuration: what follows from shapes, what is documented, what the caller must say (K).
3. **Stream** shard by shard into a folder next to TARGET; the adapter, a few tensors, is put together at the end.
4. **Check** that exactly the tensors of the model are there, in its shapes.
5. **Finish**: configuration, code, processor, card, report; then the folder takes the name TARGET, all at once.
"""

import glob
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer
from transformers.dynamic_module_utils import custom_object_save

from plume import RELEASED_LAYOUT, PlumeModel, PlumeProcessor
from plume.hub import BACKBONES
from plume.hub.layout import ADAPTER, Source, adapter_fields, convert_adapter, open_source, rename
from plume.hub_files_plume import write_hub_files
from plume.layouts import LAYOUTS
from plume.start import build_config, model_class_of, processor_from_backbone

AUTHORS_LATENT_STEPS = 8  # K of the authors' evaluation script, whatever the training
# How the released checkpoint was evaluated: task texts come with the data, text-only inputs get a white image.
_RELEASED_PROCESSOR: dict[str, Any] = {
    "query_prompt": "",
    "max_pixels": 2_359_296,
    "video_min_pixels": 56 * 56,
    "video_max_pixels": 2_359_296,
    "blank_image_size": 28,
}
_EMBEDDING, _HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        kind: One of :data:`plume.hub.KINDS`.
        source: Folder or Hub id.
        notes: What was found and assumed, in sentences.
        tensors: Per target tensor (or ignored source tensor) what happened to it: copied, created, resized, ignored.
        fields: Fields of the configuration that PLUME adds.
    """

    kind: str
    source: str
    notes: list[str] = field(default_factory=list)
    tensors: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


def recognise(source: Source, model_type: str) -> str:
    """Kind of a checkpoint, from the names of its tensors, its tokenizer and the type of its configuration.

    Raises:
        ValueError: If it is in this package's layout already.
    """
    if any(name.startswith("latent_transition.") for name in source.names):
        raise ValueError(f"{source.folder} is in this package's layout already: load it with from_pretrained.")
    if any(ADAPTER in name for name in source.names):
        return "plume"
    vocabulary = AutoTokenizer.from_pretrained(source.folder).get_vocab()
    return "ume-r1" if RELEASED_LAYOUT.embedding in vocabulary else BACKBONES[model_type]


def convert(
    source: str,
    target: Path,
    kind: str = "auto",
    num_latent_steps: int | None = None,
    num_active_experts: int = 2,
    ignore: str | None = None,
    seed: int = 0,
    layout: str = "paper",
) -> Report:
    """Convert a checkpoint.

    Args:
        source: Folder or Hub id of a Qwen2-VL, Qwen2.5-VL, Qwen3-VL, UME-R1 or released PLUME checkpoint.
        target: New folder.
        kind: One of :data:`plume.hub.KINDS`, or ``"auto"``.
        num_latent_steps: K. A released PLUME checkpoint does not store it. Defaults to 8 for a fresh adapter.
        num_active_experts: K_r; not stored either, 2 in the paper.
        ignore: Regular expression of tensors to leave out.
        seed: Seed of a fresh adapter.
        layout: Prompt and tokens of a plain backbone, of :data:`plume.layouts.LAYOUTS`; ``"embedder"`` is the prompt of
            Qwen3-VL-Embedding, with which K = 0 gives its own vectors.

    Raises:
        ValueError: If the source is unusable, K is unknown, the target exists or the disk is full.
    """
    if target.exists():
        raise ValueError(f"{target} exists already, and nothing is overwritten. Choose another target or remove it.")
    local = Path(source)
    folder = local if local.is_dir() else Path(snapshot_download(source, ignore_patterns=["*.bin", "*.pt", "*.pth"]))
    backbone = AutoConfig.from_pretrained(folder)
    model_class = model_class_of(backbone.model_type)
    opened = open_source(folder)
    found = recognise(opened, backbone.model_type)
    if kind not in ("auto", found):
        raise ValueError(f"{source} looks like {found!r}, not {kind!r}. Pass --from {found}, or check the source.")
    report = Report(
        found,
        local.name if local.is_dir() else source,
        [f"recognised as {found}: {len(opened.names)} tensors in {len(opened.shards)} shards"],
    )
    processor = _processor(folder, found, layout)
    existing = next(parent for parent in target.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < 1.1 * opened.num_bytes:
        raise ValueError(f"{target} needs {opened.num_bytes >> 20} MiB and the disk has {free >> 20} MiB left.")
    adapter = convert_adapter(_read_adapter(opened)) if found == "plume" else {}
    if found == "plume" and processor.row_sources:
        raise ValueError(
            f"The tokenizer of {source} lacks {len(processor.row_sources)} of PLUME's tokens: files are missing."
        )
    fields = _plan(folder, processor, adapter, report, num_latent_steps, num_active_experts)
    # The configuration can be stale (4.52 saves do not update it): the tensor is right.
    wanted = max([*processor.row_sources, fields["latent_token_id"]]) + 1
    backbone.text_config.vocab_size = max(opened.num_rows(_EMBEDDING), wanted)
    with torch.device("meta"):
        model = model_class(build_config(backbone, **fields))
    with _all_or_nothing(target) as partial:
        _stream(opened, partial, model, processor, adapter, report, ignore, seed)
        _finish(partial, model, processor, report)
    return report


def _processor(folder: Path, kind: str, layout: str) -> PlumeProcessor:
    if layout not in LAYOUTS:
        raise ValueError(f"The layout {layout!r} is unknown. Use one of {', '.join(LAYOUTS)}.")
    if kind in BACKBONES.values():
        return processor_from_backbone(folder, LAYOUTS[layout])
    resize = {"resize": "released"} if kind == "plume" else {}  # pictures as its authors' pipeline resizes them
    return processor_from_backbone(folder, RELEASED_LAYOUT, **_RELEASED_PROCESSOR, **resize)


def _read_adapter(source: Source) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard, names in source.shards.items():
        wanted = [name for name in names if ADAPTER in name]
        found = source.read(shard, wanted) if wanted else {}
        tensors |= {name.split(ADAPTER, 1)[1]: tensor for name, tensor in found.items()}
    return tensors


def _plan(
    folder: Path,
    processor: PlumeProcessor,
    adapter: dict[str, torch.Tensor],
    report: Report,
    num_latent_steps: int | None,
    num_active_experts: int,
) -> dict[str, Any]:
    """2. What the configuration of the target adds to the backbone's."""
    fields: dict[str, Any] = {**processor.token_fields(), "num_active_experts": num_active_experts}
    if adapter:
        fields |= {**adapter_fields(adapter), "position_scheme": "kv_length"}
        if num_latent_steps is None and (num_latent_steps := _trained_steps(folder)) is not None:
            note = f"K = {num_latent_steps} from the last entry of trainer_state.json"
            if num_latent_steps != AUTHORS_LATENT_STEPS:
                note += (
                    f"; the authors' evaluation takes K = {AUTHORS_LATENT_STEPS} unless told otherwise, which gives "
                    f"other vectors: pass --num-latent-steps {AUTHORS_LATENT_STEPS} for theirs"
                )
            report.notes.append(note)
        if num_latent_steps is None:
            raise ValueError(
                "A released PLUME checkpoint does not store K, and its vectors depend on it. Pass --num-latent-steps "
                "(8 in the paper)."
            )
        report.notes.append(f"assumed, because no file states it: {num_active_experts} active experts, anchor context")
        report.notes.append("positions as in the authors' evaluation ('kv_length'); the paper's are 'mrope'")
    fields["num_latent_steps"] = 8 if num_latent_steps is None else num_latent_steps
    report.fields = fields
    return fields


def _trained_steps(folder: Path) -> int | None:
    state = folder / "trainer_state.json"
    history = json.loads(state.read_text("utf-8"))["log_history"] if state.is_file() else []
    steps = [entry["curriculum_latent_tokens"] for entry in history if "curriculum_latent_tokens" in entry]
    return int(steps[-1]) if steps else None


@contextmanager
def _all_or_nothing(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when everything in it is done, and goes away otherwise.

    A killed conversion leaves its folder; the next one to the same target removes it. The system gives up the lock of a
    killed process, so whoever holds it knows that folders of others are dead.

    Raises:
        ValueError: If another process converts to the same target now.
    """
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    path = parent / f".{target.name}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"Another process is converting to {target} now. Wait for it, or choose another.") from error
    try:
        for dead in parent.glob(f".{glob.escape(target.name)}.partial-*"):
            shutil.rmtree(dead)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=parent))
        try:
            yield partial
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            if partial.exists():
                shutil.rmtree(partial)
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _stream(
    source: Source,
    partial: Path,
    model: PlumeModel,
    processor: PlumeProcessor,
    adapter: dict[str, torch.Tensor],
    report: Report,
    ignore: str | None,
    seed: int,
) -> None:
    """3.-4. Write shard by shard, then the adapter; check names and shapes. The model has no memory, only shapes."""
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    config = model.config
    tied = config.tie_word_embeddings
    placed: dict[str, str] = {}
    sizes: Counter[torch.dtype] = Counter()
    for number, (shard, names) in enumerate(tqdm(source.shards.items(), desc="converting", unit="shard"), start=1):
        file = f"model-{number:05d}-of-{len(source.shards) + 1:05d}.safetensors"
        chosen = {}
        for name, target_name in _targets(names, tied, ignore, report).items():
            if target_name in placed or target_name in chosen:
                raise ValueError(
                    f"The source holds {target_name} twice, the second time as {name!r} in {shard}: one of them is not "
                    "meant. Leave it out with --ignore."
                )
            tensor = source.read(shard, [name])[name]
            if target_name in (_EMBEDDING, _HEAD):
                tensor = _with_rows(tensor, len(tensor), config.text_config.vocab_size, processor.row_sources)
                report.tensors[target_name] = "resized" if processor.row_sources else "copied"
            else:
                report.tensors[target_name] = "copied"
            _check(target_name, tensor, expected)
            chosen[target_name] = tensor
            sizes[tensor.dtype] += tensor.numel()
        save_file(chosen, partial / file, {"format": "pt"})
        placed |= dict.fromkeys(chosen, file)
    last = f"model-{len(source.shards) + 1:05d}-of-{len(source.shards) + 1:05d}.safetensors"
    dtype = sizes.most_common(1)[0][0]
    if len(sizes) > 1:
        report.notes.append(f"the source mixes {sorted(map(str, sizes))}; from_pretrained gives {dtype}")
    transition = adapter or _fresh_adapter(model, dtype, seed)
    for name, tensor in transition.items():
        _check(name, tensor, expected)
        report.tensors[name] = "copied" if adapter else "created"
    save_file(transition, partial / last, {"format": "pt"})
    placed |= dict.fromkeys(transition, last)
    config.dtype = config.text_config.dtype = dtype  # the configuration can be stale here too
    missing = sorted(expected.keys() - placed.keys() - ({_HEAD} if tied else set()))
    if missing:
        raise ValueError(
            f"The source lacks {len(missing)} tensors of the backbone, e.g. {missing[0]}: a shard is missing."
        )
    index = {"metadata": {"total_size": source.num_bytes}, "weight_map": placed}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _targets(names: list[str], tied: bool, ignore: str | None, report: Report) -> dict[str, str]:
    """Target name of each tensor of a shard; the adapter and what is to be ignored are left out."""
    targets = {}
    for name in names:
        target = rename(name)
        if ADAPTER in name:
            continue
        if (ignore and re.search(ignore, name)) or (target == _HEAD and tied):
            report.tensors[name] = "ignored"
        elif target is None:
            raise ValueError(
                f"The source holds the unexpected tensor {name!r}. Leave it out with --ignore, if that is right."
            )
        else:
            targets[name] = target
    return targets


def _with_rows(table: torch.Tensor, given: int, wanted: int, sources: dict[int, int]) -> torch.Tensor:
    """A table of ``wanted`` rows in which each new token starts from the row of its source."""
    if not sources:
        return table
    grown = torch.cat([table, table.new_zeros(wanted - given, table.shape[1])]) if wanted > given else table.clone()
    for new, source in sources.items():
        grown[new] = table[source]
    return grown


def _check(name: str, tensor: torch.Tensor, expected: dict[str, tuple[int, ...]]) -> None:
    if not tensor.is_floating_point():
        raise ValueError(
            f"The tensor {name} holds {tensor.dtype}, no floating-point numbers: the checkpoint is quantized. Convert "
            "the original one."
        )
    if not tensor.isfinite().all():
        raise ValueError(
            f"The tensor {name} holds NaN or infinity, so every vector would too. Download the checkpoint again, or "
            "take an earlier one."
        )
    if name not in expected or tuple(tensor.shape) != expected[name]:
        raise ValueError(
            f"The tensor {name} has shape {tuple(tensor.shape)}, the configuration wants {expected.get(name)}: "
            "config.json belongs to another backbone."
        )


def _fresh_adapter(model: PlumeModel, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """The adapter of a new model, initialised as the model initialises it; the backbone stays without memory."""
    adapter = model.latent_transition.to_empty(device="cpu")
    torch.manual_seed(seed)
    for module in adapter.modules():
        model._init_weights(module)
    state = adapter.state_dict()
    return {f"latent_transition.{name}": tensor.to(dtype).contiguous() for name, tensor in state.items()}


def _finish(partial: Path, model: PlumeModel, processor: PlumeProcessor, report: Report) -> None:
    """5. Everything but the weights."""
    config = model.config
    config.architectures = [type(model).__name__]
    custom_object_save(model, partial, config=config)
    config.save_pretrained(partial)
    processor.save_pretrained(partial)
    write_hub_files(partial)
    (partial / "conversion.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
