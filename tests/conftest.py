"""Shared fixtures: one tiny random PLUME checkpoint, built offline.

They are built anew for each module: a module may override the backbone, and its checkpoint must not reach the next one.
"""

import copy
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["OMP_NUM_THREADS"] = "1"  # tensors are tiny: more threads only wait for each other
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="plume-modules-")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="plume-datasets-")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from remote import Remote

# Fixtures import torch and what stands on it: the process that hands tests to workers reads this file and needs neither.
if TYPE_CHECKING:
    from plume import PlumeModel, PlumeProcessor


@pytest.fixture(scope="session")
def remote(tmp_path_factory) -> Iterator[Remote]:
    """An interpreter without the package; what it holds is modules of code, no state of a test."""
    remote = Remote(tmp_path_factory.mktemp("remote"))
    yield remote
    remote.close()


@pytest.fixture(scope="module")
def model_type() -> str:
    """Backbone of the fixtures below; a module that holds for every backbone overrides it with `every_backbone`."""
    return "qwen2_vl"


@pytest.fixture(scope="module")
def checkpoint(model_type, tmp_path_factory) -> Path:
    """Folder of a tiny PLUME checkpoint; K = 3 keeps the tests quick."""
    from plume.hub.random_checkpoint import save_random_plume

    folder = tmp_path_factory.mktemp("checkpoint") / "plume-random"
    save_random_plume(folder, model_type=model_type, num_latent_steps=3, max_latent_steps=8)
    return folder


@pytest.fixture(scope="module")
def backbone(model_type, tmp_path_factory) -> Path:
    """Folder of a tiny plain checkpoint of the backbone."""
    from plume.hub.random_checkpoint import save_random_backbone

    return save_random_backbone(tmp_path_factory.mktemp("backbone"), model_type=model_type)


@pytest.fixture(scope="module")
def loaded_model(checkpoint) -> "PlumeModel":
    from transformers import AutoModel

    import plume  # noqa: F401 (registers the model)

    return AutoModel.from_pretrained(checkpoint).eval()


@pytest.fixture
def model(loaded_model) -> "PlumeModel":
    """A model of the test's own, which it may change."""
    return copy.deepcopy(loaded_model)


@pytest.fixture(scope="module")
def processor(checkpoint) -> "PlumeProcessor":
    from plume import PlumeProcessor

    return PlumeProcessor.from_pretrained(checkpoint)
