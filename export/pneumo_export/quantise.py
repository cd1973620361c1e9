"""The float files -> the int8 files. Named layers become int8, weights per channel; all others stay float.

A quantiser calibrates once and then makes as many files as are asked of it. It takes the names of the Keras layers:
they stand in the names of ONNX nodes and of TFLite tensors, so one list says for both formats what is quantised.
"""

from __future__ import annotations

import copy
import math
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumo_edge.command_line import progress
from pneumo_edge.errors import MissingExtraError
from pneumo_edge.preprocess import Pixels
from pneumo_export.quiet import quiet
from pneumo_export.standard import sort_nodes

Quantise = Callable[[Collection[str]], bytes]
"""From the names of the layers to quantise, one or more, to the file."""

_STRIDE = 16
"""Films after which the calibrator of ONNX Runtime sums up. It keeps what it has seen until then: 256 films at once
took 9 GB for ResNet50 at 224 pixels."""

HIDDEN = "hidden_places"
"""The layer with the large matrix of the `flatten` head, see `pneumo_train.explain`."""

ONNX_OPERATIONS = ("Conv", "Add", "MaxPool", "MatMul", "Clip", "Relu", "Pad")


@dataclass(frozen=True)
class Block:
    """Layers that become int8, or stay float, together: one with weights, and the weightless ones behind it."""

    layers: tuple[str, ...]
    """Names; the one with the weights comes first."""
    weights: int
    """Count of its weights, biases included."""


def onnx_quantiser(model: bytes, films: Pixels) -> Quantise:
    """Finds the ranges for static quantisation (QDQ, per channel, MinMax) of a float ONNX model.

    Args:
        model: ONNX model from `to_onnx`.
        films: Calibration films, uint8 (N, S, S).
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QDQQuantizer, QuantType, create_calibrator
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
        def __init__(self, part: Pixels) -> None:
            self._films = iter(part)

        def get_next(self) -> dict[str, Any] | None:
            film = next(self._films, None)
            return None if film is None else {"image": film[None, ..., None]}

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, augmented = (Path(folder) / name for name in ("plain.onnx", "prepared.onnx", "augmented.onnx"))
        plain.write_bytes(model)
        with quiet():
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            calibrator = create_calibrator(prepared, list(ONNX_OPERATIONS), augmented_model_path=str(augmented))
        with progress("calibrating onnx", len(films)) as show:
            for start in range(0, len(films), _STRIDE):
                calibrator.collect_data(Reader(films[start : start + _STRIDE]))
                show(min(start + _STRIDE, len(films)))
        ranges = calibrator.compute_data()
        graph = onnx.load(prepared)

    def quantise(layers: Collection[str]) -> bytes:
        named = _names(layers)
        nodes = [n.name for n in graph.graph.node if n.op_type in ONNX_OPERATIONS and named(n.name)]
        with quiet():
            quantiser = QDQQuantizer(
                copy.deepcopy(graph),
                per_channel=True,
                # On x86-64 without VNNI the kernels add two products in 16 bits and saturate; seven-bit weights cannot.
                reduce_range=True,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=ranges,
                nodes_to_quantize=nodes,
                nodes_to_exclude=[],
                op_types_to_quantize=list(ONNX_OPERATIONS),
                extra_options={},
            )
            quantiser.quantize_model()
        sort_nodes(quantiser.model.model.graph)
        data: bytes = quantiser.model.model.SerializeToString()
        return data

    return quantise


def tflite_quantiser(model: bytes, films: Pixels) -> Quantise:
    """Finds the ranges for static quantisation (int8, weights per channel, MinMax) of a float TFLite model.

    Args:
        model: TFLite model from `to_tflite`.
        films: Calibration films, uint8 (N, S, S).

    Raises:
        MissingExtraError: ai-edge-quantizer is not installed.
    """
    try:
        from pneumo_export.ai_edge import find_ranges, quantised
    except ModuleNotFoundError as error:
        if error.name != "ai_edge_quantizer":
            raise
        raise MissingExtraError("ai-edge-quantizer", "export", "quantising a TFLite model") from None
    ranges = find_ranges(model, films)
    return lambda layers: quantised(model, ranges, _pattern(layers))


def _pattern(layers: Collection[str]) -> str:
    # Keras writes the layer `conv` as `.../conv/...` or, in a nested model, as `.../conv_1/...`.
    return rf"(?:^|/)(?:{'|'.join(map(re.escape, layers))})(?:_\d+)?/"


def _names(layers: Collection[str]) -> Any:
    return re.compile(_pattern(layers)).search


def float_share(model: bytes, name: str) -> float:
    """Returns which share of the convolution weights of a file is not int8, 0 to 1.

    Args:
        model: The bytes of an ONNX or TFLite file.
        name: Name of the file; the suffix tells the format.
    """
    sizes = _onnx_weights(model) if name.endswith(".onnx") else _tflite_weights(model)
    weights = {True: 0, False: 0}
    for is_int8, elements in sizes:
        weights[is_int8] += elements
    return weights[False] / max(1, sum(weights.values()))


def _onnx_weights(model: bytes) -> Iterator[tuple[bool, int]]:
    import onnx

    graph = onnx.load_from_string(model).graph
    stored = {i.name: i for i in graph.initializer}
    dequantised = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type == "Conv":
            weights = stored[dequantised.get(node.input[1], node.input[1])]
            yield weights.data_type == onnx.TensorProto.INT8, math.prod(weights.dims)


def _tflite_weights(model: bytes) -> Iterator[tuple[bool, int]]:
    from ai_edge_litert import schema_py_generated as schema

    read = schema.ModelT.InitFromPackedBuf(model, 0)
    convolutions = {schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D}
    for graph in read.subgraphs:
        for operator in graph.operators:
            if read.operatorCodes[operator.opcodeIndex].builtinCode in convolutions:
                weights = graph.tensors[operator.inputs[1]]
                yield weights.type == schema.TensorType.INT8, math.prod(weights.shape)
