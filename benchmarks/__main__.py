"""``python -m plume.benchmarks``: what each part of an embedding costs, on random weights, in one run."""

import argparse
import json
import platform
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from plume import PlumeConfig, PlumeForEmbedding
from plume.hub.random_checkpoint import SIZES, build_backbone_config, build_tokenizer

_NUM_LATENT_STEPS = 8
_TOKENS = {"anchor_token_id": 1, "latent_start_token_id": 2, "latent_end_token_id": 3, "embedding_token_id": 4}


def build_model(size: str, dtype: torch.dtype, device: str) -> PlumeForEmbedding:
    """A random model; token ids are arbitrary because only shapes matter here."""
    backbone = build_backbone_config(build_tokenizer(), size)
    config = PlumeConfig.from_backbone(backbone, **_TOKENS)
    with torch.device(device):
        return PlumeForEmbedding(config).to(dtype).eval()


def median_ms(model: PlumeForEmbedding, input_ids: torch.Tensor, min_seconds: float, **kwargs: object) -> float:
    """Median milliseconds of one forward pass."""
    timer = Timer(
        "model(input_ids, **kwargs)",
        globals={"model": model, "input_ids": input_ids, "kwargs": kwargs},
        num_threads=torch.get_num_threads(),
    )
    timer.timeit(1)
    return timer.blocked_autorange(min_run_time=min_seconds).median * 1000


def measure(model: PlumeForEmbedding, batch: int, length: int, min_seconds: float) -> list[tuple[str, float]]:
    """Cost of the parts of one batch of texts, as (part, milliseconds)."""
    device = model.device
    input_ids = torch.randint(8, 256, (batch, length), device=device)
    input_ids[:, -2], input_ids[:, -1] = _TOKENS["anchor_token_id"], _TOKENS["latent_start_token_id"]
    suffix = torch.tensor(model.config.suffix_token_ids, device=device).expand(batch, -1)
    single = torch.cat([input_ids, suffix], dim=1)

    def language_model(ids: torch.Tensor) -> torch.Tensor:
        return model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state

    def time_plain(ids: torch.Tensor) -> float:
        timer = Timer("run(ids)", globals={"run": language_model, "ids": ids}, num_threads=torch.get_num_threads())
        timer.timeit(1)
        return timer.blocked_autorange(min_run_time=min_seconds).median * 1000

    with torch.inference_mode():
        prefix, one_pass = time_plain(input_ids), time_plain(single)
        k0, k1, k8 = (median_ms(model, input_ids, min_seconds, num_latent_steps=k) for k in (0, 1, _NUM_LATENT_STEPS))
    step = (k8 - k1) / (_NUM_LATENT_STEPS - 1)
    return [
        ("prefix pass", prefix),
        ("one latent step", step),
        ("last step with suffix", k1 - prefix),
        ("single pass (prefix + suffix)", one_pass),
        ("PLUME K=0", k0),
        (f"PLUME K={_NUM_LATENT_STEPS}", k8),
    ]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(prog="python -m plume.benchmarks", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="0.2b", help="shape of the random model")
    parser.add_argument("--batch", type=int, default=8, help="texts per batch")
    parser.add_argument("--length", type=int, default=64, help="prefix tokens per text")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--min-seconds", type=float, default=2.0, help="time spent per row")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    model = build_model(options.size, getattr(torch, options.dtype), options.device)
    rows = measure(model, options.batch, options.length, options.min_seconds)
    single = dict(rows)["single pass (prefix + suffix)"]
    print(
        f"random {options.size} model, {options.dtype}, {options.device}, batch {options.batch}, "
        f"text {options.length}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}\n"
    )
    print(f"{'part':<32}{'ms (median)':>12}{'/ single pass':>15}")
    for part, milliseconds in rows:
        print(f"{part:<32}{milliseconds:>12.1f}{milliseconds / single:>15.2f}")
    if options.json:
        options.json.write_text(
            json.dumps({"condition": vars(options) | {"json": None}, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
