"""The float files -> the int8 files. Named layers become int8, weights per channel; all others stay float.

A quantiser calibrates once and then makes as many files as are asked of it. It takes the names of the Keras layers:
they stand in the names of ONNX nodes and of TFLite tensors, so one list says for both formats what is quantised.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumo_edge.command_line import progress
from pneumo_edge.errors import MissingExtraError
from pneumo_edge.preprocess import Pixels
from pneumo_export.standard import sort_nodes

Quantise = Callable[[Collection[str]], bytes]
"""From the names of the layers to quantise, one or more, to the file."""

_STRIDE = 16
"""Films after which the calibrator of ONNX Runtime sums up. It keeps what it has seen until then: 256 films at once
took 9 GB for ResNet50 at 224 pixels."""

HIDDEN = "hidden_places"
"""The layer with the large matrix of the `flatten` head, see `pneumo_train.explain`."""

ONNX_OPERATIONS = ("Conv", "Add", "MaxPool", "MatMul", "Clip", "Relu", "Pad")
TFLITE_OPERATIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MAX_POOL_2D", "PAD", "PADV2")


@dataclass(frozen=True)
class Block:
    """What becomes int8, or stays float, as one: a layer with weights and the weightless layers behind it."""

    layers: tuple[str, ...]
    """Names; the one with the weights comes first."""
    weights: int
    """Numbers in it, biases included."""


def onnx_quantiser(model: bytes, films: Pixels) -> Quantise:
    """Finds the ranges for static quantisation (QDQ, per channel, MinMax) of a float ONNX model.

    Args:
        model: What `to_onnx` gave.
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
        with _quiet():
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
        with _quiet():
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
        model: What `to_tflite` gave.
        films: Calibration films, uint8 (N, S, S).

    Raises:
        MissingExtraError: ai-edge-quantizer is not installed.
    """
    try:
        from ai_edge_quantizer import quantizer
        from ai_edge_quantizer.calibrator import Calibrator
        from ai_edge_quantizer.recipe_manager import RecipeManager
        from ai_edge_quantizer.utils.qsv_utils import min_max_update
    except ImportError:
        raise MissingExtraError("ai-edge-quantizer", "export", "quantising a TFLite model") from None
    from ai_edge_quantizer.qtyping import TFLOperationName

    def recipe(pattern: str) -> RecipeManager:
        made = RecipeManager()
        for operation in TFLITE_OPERATIONS:
            with contextlib.suppress(ValueError):
                made.add_static_config(
                    regex=pattern,
                    operation_name=TFLOperationName(operation),
                    activation_num_bits=8,
                    weight_num_bits=8,
                )
        # The matrix of the `flatten` head is stored in int8 and used in float: LiteRT's int8 kernel for it answers the
        # same value for every film.
        made.add_weight_only_config(regex=pattern, operation_name=TFLOperationName.BATCH_MATMUL, num_bits=8)
        return made

    # By itself it averages the ranges of the last films, and so cuts off what half of all films have: for VGG16, which
    # has no batch-norm, that made the error seven times as large.
    with _quiet():
        calibrator = Calibrator(model, qsv_update_func=min_max_update)
    every = recipe(".*")
    with progress("calibrating tflite", len(films)) as show:
        for done, film in enumerate(films, start=1):
            with _quiet():
                calibrator.calibrate({"serving_default": [{"image": film[None, ..., None]}]}, every)
            show(done)
    ranges = calibrator.get_model_qsvs()

    def quantise(layers: Collection[str]) -> bytes:
        engine = quantizer.Quantizer(bytearray(model), recipe(_pattern(layers)).get_quantization_recipe())
        with _quiet():
            made = engine.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
        return bytes(made.quantized_model)

    return quantise


def _pattern(layers: Collection[str]) -> str:
    # Keras writes the layer `conv` as `.../conv/...` or, in a nested model, as `.../conv_1/...`.
    return rf"(?:^|/)(?:{'|'.join(map(re.escape, layers))})(?:_\d+)?/"


def _names(layers: Collection[str]) -> Any:
    return re.compile(_pattern(layers)).search


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers print advice for their developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        logging.disable(level)


def float_share(model: bytes, name: str) -> float:
    """Returns which share of the convolution weights of a file is not int8, 0 to 1.

    Args:
        model: The bytes of an ONNX or TFLite file.
        name: Its name: the suffix tells the format.
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
