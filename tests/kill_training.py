"""Kill a run at random moments, resume it, and compare its end with an uninterrupted one: bit for bit.

python tests/kill_training.py --kills 20 [--seed 0]
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from processes import start
from safetensors.torch import load_file

_STEPS = 12


def _train(corpus: Path, output: Path) -> None:
    """The command that a restart repeats unchanged."""
    from plume.training.train import main

    os.environ["CI"] = "1"  # no telemetry
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    arguments = {
        "--model_name_or_path": corpus / "model", "--train_files": corpus / "pairs.jsonl", "--media_root": corpus / "media",
        "--output_dir": output, "--per_device_train_batch_size": 4, "--sub_batch_size": 4, "--report_to": "none",
        "--use_cpu": True, "--logging_steps": 1, "--save_strategy": "steps", "--save_steps": 1, "--save_total_limit": 2,
        "--max_steps": _STEPS, "--learning_rate": 1e-3, "--chunk_size": 5, "--resume_from_checkpoint": "true",
        "--disable_tqdm": True,
    }  # fmt: skip
    main([str(part) for item in arguments.items() for part in item])


def _end(output: Path) -> tuple:
    state = json.loads((output / f"checkpoint-{_STEPS}" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return losses, load_file(output / "model.safetensors")


def run_with_kills(corpus: Path, folder: Path, kills: int, seed: int) -> int:
    """Kills that hit a run while it worked; raises where losses or weights at the end differ."""
    draw, hits = random.Random(seed), 0

    def finish(output: Path) -> tuple:
        process = start(_train, corpus, output)
        process.join()
        assert process.exitcode == 0, f"the run in {output} ended with {process.exitcode}"
        return _end(output)

    finish(folder / "warm")  # imports are paid once
    began = time.monotonic()
    losses, weights = finish(folder / "whole")
    duration = time.monotonic() - began
    for attempt in range(10 * kills):
        if hits == kills:
            break
        output = folder / f"killed-{attempt}"
        for _ in range(draw.randint(1, min(4, kills - hits))):
            process = start(_train, corpus, output)
            process.join(timeout=draw.uniform(0.2, 0.9) * duration)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                hits += 1
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), f"a restart in {output} ended with {process.exitcode}"
        killed_losses, killed_weights = finish(output)
        assert killed_losses == losses, f"{output} has other losses"
        assert killed_weights.keys() == weights.keys()
        assert all(killed_weights[name].equal(value) for name, value in weights.items()), f"{output}: other weights"
    return hits


if __name__ == "__main__":
    from corpus import write_corpus

    from plume.hub.random_checkpoint import save_random_plume

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_corpus(Path(scratch), rows=24)
        save_random_plume(Path(scratch) / "model", num_latent_steps=2, max_latent_steps=8)
        done = run_with_kills(Path(scratch), Path(scratch), options.kills, options.seed)
    sys.stdout.write(f"{done} kills, every run ended with the losses and weights of the uninterrupted one\n")
