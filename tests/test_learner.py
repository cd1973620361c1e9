"""The network arranged for training is the network: same answers, same gradients, same variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the extra train")

from pneumo_train.backbones import BACKBONES, backbone_layers, build_model, freeze  # noqa: E402
from pneumo_train.learner import arranged  # noqa: E402

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


def films(side: int = SIDE) -> Any:
    return np.random.default_rng(1).uniform(0, 255, (4, side, side, 1)).astype(np.float32)


def gradients(model: Any) -> list[Any]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(films()) - 1))
    return [g.numpy() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]


@pytest.mark.parametrize("backbone", sorted(BACKBONES.keys() - {"vgg16"}))  # which has no batch-norm
def test_answers_variables_and_gradients_are_those_of_the_model(backbone: str) -> None:
    model = network(backbone)
    learner = arranged(model, any_side=False)
    assert all(a is b for a, b in zip(model.trainable_variables, learner.trainable_variables, strict=True))
    expected = np.asarray(model(films()))
    assert np.asarray(learner(films())) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    if keras.backend.backend() != "tensorflow":
        return
    for variable, one, other in zip(model.trainable_variables, gradients(model), gradients(learner), strict=True):
        assert np.abs(one - other).max() <= 2e-3 * np.abs(one).max(), variable.path


def test_all_frozen_batch_norm_is_folded() -> None:
    learner = arranged(network("efficientnet_lite0"), any_side=False)
    assert not [layer for layer in learner.layers if isinstance(layer, keras.layers.BatchNormalization)]


def test_batch_norm_that_learns_stays() -> None:
    model = network("efficientnet_lite0")
    norm = model.get_layer("top_bn")
    norm.trainable = True
    learner = arranged(model, any_side=False)
    assert [x for x in learner.layers if isinstance(x, keras.layers.BatchNormalization)] == [norm]
    learner(films(), training=True)
    assert np.abs(np.asarray(learner(films(), training=True)) - np.asarray(model(films()))).max() > 1e-3


def test_a_model_of_any_side_has_the_same_weights() -> None:
    model = network("efficientnet_lite0")
    free = arranged(model, any_side=True)
    assert all(a is b for a, b in zip(model.trainable_variables, free.trainable_variables, strict=True))
    assert np.asarray(free(films())) == pytest.approx(np.asarray(model(films())), rel=1e-3, abs=1e-3)
    assert np.asarray(free(films(96))).shape == (4, 1)


def test_a_flattened_map_keeps_its_side() -> None:
    model = network("mobilenetv2", "flatten")
    assert np.asarray(arranged(model, any_side=False)(films())) == pytest.approx(
        np.asarray(model(films())), rel=1e-3, abs=1e-3
    )


def test_what_changes_the_model_changes_its_other_arrangement() -> None:
    model = network("efficientnet_lite0")
    learner = arranged(model, any_side=False)
    kernel = model.get_layer("stem_conv").kernel
    kernel.assign(kernel.numpy() * 1.5)
    assert np.asarray(learner(films())) == pytest.approx(np.asarray(model(films())), rel=1e-3, abs=1e-3)


def test_under_mixed_precision_nothing_is_folded() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network("mobilenetv2")
    finally:
        keras.config.set_dtype_policy("float32")
    learner = arranged(model, any_side=False)
    assert np.array_equal(np.asarray(learner(films())), np.asarray(model(films())))
