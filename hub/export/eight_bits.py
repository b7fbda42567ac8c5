"""Weights of eight bits: the products of a graph become onnxruntime's ``MatMulNBits``.

A block of weights of one column shares a scale, its largest magnitude over 127; a weight is stored as its multiple of
the scale plus 128. Products are computed in float32: only weights are rounded, never states.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

DOMAIN = "com.microsoft"
BLOCK = 32  # weights that share a scale
_LARGEST, _ZERO = 127, 128


def quantize(model: ir.Model) -> None:
    """Give every product with a matrix of weights eight bits, in place."""
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.name in model.graph.initializers and len(weight.shape or ()) == 2:
            assert weight.const_value is not None
            _replace(model.graph, node, weight.const_value.numpy())
    model.opset_imports[DOMAIN] = 1
    RemoveUnusedNodesPass()(model)


def _replace(graph: ir.Graph, node: ir.Node, weight: np.ndarray) -> None:
    """Put the quantized product in the place of a node; ``weight`` is ``(K, N)``."""
    matrix, added = node.inputs[1], []
    assert matrix is not None
    for part, array in zip(("int8", "scale"), quantize_weight(weight), strict=True):
        tensor = ir.tensor(array, name=f"{matrix.name}.{part}")
        added.append(
            ir.Value(
                name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        )
        graph.register_initializer(added[-1])
    sizes = {"K": weight.shape[0], "N": weight.shape[1], "bits": 8, "block_size": BLOCK}
    product = ir.node("MatMulNBits", [node.inputs[0], *added], sizes, domain=DOMAIN, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix.

    Args:
        weight: ``(K, N)``, fp32.

    Returns:
        Weights ``(N, blocks, 32)``, uint8, and scales ``(N, blocks)``, fp32.
    """
    blocks = -(-weight.shape[0] // BLOCK)
    padded = np.pad(weight.T, ((0, 0), (0, blocks * BLOCK - weight.shape[0]))).reshape(weight.shape[1], blocks, BLOCK)
    scales = np.abs(padded).max(axis=-1, keepdims=True) / _LARGEST
    steps = np.divide(padded, scales, out=np.zeros_like(padded), where=scales > 0)
    return (np.rint(steps) + _ZERO).astype(np.uint8), scales[..., 0].astype(np.float32)
