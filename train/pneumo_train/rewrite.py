"""Rewrites the graph of a network so that a training step is faster: the same function of the same weights."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from pneumo_train.keras_graph import convolution_before


def rewritten(model: keras.Model, *, any_side: bool) -> keras.Model:
    """Returns a model that computes the same from the same variables, in the same order, and is faster to train.

    Batch-norm that does not learn is folded into the kernel of the convolution in front, and a pointwise convolution
    is computed as the product of two matrices. Function and gradients stay the same but for rounding; the activations
    are passed over less often. Under mixed precision nothing is folded, since the product would be rounded.

    Args:
        model: From `pneumo_train.backbones`, with what is frozen frozen already. Its layers must not have been called
            outside of it.
        any_side: Take films of any side, (N, S, S, 1), where the model takes those of one.
    """
    folded = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.trainable:
            convolution = convolution_before(layer)
            if convolution is not None and _folds(convolution):
                folded[convolution] = layer
    norms = set(folded.values())

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        if layer in norms:
            return args[0]
        if layer in folded:
            return _FoldedConvolution(layer, folded[layer])(args[0])
        return layer(*args, **kwargs)

    side = None if any_side else model.input.shape[1]
    return keras.models.clone_model(
        model,
        input_tensors=keras.Input((side, side, 1), dtype=model.input.dtype, name="image"),
        clone_function=lambda layer: layer,
        call_function=call,
    )


def _folds(convolution: keras.layers.Layer) -> bool:
    plain = (
        convolution.dilation_rate == (1, 1)
        and getattr(convolution, "groups", 1) == 1
        and convolution.activation is keras.activations.linear
    )
    return plain and convolution.compute_dtype in ("float32", "float64")


class _FoldedConvolution(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """A convolution and the frozen batch-norm behind it, gamma * (x - mean) / sqrt(variance + epsilon) + beta."""

    def __init__(self, convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization) -> None:
        super().__init__(name=convolution.name, dtype=convolution.dtype_policy)
        self.convolution, self.norm = convolution, norm
        self.built = True

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        convolution, norm = self.convolution, self.norm
        scale = ops.rsqrt(norm.moving_variance + norm.epsilon)
        if norm.gamma is not None:
            scale = scale * norm.gamma
        mean = norm.moving_mean if convolution.bias is None else norm.moving_mean - convolution.bias
        shift = -mean * scale
        if norm.beta is not None:
            shift = shift + norm.beta
        kernel, window = convolution.kernel, {"strides": convolution.strides, "padding": convolution.padding}
        if isinstance(convolution, keras.layers.DepthwiseConv2D):
            scale = ops.reshape(scale, (1, 1, *kernel.shape[2:]))
            return ops.depthwise_conv(x, kernel * scale, **window) + shift
        if convolution.kernel_size != (1, 1) or convolution.strides != (1, 1):
            return ops.conv(x, kernel * scale, **window) + shift
        rows = ops.matmul(ops.reshape(x, (-1, kernel.shape[2])), kernel[0, 0] * scale)
        return ops.reshape(rows, (-1, *ops.shape(x)[1:3], kernel.shape[3])) + shift
