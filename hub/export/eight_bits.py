"""Weights of eight bits: the products of a graph become onnxruntime's ``MatMulNBits``.

A block of weights of one column shares a scale, its largest magnitude over 127; a weight is stored as its multiple of
the scale plus 128.

States are not rounded to eight bits but to sixteen, as two rows of eight: the multiples of a scale per block, and what
they leave. The operator multiplies bytes with bytes, which it takes both rows through while it reads a weight once. Its
other way, float32 products, converts every weight at every product and takes six times as long.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

DOMAIN = "com.microsoft"
BLOCK = 32  # weights, or numbers of a state, that share a scale
_LARGEST, _ZERO = 127, 128
_OF_BYTES = 4  # accuracy level of the operator
_CONSTANTS: dict[str, np.ndarray] = {
    "last": np.array([-1]),
    "blocks": np.array([-1, BLOCK]),
    "largest": np.array(_LARGEST, np.float32),
    "least": np.array(1e-30, np.float32),  # a block of zeros has no scale
}


def quantize(model: ir.Model) -> None:
    """Give every product with a matrix of weights eight bits, in place."""
    graph, rows = model.graph, dict[ir.Value, ir.Value]()
    constants = {name: _store(graph, f"eight_bits.{name}", array) for name, array in _CONSTANTS.items()}
    for node in list(graph):
        matrix = node.inputs[1] if node.op_type == "MatMul" else None
        if matrix is None or matrix.name not in graph.initializers or len(matrix.shape or ()) != 2:
            continue
        assert matrix.const_value is not None
        weight, states, tape = matrix.const_value.numpy(), node.inputs[0], Tape()
        assert states is not None
        parts = zip(("int8", "scale"), quantize_weight(weight), strict=True)
        stored = [_store(graph, f"{matrix.name}.{part}", array) for part, array in parts]
        sizes = {"K": weight.shape[0], "N": weight.shape[1], "bits": 8, "block_size": BLOCK}
        if weight.shape[0] % BLOCK:
            product = tape.op("MatMulNBits", [states, *stored], sizes, domain=DOMAIN)
        else:
            if states not in rows:
                rows[states] = _split(tape, states, constants)
            sizes["accuracy_level"] = _OF_BYTES
            both = tape.op("MatMulNBits", [rows[states], *stored], sizes, domain=DOMAIN)
            halves = tape.op_multi_out("Split", [both], {"axis": 0, "num_outputs": 2}, num_outputs=2)
            product = tape.op("Add", list(halves))
        ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [product])
    model.opset_imports[DOMAIN] = 1
    RemoveUnusedNodesPass()(model)


def _split(tape: Tape, states: ir.Value, constants: dict[str, ir.Value]) -> ir.Value:
    """States that the operator rounds to bytes without loss, and after them, along the first axis, the rest."""
    blocks = tape.op("Reshape", [states, constants["blocks"]])
    most = tape.op("ReduceMax", [tape.op("Abs", [blocks]), constants["last"]], {"keepdims": 1})
    scales = tape.op("Max", [tape.op("Div", [most, constants["largest"]]), constants["least"]])
    steps = tape.op("Round", [tape.op("Div", [blocks, scales])])
    first = tape.op("Reshape", [tape.op("Mul", [steps, scales]), tape.op("Shape", [states])])
    return tape.op("Concat", [first, tape.op("Sub", [states, first])], {"axis": 0})


def _store(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A constant of the graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


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
