"""A graph of an exported folder in onnxruntime."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from plume.runtime.manifest import CHECKPOINT_KEY, Manifest

# What onnxruntime raises for graphs that it cannot load; they have no common base.
_UNUSABLE = (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented, errors.RuntimeException)
_QUIET = 3  # errors only: it warns of every constant that it folds


class Graph:
    """A graph, loaded at its first use.

    Args:
        path: Of the graph, in a folder whose manifest was checked.
        manifest: Of the folder.
        threads: Within an operator; 0 for one per core.
    """

    def __init__(self, path: Path, manifest: Manifest, threads: int) -> None:
        self._path, self._manifest, self._threads = path, manifest, threads

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The loaded graph.

        Raises:
            ValueError: If it is of another checkpoint, or this onnxruntime lacks one of its operators.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self._threads, _QUIET
        try:
            session = onnxruntime.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
        except _UNUSABLE as error:
            raise ValueError(
                f"onnxruntime {onnxruntime.__version__} cannot load {self._path}: {error}. It was written for "
                f"onnxruntime {self._manifest.versions['onnxruntime']}: install that version or a newer one, or export "
                "with a lower --opset."
            ) from error
        checkpoint = session.get_modelmeta().custom_metadata_map.get(CHECKPOINT_KEY)
        if checkpoint != self._manifest.checkpoint:
            raise ValueError(
                f"{self._path} is a graph of another checkpoint ({checkpoint}) than the manifest's "
                f"({self._manifest.checkpoint}), so its vectors would be wrong. Export the checkpoint again."
            )
        return session

    @cached_property
    def outputs(self) -> list[str]:
        """Names of the results, in order."""
        return [output.name for output in self.session.get_outputs()]

    def __call__(self, **inputs: Any) -> list[onnxruntime.OrtValue]:
        """Run it; arrays become values of onnxruntime, values stay where they are."""
        values = {
            name: value if isinstance(value, onnxruntime.OrtValue) else _as_value(value)
            for name, value in inputs.items()
        }
        return self.session.run_with_ort_values(self.outputs, values)


def _as_value(array: np.ndarray) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
