"""A backbone of a few weights, `tiny`, for commands that run in processes of their own and would train a real one."""

from __future__ import annotations

import os
from pathlib import Path

# Python imports a module of this name before anything else: the command under test is the installed one, unchanged,
# with one more entry in its table of backbones.
_SITE = """
import dataclasses, os, signal, threading, time
from pneumo_train.backbones import BACKBONES

def build(image):
    from keras import layers
    x = layers.AveragePooling2D(16, name="tiny_pool")(image)
    x = layers.Conv2D(8, 1, activation="relu", name="tiny_fine")(x)
    return layers.Conv2D(8, 1, activation="relu", name="tiny_conv")(layers.AveragePooling2D(2)(x))

BACKBONES["tiny"] = dataclasses.replace(
    BACKBONES["mobilenetv2"], name="tiny", build=build, frozen_layers="", fine_layer="tiny_fine",
    novelty_layers=("tiny_conv",),
)

def die():
    while not os.path.exists(os.environ["DIE_AT"]):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

if "DIE_AT" in os.environ:
    threading.Thread(target=die, daemon=True).start()
"""


def with_tiny_backbone(folder: Path) -> dict[str, str]:
    """Returns the environment of this process, in which Python also finds the backbone; `folder` is to be kept.

    With DIE_AT=FILE in it, a process kills itself as soon as that file is there.
    """
    (folder / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return dict(os.environ) | {"PYTHONPATH": path}
