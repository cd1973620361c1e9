"""The heatmap, as part of the graph: from the head's own weights, so that a device needs no gradients."""

from __future__ import annotations

import keras
import numpy as np

from pneumo_train.backbones import FEATURES, LOCAL_LOGIT


def explained(model: keras.Model) -> keras.Model:
    """Builds the same network with a second output that says where the evidence lies.

    For the `local` head the map is that of local logits, which the film's logit is pooled from. For the `gap` head it
    is CAM (Zhou et al., CVPR 2016): features times the last layer's weights. For the
    `flatten` head it is HiResCAM (Draelos and Carin, 2020): features times the gradient of the logit, summed over
    channels. The gradient of that small network is written out: with U[p, j] = sum_c f[p, c] W[p, c, j] for each place
    p and hidden unit j, the hidden layer is z = sum_p U + b, and the map is sum_j U[p, j] w2[j] [z[j] > 0]. The large
    matrix W is used, and stored, once.

    Args:
        model: From `build_model`, trained.

    Returns:
        Model with the same input and the outputs {"logit": (N, 1), "heatmap": (N, h, w)}, float32; the map is in
        logits: for `gap` its mean plus the bias is the logit.
    """
    names = [layer.name for layer in model.layers]
    if LOCAL_LOGIT in names:
        local = model.get_layer(LOCAL_LOGIT).output
        heatmap = keras.layers.Reshape(local.shape[1:3], name="heatmap")(local)
        return keras.Model(model.input, {"logit": model.output, "heatmap": heatmap})
    features = model.get_layer(FEATURES).output
    kernel, bias = model.get_layer("logit").get_weights()
    _, height, width, channels = features.shape
    if "hidden" not in names:
        # What is added here is float32 whatever the precision of the backbone.
        cam = keras.layers.Conv2D(1, 1, use_bias=False, dtype="float32", name="cam")
        heatmap = keras.layers.Reshape((height, width), name="heatmap")(cam(features))
        cam.set_weights([kernel[np.newaxis, np.newaxis]])
        return keras.Model(model.input, {"logit": model.output, "heatmap": heatmap})
    hidden_kernel, hidden_bias = model.get_layer("hidden").get_weights()
    places = height * width
    parts = _PlaceProducts(places, hidden_kernel.shape[1], dtype="float32", name="hidden_places")
    products = parts(keras.layers.Reshape((places, channels), name="places")(features))
    parts.set_weights([hidden_kernel.reshape(places, channels, -1)])
    z = keras.ops.sum(products, axis=1) + hidden_bias
    active = keras.ops.cast(z > 0, "float32") * kernel[:, 0]
    heatmap = keras.ops.sum(products * keras.ops.expand_dims(active, 1), axis=2)
    heatmap = keras.layers.Reshape((height, width), name="heatmap")(heatmap)
    logit = keras.ops.matmul(keras.ops.relu(z), kernel) + bias
    return keras.Model(model.input, {"logit": logit, "heatmap": heatmap})


class _PlaceProducts(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """(N, P, C) -> (N, P, J): at each place p its own matrix (C, J)."""

    def __init__(self, places: int, units: int, **settings: object) -> None:
        super().__init__(**settings)
        self._places, self._units = places, units

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.kernel = self.add_weight(shape=(self._places, shape[-1], self._units), name="kernel")

    def call(self, features: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.transpose(keras.ops.matmul(keras.ops.transpose(features, (1, 0, 2)), self.kernel), (1, 0, 2))
