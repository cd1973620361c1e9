"""One Keras graph -> the float files: `model.onnx` and `model.tflite`."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import Any

import keras

from pneumo_edge.backends import OUTPUTS

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
