"""Keras on TensorFlow and on JAX: the same command, and what one has written the other reads and goes on with.

Both compute one small network in float32 on one processor. Their kernels add in other orders, which shows in the sixth
digit of answers of about one, on any processor; 1e-4 is allowed.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from places import ROOT

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}: pip install -e '.[train,dev]'")
    for name in ("keras", "tensorflow", "jax", "sklearn", "matplotlib")
]

# Keras on JAX needs no TensorFlow, which is wanted for the export alone: as where it is not installed.
ON_JAX = """
import sys

class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ImportError("as where it is not installed")

sys.meta_path.insert(0, NoTensorFlow())
from pathlib import Path
from keras_steps import answer, interrupt, resume, start

place = Path(sys.argv[1])
start(place / "data", place / "on-jax", "local")
answer(place / "on-jax")
interrupt(place / "data", place / "jax-first", "local")
resume(place / "tensorflow-first")
answer(place / "tensorflow-first")
"""


class Done(NamedTuple):
    """Where the runs lie, and what was said on stderr on each backend."""

    place: Path
    said: dict[str, str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One run on JAX alone, and two that begin on one backend and end on the other.

    TensorFlow has its part in this process, where other tests have imported it anyway.
    """
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        pytest.skip("Keras is not on TensorFlow in this process")
    place = tmp_path_factory.mktemp("backends")
    boxes = ["path,x0,y0,x1,y1"]
    for i in range(60):
        ill = i % 2
        grey = np.random.default_rng(i).normal(80, 20, (72, 80))
        grey[20:50] += 100 * ill
        name = f"train/PNEUMONIA/person{i}_virus_1.png" if ill else f"train/NORMAL/IM-{i:04d}-0001.png"
        path = place / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path)
        if ill:
            boxes.append(f"{name},0,{20 / 72},1,{50 / 72}")
    (place / "data" / "boxes.csv").write_text("\n".join(boxes))
    on_tensorflow = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(on_tensorflow):
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        import keras_steps

        keras_steps.interrupt(place / "data", place / "tensorflow-first", "flatten")
        jax = os.environ | {
            "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
            # To optimise what then runs for a moment takes two thirds of the time.
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        }  # fmt: skip
        command = [sys.executable, "-c", ON_JAX, str(place)]
        finished = subprocess.run(command, env=jax, capture_output=True, text=True, timeout=900, check=False)
        assert finished.returncode == 0, finished.stderr
        for run in ("on-jax", "tensorflow-first"):
            keras_steps.answer(place / run)
        keras_steps.resume(place / "jax-first")
    return Done(place, {"jax": finished.stderr, "tensorflow": on_tensorflow.getvalue()})


def answers(done: Done, run: str) -> list[dict[str, npt.NDArray[np.float32]]]:
    found = []
    for backend in ("tensorflow", "jax"):
        with np.load(done.place / f"{run}-{backend}.npz") as stored:
            found.append(dict(stored))
    return found


@pytest.mark.parametrize("run", ["on-jax", "tensorflow-first"])
def test_a_model_answers_the_same_on_both(done: Done, run: str) -> None:
    on_tensorflow, on_jax = answers(done, run)
    for name in ("logit", "heatmap"):
        # After three short epochs a pooled logit has moved little: a hundredth of that is allowed, far above the
        # rounding of float32 on any processor.
        spread = float(np.ptp(on_jax[name]))
        assert spread > 2e-4, name  # else anything would be the same
        assert on_jax[name] == pytest.approx(on_tensorflow[name], abs=min(1e-4, max(1e-5, spread / 100))), name


@pytest.mark.parametrize("run", ["on-jax", "jax-first", "tensorflow-first"])
def test_a_run_is_whole_whichever_backend_ended_it(done: Done, run: str) -> None:
    files = {path.name for path in (done.place / run).iterdir() if path.suffix != ".png"}
    whole = {
        "config.json",
        "history.csv",
        "metrics.json",
        "model.keras",
        "predictions.csv",
        "remarks.json",
        "split.csv",
    }
    assert files == whole | ({"report.html"} if run == "on-jax" else set())
    assert len((done.place / run / "history.csv").read_text().splitlines()) == 1 + 3
    with (done.place / run / "history.csv").open(newline="") as text:
        taught = [row["map_loss"] != "" for row in csv.DictReader(text)]
    assert taught == [run != "tensorflow-first"] * 3  # boxes teach where there is a map
    metrics = json.loads((done.place / run / "metrics.json").read_text())
    assert metrics["validation"]["auc"]["value"] > 0.9


def test_a_run_goes_on_with_the_other_backend_where_it_was(done: Done) -> None:
    for backend in ("jax", "tensorflow"):
        assert "going on after epoch 1 of 3" in done.said[backend]
    rates = []
    for run in ("on-jax", "jax-first", "tensorflow-first"):
        with (done.place / run / "history.csv").open(newline="") as text:
            rates.append([float(row["learning_rate"]) for row in csv.DictReader(text)])
    # The schedule knows how many steps were taken: an optimiser that began anew would stand elsewhere.
    assert rates[1] == pytest.approx(rates[0])
    assert rates[2] == pytest.approx(rates[0])
    assert rates[0][0] > rates[0][1] > rates[0][2]


def test_on_jax_too_a_resumed_run_is_the_run_that_was_not_interrupted() -> None:
    """Keras feeds JAX otherwise than TensorFlow: the films of an epoch must not depend on what it fetched ahead."""
    chosen = Path(__file__).with_name("test_fit.py"), "-k", "a_resumed_run_is_the_run"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, chosen)]
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert finished.returncode == 0, finished.stdout
    assert "1 passed" in finished.stdout
