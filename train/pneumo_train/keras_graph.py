"""Neighbours in the graph of a Keras model: who made a tensor, and who takes it.

Keras 3 knows which layer made a tensor and which layers take it, and has no public way to ask. This is the one place
that asks its private attributes; `tests/train/test_keras_graph.py` fails first, and says why, if Keras changes them.
"""

from __future__ import annotations

import keras


def maker_of(tensor: keras.KerasTensor) -> keras.Operation:
    """Returns the layer or operation whose output a tensor is."""
    return tensor._keras_history.operation


def takers_of(operation: keras.Operation) -> list[keras.Operation]:
    """Returns the layers and operations that take the output of a layer or operation, one entry for each call."""
    return [node.operation for node in operation._outbound_nodes]


def convolution_before(norm: keras.layers.BatchNormalization) -> keras.layers.Layer | None:
    """Returns the convolution whose output a batch-norm normalises, if nothing else takes that output.

    Only such a batch-norm can be folded into the convolution.
    """
    before = maker_of(norm.input)
    is_convolution = isinstance(before, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
    return before if is_convolution and takers_of(before) == [norm] else None
