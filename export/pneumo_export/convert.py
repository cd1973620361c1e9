"""One Keras graph -> the float files: `model.onnx` and `model.tflite`."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from typing import Any

import keras

from pneumo_edge.backends import OUTPUTS
from pneumo_export.standard import sort_nodes

OPSET = 17
"""From 18 on, tf2onnx writes global average pooling as Transpose and ReduceMean, which runtimes do not fuse."""


def to_onnx(model: keras.Model) -> bytes:
    """Converts a `deployed` model to ONNX: `image` uint8 (N, S, S, 1), N free, to `logit`, `heatmap`, `novelty`."""
    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with_names = _with_contract(model, films=None)
    signature = tf.TensorSpec(with_names.input.shape, tf.uint8, name="image")
    function = tf.function(lambda image: with_names(image, training=False), input_signature=[signature])
    proto, _ = tf2onnx.convert.from_function(function, [signature], opset=OPSET)
    _rename_outputs(proto)
    for node in proto.graph.node:
        # Where tf2onnx joins a depthwise convolution with its bias, the bias alone still bears the layer's name.
        if node.op_type == "Conv" and len(node.input) == 3:
            node.name = node.input[2].partition(":")[0]
    _pool_before_relu(proto.graph)
    data: bytes = proto.SerializeToString()
    return data


def to_tflite(model: keras.Model) -> bytes:
    """Converts a `deployed` model to TFLite with N = 1: XNNPACK refuses shapes that change."""
    import tensorflow as tf

    # Keras and TensorFlow print what they save on the way; stdout is for results.
    with contextlib.redirect_stdout(io.StringIO()):
        data: bytes = tf.lite.TFLiteConverter.from_keras_model(_with_contract(model, films=1)).convert()
    return data


def _with_contract(model: keras.Model, films: int | None) -> keras.Model:
    """Puts the uint8 input in front and the names of the contract behind."""
    image = keras.Input(batch_shape=(films, *model.input.shape[1:]), dtype="uint8", name="image")
    outputs = model(keras.ops.cast(image, "float32"))
    return keras.Model(image, {name: keras.layers.Identity(name=name)(outputs[name]) for name in OUTPUTS})


def _rename_outputs(proto: Any) -> None:
    """tf2onnx numbers the outputs of a function in alphabetical order ("Identity", "Identity_1", ...)."""
    for value, name in zip(proto.graph.output, sorted(OUTPUTS), strict=True):
        for node in proto.graph.node:
            for i, output in enumerate(node.output):
                if output == value.name:
                    node.output[i] = name
            for i, used in enumerate(node.input):
                if used == value.name:
                    node.input[i] = name
        value.name = name


def _pool_before_relu(graph: Any) -> None:
    """Turns Relu -> Pad -> MaxPool (ResNet50) into MaxPool, which pads by itself, -> Relu. The answer is the same.

    Relu gives nothing below zero, so that a border of zeros and no border have the same maximum; and the largest of
    some numbers is the same before and after a Relu. ONNX Runtime pools floats fast, but with a Pad in front it does
    not, and with nothing between MaxPool and int8 it moves the pooling to bytes, in a layout that has no fast kernel:
    together 5 of 52 ms for the int8 file of ResNet50, one thread.
    """
    from onnx import helper, numpy_helper

    made: dict[str, Any] = {output: node for node in graph.node for output in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    users = Counter(name for node in graph.node for name in node.input)
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        pad = made.get(pool.input[0])
        # A third input of Pad would be another value than zero.
        if pad is None or pad.op_type != "Pad" or len(pad.input) != 2 or pad.input[1] not in stored:
            continue
        relu = made.get(pad.input[0])
        if relu is None or relu.op_type != "Relu" or users[pad.output[0]] != 1 or users[relu.output[0]] != 1:
            continue
        pads = numpy_helper.to_array(stored[pad.input[1]]).tolist()
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in pool.attribute}
        padded = settings.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"} or any(settings.get("pads", ()))
        if len(pads) != 8 or any(pads[i] for i in (0, 1, 4, 5)) or padded:
            continue
        for attribute in [a for a in pool.attribute if a.name in {"pads", "auto_pad"}]:
            pool.attribute.remove(attribute)
        pool.attribute.append(helper.make_attribute("pads", [*pads[2:4], *pads[6:8]]))
        pool.input[0], relu.input[0], pool.output[0], relu.output[0] = (
            relu.input[0],
            relu.output[0],
            relu.output[0],
            pool.output[0],
        )
        graph.node.remove(pad)
        if users[pad.input[1]] == 1:
            graph.initializer.remove(stored[pad.input[1]])
    sort_nodes(graph)
