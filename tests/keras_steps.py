"""Steps of runs on whichever backend Keras has in this process: begin, be interrupted, go on, answer.

Keras chooses its backend when it is imported, so that each backend needs a process of its own. The network has what
real ones have, but for size: convolutions, frozen and learning ones, batch-norm, dropout and a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import keras
import numpy as np
from keras import layers

from pneumo_edge.command_line import say
from pneumo_train import fit, report, train
from pneumo_train.backbones import BACKBONES
from pneumo_train.explain import explained


def _build(image: Any) -> Any:
    x = layers.AveragePooling2D(16, name="tiny_pool")(image)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="tiny_conv")(x)
    x = layers.DepthwiseConv2D(3, 2, padding="same", name="tiny_dwconv")(x)
    return layers.ReLU(6.0, name="tiny_activation")(x)


@contextmanager
def _tiny_backbone() -> Iterator[None]:
    entry = replace(
        BACKBONES["mobilenetv2"], name="tiny", build=_build, frozen_layers="", fine_layer="tiny_conv",
        novelty_layers=("tiny_conv", "tiny_dwconv"),
    )  # fmt: skip
    with patch.dict(BACKBONES, tiny=entry):
        yield


def start(data: Path, run: Path, head: str) -> None:
    """Trains for three epochs, and writes the report."""
    with _tiny_backbone():
        train.start_run(
            run, data=[str(data)], backbone="tiny", head=head, weights="none", size=64, epochs=3, batch_size=8,
            learning_rate=0.03, seed=3, limit=None,
        )  # fmt: skip


def interrupt(data: Path, run: Path, head: str) -> None:
    """Starts the same run, and stops it after its first epoch."""

    def say_and_stop(text: str) -> None:
        say(text)
        if text.startswith("epoch 1/"):
            raise KeyboardInterrupt

    with patch.object(fit, "say", say_and_stop):
        try:
            start(data, run, head)
        except KeyboardInterrupt:
            return
    raise AssertionError("the run was not interrupted")


def resume(run: Path) -> None:
    """Goes on with a run to its end, without a report: the run that was begun by `start` has one."""
    with _tiny_backbone(), patch.object(report, "write_report", lambda _: None):
        train.resume_run(run)


def answer(run: Path) -> None:
    """Writes what the model of a run answers, as RUN-BACKEND.npz."""
    model = explained(keras.saving.load_model(run / "model.keras"))
    films = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 1)).astype("float32")
    found = {key: keras.ops.convert_to_numpy(value) for key, value in model.predict_on_batch(films).items()}
    np.savez(f"{run}-{keras.backend.backend()}.npz", **found)
