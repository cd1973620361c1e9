"""The network rewritten for training is the network: same answers, same gradients, same variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the extra train")

from pneumo_train.backbones import BACKBONES, backbone_layers, build_model, freeze  # noqa: E402
from pneumo_train.rewrite import rewritten  # noqa: E402

SIDE = 64


def network(backbone: str, head: str = "gap") -> Any:
    """A network as it is fine-tuned, whose batch-norm has statistics unlike those of a new one."""
    keras.utils.set_random_seed(3)
    model = build_model(backbone, head, SIDE, dropout=0.0)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.weights:
                variable.assign(variable.numpy() + rng.uniform(0.0, 0.3, variable.shape))
    freeze(model, backbone, [layer.name for layer in backbone_layers(model)])
    return model


def wide(model: Any) -> Any:
    """The same network with the same weights, computed in float64 throughout."""
    copy = keras.models.clone_model(
        model,
        input_tensors=keras.Input(model.input.shape[1:], dtype="float64", name="image"),
        clone_function=lambda layer: type(layer).from_config(layer.get_config() | {"dtype": "float64"}),
    )
    copy.set_weights(model.get_weights())
    return copy


def films(side: int = SIDE, dtype: str = "float32") -> Any:
    return np.random.default_rng(1).uniform(0, 255, (4, side, side, 1)).astype(dtype)


def gradients(model: Any) -> list[Any]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(films(dtype="float64")) - 1))
    return [g.numpy() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]


def norms(model: Any) -> list[Any]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def assert_same_answers(one: Any, other: Any) -> None:
    """In float32 the order of the sums, which is the processor's, shows in the fifth digit after some fifty layers."""
    expected = np.asarray(one(films()))
    assert np.abs(np.asarray(other(films())) - expected).max() <= 1e-2 * np.abs(expected).max()


# VGG16 has no batch-norm.
@pytest.mark.parametrize("backbone", sorted(BACKBONES.keys() - {"vgg16"}))
def test_answers_and_variables_are_those_of_the_model(backbone: str) -> None:
    model = network(backbone)
    learner = rewritten(model, any_side=False)
    assert all(a is b for a, b in zip(model.trainable_variables, learner.trainable_variables, strict=True))
    assert_same_answers(model, learner)


@pytest.mark.parametrize("backbone", sorted(BACKBONES.keys() - {"vgg16"}))
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="takes gradients by TensorFlow's tape")
def test_in_float64_answers_and_gradients_are_those_of_the_model(backbone: str) -> None:
    """Gradients can be compared in float64 alone. In float32 rounding, which is the processor's, tips a few activations
    over a kink of the ReLU, and each of those moves a gradient by its whole share."""
    model = wide(network(backbone))
    learner = rewritten(model, any_side=False)
    assert len(norms(learner)) < len(norms(model)), "nothing is folded, so nothing is compared"
    assert {layer.compute_dtype for layer in learner.layers[1:]} == {"float64"}
    # Rounding is 1e-16 a step, and no sum has more than some ten thousand terms in fifty layers: 1e-10 at the worst.
    expected, answer = (np.asarray(x(films(dtype="float64"))) for x in (model, learner))
    assert answer.dtype == np.float64
    assert answer == pytest.approx(expected, rel=1e-9)
    for variable, one, other in zip(model.trainable_variables, gradients(model), gradients(learner), strict=True):
        assert np.abs(one).max() > 0, variable.path
        assert np.abs(one - other).max() <= 1e-9 * np.abs(one).max(), variable.path


def test_all_frozen_batch_norm_is_folded() -> None:
    assert not norms(rewritten(network("efficientnet_lite0"), any_side=False))


def test_batch_norm_that_learns_stays() -> None:
    model = network("efficientnet_lite0")
    norm = model.get_layer("top_bn")
    norm.trainable = True
    learner = rewritten(model, any_side=False)
    assert norms(learner) == [norm]
    learner(films(), training=True)
    assert np.abs(np.asarray(learner(films(), training=True)) - np.asarray(model(films()))).max() > 1e-3


def test_a_model_of_any_side_has_the_same_weights() -> None:
    model = network("efficientnet_lite0")
    free = rewritten(model, any_side=True)
    assert all(a is b for a, b in zip(model.trainable_variables, free.trainable_variables, strict=True))
    assert_same_answers(model, free)
    assert np.asarray(free(films(96))).shape == (4, 1)


def test_a_flattened_map_keeps_its_side() -> None:
    model = network("mobilenetv2", "flatten")
    assert_same_answers(model, rewritten(model, any_side=False))


def test_what_changes_the_model_changes_the_rewritten_one() -> None:
    model = network("efficientnet_lite0")
    learner = rewritten(model, any_side=False)
    kernel = model.get_layer("stem_conv").kernel
    kernel.assign(kernel.numpy() * 1.5)
    assert_same_answers(model, learner)


def test_under_mixed_precision_nothing_is_folded() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network("mobilenetv2")
    finally:
        keras.config.set_dtype_policy("float32")
    learner = rewritten(model, any_side=False)
    assert np.array_equal(np.asarray(learner(films())), np.asarray(model(films())))
