"""Canary: what pneumo asks of Keras's private attributes is still there, and means what it meant."""

from __future__ import annotations

import pytest

keras = pytest.importorskip("keras", reason="needs the extra train")

from pneumo_train.keras_graph import convolution_before, maker_of, takers_of  # noqa: E402

pytestmark = pytest.mark.canary

WHY = (
    "this Keras keeps elsewhere which layer made a tensor: mend pneumo_train/keras_graph.py, the one place that asks, "
    "or batch-norm is not folded in training and cannot be folded for export"
)


def test_keras_still_tells_who_made_a_tensor_and_who_takes_it() -> None:
    image = keras.Input((8, 8, 1))
    convolution, norm = keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization()
    made = convolution(image)
    tensor = norm(made)
    summed = keras.ops.add(tensor, 1.0)
    try:
        found = maker_of(made), maker_of(tensor), takers_of(convolution), [type(taker) for taker in takers_of(norm)]
    except AttributeError as error:
        pytest.fail(f"{WHY} ({error})")
    assert found == (convolution, norm, [norm], [type(maker_of(summed))]), WHY


def test_only_a_convolution_that_nothing_else_takes_stands_before_a_batch_norm() -> None:
    layers = keras.layers
    image = keras.Input((8, 8, 2))
    alone, shared, depthwise = layers.Conv2D(2, 1), layers.Conv2D(2, 1), layers.DepthwiseConv2D(1)
    norms = [layers.BatchNormalization() for _ in range(4)]
    norms[0](alone(image))
    x = shared(image)
    layers.Add()([norms[1](x), x])
    norms[2](depthwise(image))
    norms[3](image)
    assert [convolution_before(norm) for norm in norms] == [alone, None, depthwise, None]
