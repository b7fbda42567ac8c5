"""Does a checkpoint folder hold what it promises? Every check says what it saw, so that machines can be compared."""

import copy
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

from plume import PlumeModel, PlumeProcessor
from plume.hub.fixed import fixed_inputs
from plume.hub.layout import open_source
from plume.positions_plume import Media, rollout_positions
from plume.speed.int8 import computes_exactly

# Eight bits may turn a vector by so much and no more.
LEAST_COSINE = 0.999
_QWEN_IM_START = 151644
# Ids of the released prompt's suffix under the real Qwen2-VL tokenizer.
_GOLDEN_SUFFIX = [151660, 522, 26865, 397, 151657]
_REMOTE = """
import json, sys, torch
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).float().eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    print(json.dumps(model(**processor.process_documents(json.loads(sys.argv[2]), prompt="")).embeddings.tolist()))
"""


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    name: str
    passed: bool
    detail: str


def verify(folder: Path, int8: bool = False, quantized: Path | None = None) -> list[Finding]:
    """Run every check on a checkpoint folder.

    Args:
        folder: A saved or converted PLUME checkpoint.
        int8: Whether to compare ``speed_up(int8=True)`` with it too.
        quantized: Folder of the same checkpoint, quantized and saved, to compare with it too.

    Returns:
        The findings; the last is the fingerprint.

    Raises:
        ValueError: If there is no such folder, or the checkpoint itself is quantized.
    """
    for path in [folder, *([quantized] if quantized else [])]:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder. Download the checkpoint first, or check the path.")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    if "quantization_config" in model.config.to_dict():
        raise ValueError(
            f"{folder} is quantized, so it cannot be compared with its own full precision. Verify the checkpoint that "
            f"it was made from, and name this one with --quantized {folder}."
        )
    processor = AutoProcessor.from_pretrained(folder)
    checks: list[Callable[[], Finding]] = [
        lambda: _weights(folder, model),
        lambda: _adapter(model),
        lambda: _token_ids(model, processor),
        lambda: _golden_ids(model, processor),
        lambda: _golden_positions(model),
        lambda: _entry_points(folder, model, processor),
        lambda: _batches(model, processor),
    ]
    if int8:
        checks.append(lambda: _int8(model, processor))
    if quantized:
        checks.append(lambda: _cosines("quantized", model, AutoModel.from_pretrained(quantized).eval(), processor))
    checks.append(lambda: _fingerprint(model, processor))
    return [check() for check in checks]


def _embed(model: PlumeModel, processor: PlumeProcessor, inputs: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**processor.process_documents(inputs, prompt="")).embeddings


def _weights(folder: Path, model: PlumeModel) -> Finding:
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    detail = f"{len(open_source(folder).names)} tensors, {len(bad)} not finite {bad[:3]}"
    return Finding("weights are finite", not bad, detail)


def _adapter(model: PlumeModel) -> Finding:
    fresh = not model.latent_transition.experts.down_weight.any()
    return Finding("adapter", True, "fresh: the latent steps are not trained" if fresh else "trained")


def _token_ids(model: PlumeModel, processor: PlumeProcessor) -> Finding:
    fields = processor.token_fields()
    apart = {name: value for name, value in fields.items() if model.config.to_dict()[name] != value}
    rows = len(model.get_input_embeddings().weight)
    fits = max(fields["latent_token_id"], fields["anchor_token_id"]) < rows
    return Finding(
        "token ids", not apart and fits, f"configuration and tokenizer differ in {apart}" if apart else f"{rows} rows"
    )


def _golden_ids(model: PlumeModel, processor: PlumeProcessor) -> Finding:
    if (
        processor.tokenizer.convert_tokens_to_ids("<|im_start|>") != _QWEN_IM_START
        or processor.suffix.count("think") == 0
    ):
        return Finding("golden ids", True, "not applicable: another tokenizer or another prompt than the released one")
    return Finding(
        "golden ids", model.config.suffix_token_ids == _GOLDEN_SUFFIX, f"suffix {model.config.suffix_token_ids}"
    )


def _golden_positions(model: PlumeModel) -> Finding:
    """A 448x448 image in the released prompt: <slt> at 115, 356 tokens in the cache."""
    ids = torch.tensor([[3] * 15 + [1] * 256 + [3] * 85])
    media = [Media(1, None, torch.tensor([[1, 32, 32]]))]
    scheme = model.config.position_scheme
    first = int(rollout_positions(ids, torch.ones_like(ids), media, 2, 1, scheme)[0, 0, -1])
    return Finding(
        "golden positions", first == {"mrope": 116, "kv_length": 356}[scheme], f"{scheme}: first latent at {first}"
    )


def _entry_points(folder: Path, model: PlumeModel, processor: PlumeProcessor) -> Finding:
    texts = ["a red bus at a stop", "the total of the second row"]
    ours = _embed(model, processor, texts)
    encoder = SentenceTransformer(str(folder), model_kwargs={"dtype": torch.float32})
    apart = (torch.tensor(encoder.encode(texts, prompt="")) - ours).abs().max().item()
    command = [sys.executable, "-c", _REMOTE, str(folder.absolute()), json.dumps(texts)]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    if done.returncode:
        return Finding("entry points agree", False, f"remote code fails: {done.stderr.strip().splitlines()[-1]}")
    apart = max(apart, (torch.tensor(json.loads(done.stdout.splitlines()[-1])) - ours).abs().max().item())
    return Finding(
        "entry points agree", apart <= 1e-5, f"package, sentence-transformers and remote code within {apart:.0e}"
    )


def _batches(model: PlumeModel, processor: PlumeProcessor) -> Finding:
    inputs = fixed_inputs()
    singles = torch.cat([_embed(model, processor, [item]) for item in inputs])
    apart = (_embed(model, processor, inputs) - singles).abs().max().item()
    return Finding("batch equals singles", apart <= 1e-5, f"within {apart:.0e}")


def _int8(model: PlumeModel, processor: PlumeProcessor) -> Finding:
    name = "speed_up(int8=True)"
    if not computes_exactly():
        return Finding(name, False, "this CPU or build of torch cannot run it: nothing was compared")
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return _cosines(name, model, copy.deepcopy(model, shared).speed_up(int8=True), processor)


def _cosines(name: str, full: PlumeModel, other: PlumeModel, processor: PlumeProcessor) -> Finding:
    """Cosine of every K between a model and its full precision, the worst of the fixed inputs."""
    steps = full.config.num_latent_steps
    cosines = []
    for item in fixed_inputs():
        features = processor.process_documents([item], prompt="")
        with torch.no_grad():
            ours, theirs = (
                model(**features, num_latent_steps=steps, readout_steps=range(steps + 1)).readout_embeddings
                for model in (full, other)
            )
        cosines.append((ours * theirs.float()).sum(-1)[0])
    worst = torch.stack(cosines).amin(dim=0)
    told = ", ".join(f"{k}: {cosine:.5f}" for k, cosine in enumerate(worst.tolist()))
    return Finding(name, bool((worst >= LEAST_COSINE).all()), f"cosine by K, at least {LEAST_COSINE} needed: {told}")


def _fingerprint(model: PlumeModel, processor: PlumeProcessor) -> Finding:
    vectors = torch.cat([_embed(model, processor, [item]) for item in fixed_inputs()])
    rounded = [[round(value, 3) + 0.0 for value in row] for row in vectors.tolist()]
    digest = hashlib.sha256(json.dumps(rounded).encode()).hexdigest()[:16]
    return Finding("fingerprint", True, f"{digest} of fp32 vectors at 3 decimals; first {[row[:3] for row in rounded]}")
