"""Shared fixtures: one tiny random PLUME checkpoint and a handful of media, built offline."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tensors are tiny: more threads only wait for each other
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="plume-modules-")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="plume-datasets-")

from pathlib import Path

import pytest

from plume import PlumeForEmbedding, PlumeProcessor
from plume.hub.random_checkpoint import save_random_backbone, save_random_plume


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Folder of a tiny PLUME checkpoint; K = 3 keeps the tests quick."""
    folder = tmp_path_factory.mktemp("checkpoint") / "plume-random"
    save_random_plume(folder, num_latent_steps=3, max_latent_steps=8)
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """Folder of a tiny plain Qwen2-VL checkpoint."""
    return save_random_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def model(checkpoint) -> PlumeForEmbedding:
    return PlumeForEmbedding.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="session")
def processor(checkpoint) -> PlumeProcessor:
    return PlumeProcessor.from_pretrained(checkpoint)
