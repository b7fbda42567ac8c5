"""An interpreter without the package, which opens checkpoints by the code that they carry; the tests of a run share it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

WORKER = """
import json, sys, traceback
sys.modules["plume"] = None  # any import of it fails
replies, sys.stdout = sys.stdout, sys.stderr
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoProcessor

def transformers(name, items, resaved):
    model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    for part in (model, processor, config):
        assert type(part).__module__.startswith("transformers_modules"), type(part).__module__
    if resaved:
        model.save_pretrained(resaved)
        processor.save_pretrained(resaved)
    with torch.no_grad():
        return [model(**processor.process_documents([item])).embeddings[0].tolist() for item in items]

def sentence_transformers(name, items, resaved):
    model = SentenceTransformer(name, trust_remote_code=True, device="cpu")
    assert type(model[0].model).__module__.startswith("transformers_modules")
    return model.encode(items).tolist()

for line in sys.stdin:
    way, *arguments = json.loads(line)
    try:
        reply = {"vectors": globals()[way](*arguments)}
    except Exception:
        reply = {"error": traceback.format_exc()}
    print(json.dumps(reply), file=replies, flush=True)
"""


class Remote:
    """Calls reach one process, which starts at the first of them, outside the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hub = folder, folder / "hub"
        self._process: subprocess.Popen | None = None

    def close(self) -> None:
        if self._process:
            self._process.stdin.close()
            self._process.wait(timeout=60)
            self._process.stdout.close()

    def _start(self) -> subprocess.Popen:
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(self.hub), "HF_MODULES_CACHE": str(self.folder / "modules")
        }  # fmt: skip
        with (self.folder / "stderr").open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-c", WORKER], cwd=self.folder, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def __call__(self, way: str, name: str | Path, items: list, resaved: Path | None = None) -> np.ndarray:
        """Vectors of items one by one, by `transformers` or by `sentence_transformers`; saved again where asked."""
        reply = self._ask(way, name, items, resaved)
        assert "error" not in reply, reply["error"]
        return np.array(reply["vectors"], dtype=np.float32)

    def error(self, way: str, name: str | Path) -> str:
        """The traceback of a checkpoint that does not open."""
        return self._ask(way, name, [], None)["error"]

    def _ask(self, way: str, name: str | Path, items: list, resaved: Path | None) -> dict:
        self._process = self._process or self._start()
        print(json.dumps([way, str(name), items, resaved and str(resaved)]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, (self.folder / "stderr").read_text()[-3000:]
        return json.loads(answer)

    def publish(self, name: str, checkpoint: Path) -> str:
        """Make a folder a cached repository of the hub under a name, offline; returns the name."""
        repository, revision = self.hub / f"models--{name.replace('/', '--')}", "0123456789abcdef" * 2 + "01234567"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(revision)
        (repository / "snapshots").mkdir()
        os.symlink(checkpoint, repository / "snapshots" / revision)
        return name
