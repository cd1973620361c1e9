"""Times one way of training, in a process of its own, from the films on disk to the end of the last epoch.

The import of TensorFlow and the building of the network come before that; tracing and compiling are part of the time.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumo_bench.process import answer
from pneumo_edge.bundle import LABELS
from pneumo_train.augment import augment
from pneumo_train.tuning import choose_kernels, keep_freed_memory

if TYPE_CHECKING:
    import keras

OURS, USUAL = "pneumo-train", "usual way"

LEARNING_RATE = 1e-5
"""Small, since the weights are random. The time of an epoch does not depend on it."""


def time_training(way: str, data: str, backbone: str, size: int, epochs: int, batch_size: int) -> dict[str, Any]:
    """Trains for some epochs and returns `seconds` and `films`, the number of training films.

    Args:
        way: `OURS` or `USUAL`.
        data: Folder with train/NORMAL and train/PNEUMONIA, of which nothing has been prepared before.
        backbone: A key of `pneumo_train.backbones.BACKBONES`; its weights are random.
        size: S, side of the input in pixels.
        epochs: Passes over the films.
        batch_size: Films in one step.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if way == OURS:
        keep_freed_memory()
        choose_kernels(backbone)
    model = _build(backbone, size)
    train = _ours if way == OURS else _usual
    start = time.perf_counter()
    films = train(model, Path(data), size, epochs, batch_size)
    return {"seconds": time.perf_counter() - start, "films": films}


def _build(backbone: str, size: int) -> keras.Model:
    import keras

    from pneumo_train.backbones import backbone_layers, build_model, freeze

    keras.utils.set_random_seed(0)
    model = build_model(backbone, "gap", size)
    # As if all layers had pretrained weights: batch-norm keeps its values, and so do the first layers of deep networks.
    freeze(model, backbone, [layer.name for layer in backbone_layers(model)])
    return model


def _ours(model: keras.Model, data: Path, size: int, epochs: int, batch_size: int) -> int:
    """Trains as pneumo-train does: it decodes the films once into one array, then calls `fit` with its checkpoints."""
    from pneumo_train.batches import FitData
    from pneumo_train.films import labels_of, prepare
    from pneumo_train.fit import FitSettings, fit
    from pneumo_train.sources import gather

    gathered = gather([str(data)])
    files = gathered.films
    labels, pixels = labels_of(files), prepare(gathered.roots, files, size).pixels
    # `fit` needs films by which it chooses the best epoch; one of each class costs next to nothing.
    judged = [int(np.argmax(labels == label)) for label in range(len(LABELS))]
    films = FitData(
        films=pixels,
        train=np.arange(len(files)),
        files=files,
        validation=pixels[judged],
        perturbed=np.stack([augment(pixels[i], np.random.default_rng(i)) for i in judged]),
        validation_labels=labels[judged],
        validation_sites=[files[i].site for i in judged],
    )
    settings = FitSettings(epochs, batch_size, LEARNING_RATE, seed=0, patience=epochs)
    with TemporaryDirectory(prefix="pneumo-bench-") as run:
        fit(Path(run), settings, films, lambda: model, resume=False)
    return len(files)


def _usual(model: keras.Model, data: Path, size: int, epochs: int, batch_size: int) -> int:
    """Trains as a good notebook does: decoded films in memory, augmentation in parallel, batches made ahead."""
    import keras
    import tensorflow as tf

    dataset = keras.utils.image_dataset_from_directory(
        data / "train",
        label_mode="binary",
        class_names=list(LABELS),
        color_mode="grayscale",
        image_size=(size, size),
        batch_size=batch_size,
        seed=0,
        verbose=False,
    )
    films = len(dataset.file_paths)
    layers = keras.layers
    # The kinds and strengths of `pneumo_train.augment` for which every Keras 3 has a layer; what has none (gamma, noise
    # of grey levels, blur, resampling, JPEG, grey box, letters) is not done here, in favour of the usual way.
    augmentation = keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(15 / 360, fill_mode="constant"),
            layers.RandomZoom((-0.25, 0.25), (-0.25, 0.25), fill_mode="constant"),
            layers.RandomTranslation(0.08, 0.08, fill_mode="constant"),
            layers.RandomBrightness(0.2, value_range=(0, 255)),
            layers.RandomContrast(0.4),
        ]
    )
    batches = (
        dataset.cache()
        .shuffle(64)
        .map(lambda x, y: (augmentation(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    model.compile(keras.optimizers.Adam(LEARNING_RATE), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)  # the dataset is shuffled itself
    return films


if __name__ == "__main__":
    answer(time_training)
