"""A backbone of a few weights, `tiny`, for commands that run in processes of their own, and films that it learns."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

# Python imports a module of this name before anything else: the command under test is the installed one, unchanged,
# with one more entry in its table of backbones.
_SITE = """
import atexit, dataclasses, os, signal, sys, threading, time
from pneumo_train.backbones import BACKBONES

def build(image):
    from keras import layers
    x = layers.AveragePooling2D(16, name="tiny_pool")(image)
    x = layers.Conv2D(8, 1, activation="relu", name="tiny_fine")(x)
    return layers.Conv2D(8, 1, activation="relu", name="tiny_conv")(layers.AveragePooling2D(2)(x))

BACKBONES["tiny"] = dataclasses.replace(
    BACKBONES["mobilenetv2"], name="tiny", build=build, frozen_layers="", fine_layer="tiny_fine",
    novelty_layers=("tiny_fine", "tiny_conv"),
)

def die():
    while not os.path.exists(os.environ["DIE_AT"]):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

if "DIE_AT" in os.environ:
    threading.Thread(target=die, daemon=True).start()
if "NO_TENSORFLOW" in os.environ:
    atexit.register(lambda: "tensorflow" in sys.modules and os._exit(99))
"""


def with_tiny_backbone(folder: Path) -> dict[str, str]:
    """Returns the environment of this process, in which Python also finds the backbone; `folder` is to be kept.

    With DIE_AT=FILE in it, a process kills itself as soon as that file is there. With NO_TENSORFLOW a process that has
    imported TensorFlow ends with 99.
    """
    (folder / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return dict(os.environ) | {"PYTHONPATH": path}


def draw_films(root: Path, folder: str, patients: int, first: int = 1) -> None:
    """Draws what the backbone learns in a few steps: two films of each patient, one class each in turn.

    They are grey noise, with a light band where there is pneumonia.
    """
    for i in range(first, first + patients):
        for film in (1, 2):
            ill = i % 2
            rng = np.random.default_rng([i, film])
            grey = rng.normal(80, 20, (72, 80))
            grey[20:50] += 100 * ill
            name = f"PNEUMONIA/person{i}_virus_{film}.jpeg" if ill else f"NORMAL/IM-{i:04d}-{film:04d}.jpeg"
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path)
