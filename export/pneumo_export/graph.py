"""The network as it runs on a device: trained weights in, one graph out, with everything a device need not compute.

image uint8 (N, S, S, 1) -> normalisation -> backbone, batch-norm folded -> logit, heatmap, novelty
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from pneumo_edge.errors import RunError
from pneumo_export.quantise import HIDDEN, Block
from pneumo_train.backbones import FEATURES, LOCAL_LAYERS, find_backbone
from pneumo_train.explain import explained
from pneumo_train.keras_graph import convolution_before


@dataclass(frozen=True)
class NoveltyStatistics:
    """Training films of one kind in the space of the network's own features; constants of the graph."""

    mean: npt.NDArray[np.float32]
    """(D,)"""
    scale: npt.NDArray[np.float32]
    """(D,), standard deviations."""
    axes: npt.NDArray[np.float32]
    """(D, K), orthonormal principal axes of the standardised features."""
    variances: npt.NDArray[np.float32]
    """(K,), along those axes."""
    residual_variance: float
    """Variance of each of the D - K dimensions that are left."""


def fit_novelty(features: npt.NDArray[np.float32], components: int = 32) -> NoveltyStatistics:
    """Fits a Gaussian with K free directions and one common variance for all others.

    Args:
        features: (N, D), of training films.
        components: K, at most N / 4 and D / 2 are used.

    Source: probabilistic principal component analysis (Tipping and Bishop, JRSS B 1999). The squared distance is that
    of Mahalanobis under its covariance: regularised where films are fewer than dimensions.
    """
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    # A channel that never fires has no scale of its own; a hundredth of the typical one keeps it harmless.
    deviation = features.std(axis=0)
    scale = np.maximum(deviation, 0.01 * np.median(deviation[deviation > 0]))
    z = (features - mean) / scale
    k = max(1, min(components, len(z) // 4, z.shape[1] // 2))
    _, singular, axes = np.linalg.svd(z, full_matrices=False)
    variances = singular**2 / len(z)
    left = float(variances[k:].sum() / (z.shape[1] - k))
    return NoveltyStatistics(
        mean.astype(np.float32),
        scale.astype(np.float32),
        axes[:k].T.astype(np.float32),
        variances[:k].astype(np.float32),
        max(left, 1e-6),
    )


def fold(model: keras.Model, backbone: str) -> keras.Model:
    """Builds the same function with batch-norm folded into the convolutions, and grey in place of RGB where exact.

    A convolution of three equal channels is one of a single channel with the kernel summed over its inputs, provided
    that all channels are normalised alike (EfficientNet-Lite, MobileNetV2). Where they are not (Keras "caffe" mode:
    VGG16, ResNet50) zero padding means another grey level in each channel, no single channel can have that, and the
    replication stays.

    Args:
        model: From `pneumo_train.backbones.build_model`, trained.
        backbone: Name of its backbone.

    Raises:
        RunError: A batch-norm follows something else than a convolution of its own.
    """
    entry = find_backbone(backbone)
    grey = len(set(entry.offset)) == 1
    folded = _batch_norm_after_convolution(model)
    convolutions = {conv: norm for norm, conv in folded.items()}
    first_conv = next(layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D))

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in folded or (grey and layer.name == "grey_to_rgb"):
            return keras.layers.Identity(name=layer.name)
        if grey and layer.name == "normalise":
            # Of four axes: with plain numbers ONNX Runtime multiplies and adds pixel by pixel where the last axis is 1,
            # 0.75 ms of 3.6 ms for EfficientNet-Lite0 at 160 pixels.
            scale, offset = (np.full((1, 1, 1, 1), number, np.float32) for number in (entry.scale, entry.offset[0]))
            return keras.layers.Rescaling(scale, offset, name=layer.name)
        config = layer.get_config()
        if not isinstance(layer, keras.layers.Layer):
            # Keras numbers operations anew in each process: those of the file must not meet those that are added here.
            config["name"] = f"pool_{layer.name}"
        if layer.name in convolutions:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if grey and layer.name == "grey_to_rgb":
            return layer(args[0][0])
        if layer.name in folded:
            # Batch-norm is called with a mask; what takes its place knows none.
            return layer(args[0])
        return layer(*args, **kwargs)

    plain = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in model.layers:
        weights = layer.get_weights()
        if not weights or layer.name in folded:
            continue
        if grey and layer.name == first_conv:
            weights[0] = weights[0].sum(axis=2, keepdims=True)
        if layer.name in convolutions:
            weights = _fold_norm(layer, weights, model.get_layer(convolutions[layer.name]))
        plain.get_layer(layer.name).set_weights(weights)
    return plain


def _batch_norm_after_convolution(model: keras.Model) -> dict[str, str]:
    """Returns batch-norm layer -> the convolution right before it."""
    found = {}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        before = convolution_before(layer)
        if before is None:
            raise RunError(
                f"the batch-norm layer {layer.name} does not follow a convolution, so this network cannot be exported: "
                "train another --backbone"
            )
        found[layer.name] = before.name
    return found


def _fold_norm(
    conv: keras.layers.Layer, weights: list[npt.NDArray[np.float32]], norm: keras.layers.Layer
) -> list[npt.NDArray[np.float32]]:
    gamma, beta, mean, variance = (w.astype(np.float64) for w in norm.get_weights())
    gain = gamma / np.sqrt(variance + norm.epsilon)
    kernel = weights[0].astype(np.float64)
    bias = weights[1].astype(np.float64) if len(weights) > 1 else 0.0
    # Depthwise kernels are (h, w, channels, multiplier 1): the channel is the last axis but one.
    shape = (-1, 1) if isinstance(conv, keras.layers.DepthwiseConv2D) else (-1,)
    return [(kernel * gain.reshape(shape)).astype(np.float32), (beta + (bias - mean) * gain).astype(np.float32)]


def feature_model(plain: keras.Model, backbone: str) -> keras.Model:
    """Returns the network with the output {"features": (N, D)}: what `fit_novelty` describes films by."""
    return keras.Model(plain.input, {"features": _features(plain, backbone)})


def _features(model: keras.Model, backbone: str) -> keras.KerasTensor:
    """Describes a film by the layers that `pneumo_train.backbones` names.

    The first one is averaged over each half of the film, upper, lower, left and right, since what makes a chest film is
    where things lie; the last one, which sees half of the film from everywhere, is averaged over all of it.
    """
    layers = keras.layers
    first, last = (model.get_layer(name).output for name in find_backbone(backbone).novelty_layers)
    height, width = first.shape[1:3]
    parts = []
    for name, rows, columns in (("rows", 2, 1), ("columns", 1, 2)):
        # Of an odd number of rows the middle one belongs to both halves.
        window, strides = (-(-height // rows), -(-width // columns)), (height // rows, width // columns)
        mean = layers.AveragePooling2D(window, strides=strides, name=f"novelty_{name}")(first)
        parts.append(layers.Flatten(name=f"novelty_{name}_flat")(mean))
    parts.append(layers.GlobalAveragePooling2D(name="novelty_whole")(last))
    return layers.Concatenate(name="novelty_features")(parts)


def deployed(plain: keras.Model, backbone: str, novelty: Sequence[NoveltyStatistics]) -> keras.Model:
    """Adds heatmap and novelty to a folded network.

    novelty^2 is the smallest squared Mahalanobis distance per dimension from one of the kinds of training films, that
    is sum_k y_k^2 / variance_k plus what the K axes leave over / residual_variance; with y the coordinates along the
    axes and v all of them, the rest is |v|^2 - |y|^2. It is about 1 for a training film, whatever the network's width.

    Args:
        plain: From `fold`.
        backbone: Name of its backbone.
        novelty: One for each kind of training films, such as those of a site.

    Returns:
        Model from float32 (N, S, S, 1), grey levels, to {"logit": (N,), "heatmap": (N, h, w), "novelty": (N,)}.
    """
    seen = explained(plain)
    features = _features(plain, backbone)
    nearest = _squared_distance(features, novelty[0])
    for other in novelty[1:]:
        nearest = keras.ops.minimum(nearest, _squared_distance(features, other))
    distance = keras.ops.sqrt(keras.ops.relu(nearest))
    logit = seen.output["logit"][:, 0]
    return keras.Model(plain.input, {"logit": logit, "heatmap": seen.output["heatmap"], "novelty": distance})


def _squared_distance(features: keras.KerasTensor, novelty: NoveltyStatistics) -> keras.KerasTensor:
    ops = keras.ops
    v = (features - novelty.mean) * (1 / novelty.scale)
    squares = ops.square(ops.matmul(v, novelty.axes))
    weights = (1 / novelty.variances - 1 / novelty.residual_variance)[:, np.newaxis].astype(np.float32)
    squared = ops.matmul(squares, weights)[:, 0] + ops.sum(ops.square(v), axis=1) * (1 / novelty.residual_variance)
    return squared * (1 / len(novelty.mean))


def quantisable_blocks(model: keras.Model, backbone: str) -> list[Block]:
    """Returns what of a `deployed` model becomes int8: the backbone, the large matrix of `flatten`, and of `local` what
    stands between the backbone and its map.

    Normalisation and the backbone's `float_layers` in front, the last layer, heatmap and novelty stay float: they cost
    little, and scores do not collapse into a few values.
    """
    names = [layer.name for layer in model.layers]
    body = names[names.index("normalise") + 1 : names.index(FEATURES)]
    body += [name for name in names[names.index(FEATURES) :] if name == HIDDEN or name in LOCAL_LAYERS]
    stays = re.compile(find_backbone(backbone).float_layers)
    blocks: list[Block] = []
    for name in body:
        layer = model.get_layer(name)
        # What batch-norm was is nothing now, and in ResNet50 it may stand behind another block's convolution.
        if name.startswith("novelty") or isinstance(layer, keras.layers.Identity) or stays.fullmatch(name):
            continue
        if layer.weights:
            blocks.append(Block((name,), int(layer.count_params())))
        elif blocks:
            # In front of the first block all is float: between float layers ONNX Runtime's pooling of bytes has no fast
            # kernel (15 of 64 ms for ResNet50).
            blocks[-1] = Block((*blocks[-1].layers, name), blocks[-1].weights)
    return blocks
