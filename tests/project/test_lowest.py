"""Are the lower bounds in pyproject.toml true? Each extra is installed alone, in an empty environment, with the lowest
versions that the bounds allow, and has to do its work there.

The lowest version of a package is the number behind its `>=`, and so has to be a release. What these packages need in
turn is as new as it comes: that is what somebody gets who installs pneumo beside older packages.

Left out of a usual run, since each environment takes a quarter of a minute or more: `pytest -m lowest`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from places import ROOT

pytestmark = [pytest.mark.lowest]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

FILM = """
import sys
from PIL import Image
Image.radial_gradient("L").resize((400, 320)).save(sys.argv[1])
"""
"""Light in the middle, dark at both sides: enough of a film to be read and judged."""

DICOM_FILM = """
import sys
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, RLELossless, generate_uid

pixels = np.asarray(Image.open(sys.argv[1]), np.uint16) * 16
for name, syntax in (("plain.dcm", ExplicitVRLittleEndian), ("rle.dcm", RLELossless)):
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID = DigitalXRayImageStorageForPresentation
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID = generate_uid()
    film.PatientID, film.Modality, film.BodyPartExamined, film.ViewPosition = "lowest", "DX", "CHEST", "PA"
    film.Rows, film.Columns = pixels.shape
    film.SamplesPerPixel, film.PhotometricInterpretation, film.PixelRepresentation = 1, "MONOCHROME2", 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, 12, 11
    film.PixelData = pixels.tobytes()
    if syntax == RLELossless:
        film.compress(RLELossless)
    film.save_as(name, enforce_file_format=True)
"""

SERVE = """
import json, re, subprocess, sys, urllib.request
command = [sys.argv[1], "--port", "0", "--spool", "spool", "--dicom-port", "0"]
with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as served:
    try:
        for line in served.stderr:
            print(line, file=sys.stderr, end="")
            found = re.search(r"page and HTTP: (\\S+)", line)
            if found:
                break
        request = urllib.request.Request(found[1] + "/v1/predict", open("film.png", "rb").read())
        request.add_header("Content-Type", "image/png")
        print(urllib.request.urlopen(request, timeout=60).read().decode())
    finally:
        served.terminate()
assert served.returncode == 0, served.returncode
"""

TRAIN = """
import sys
from pneumo_train.phantom import draw_phantoms
from pathlib import Path
draw_phantoms(Path("phantoms"), films=300)
"""


def lowest(*extras: str) -> list[str]:
    """Returns constraints for pip: every lower bound of the base and of some extras, as the version itself.

    Where two of them bound the same package, the higher bound holds.
    """
    found: dict[str, Requirement] = {}
    waiting = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    while waiting:
        for requirement in map(Requirement, waiting.pop()):
            if requirement.name == "pneumo":
                waiting += [PROJECT["optional-dependencies"][extra] for extra in requirement.extras]
            elif requirement.marker is None or requirement.marker.evaluate():
                known = found.get(requirement.name)
                if known is None or bound(known) < bound(requirement):
                    found[requirement.name] = requirement
    return sorted(f"{name}=={bound(requirement)}" for name, requirement in found.items())


def bound(requirement: Requirement) -> Version:
    """Returns the lowest version that a requirement allows."""
    return next(Version(each.version) for each in requirement.specifier if each.operator in (">=", "=="))


def test_every_requirement_has_a_lower_bound() -> None:
    named = [r for group in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()] for r in group]
    assert [r for r in named if not any(mark in r for mark in (">=", "==", "pneumo["))] == []
    assert "typer==" in " ".join(lowest())
    assert set(lowest("dicom")) < set(lowest("serve"))


class Environment:
    """An empty environment with pneumo and the lowest versions of what an extra brings."""

    def __init__(self, folder: Path, wheel: Path, *extras: str) -> None:
        self.folder = folder
        python = shutil.which("python3.11") if sys.version_info[:2] != (3, 11) else sys.executable
        if python is None:
            pytest.skip("the bounds are those of Python 3.11, the lowest one: there is no python3.11 here")
        subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(lowest(*extras)), encoding="utf-8")
        what = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
        self.run("python", "-m", "pip", "install", "--quiet", "--constraint", constraints, what)
        self.run("python", "-c", FILM, "film.png")

    def run(self, program: str, *arguments: str | Path, codes: tuple[int, ...] = (0,)) -> str:
        """Returns what a program of the environment prints."""
        line: list[str | Path] = [self.folder / "venv" / "bin" / program, *arguments]
        done = subprocess.run(line, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode in codes, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def verdict(self, *arguments: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.run("pneumo-infer", "--format", "json", "--force-verdict", *arguments))
        assert record["label"] in {"NORMAL", "PNEUMONIA"}
        return record


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(line, check=True)
    [made] = folder.glob("*.whl")
    return made


def test_base(wheel: Path, tmp_path: Path) -> None:
    lowest_base = Environment(tmp_path, wheel)
    for command in ("train", "export", "infer", "serve", "bench", "archive"):
        assert "--version" in lowest_base.run(f"pneumo-{command}", "--help")
    assert lowest_base.verdict("film.png", "--heatmap", "heatmaps")["file"] == "model.int8.tflite"
    assert len(list((tmp_path / "heatmaps").iterdir())) == 1


def test_onnx(wheel: Path, tmp_path: Path) -> None:
    assert Environment(tmp_path, wheel, "onnx").verdict("film.png", "--engine", "onnx")


def test_dicom(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, "dicom")
    environment.run("python", "-c", DICOM_FILM, "film.png")
    plain, rle = (environment.verdict(name) for name in ("plain.dcm", "rle.dcm"))
    assert plain["logit"] == rle["logit"]


def test_serve(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, "serve")
    answer = json.loads(environment.run("python", "-c", SERVE, tmp_path / "venv" / "bin" / "pneumo-serve"))
    assert answer["model"]


def test_archive(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, "archive")
    (tmp_path / "films").mkdir()
    shutil.copy(tmp_path / "film.png", tmp_path / "films")
    assert environment.run("pneumo-archive", "films", "--output", "answers", "--workers", "1")
    assert len(list((tmp_path / "answers" / "films").glob("*.parquet"))) == 1


def test_bench(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, "bench")
    assert environment.run("pneumo-bench", "latency", "--rounds", "1", "--queries", "10", "--output", "results")


def test_train_and_export(wheel: Path, tmp_path: Path) -> None:
    """Gigabytes of TensorFlow: not in .ci/run."""
    environment = Environment(tmp_path, wheel, "train", "export")
    environment.run("python", "-c", TRAIN)
    training = ("--data", "phantoms", "--output", "run", "--size", "64", "--epochs", "6")
    environment.run("pneumo-train", *training)
    # Of so few films the gate may say that int8 is not good enough: then the file lies beside the bundle.
    environment.run("pneumo-export", "run", codes=(0, 1))
    made = {file.name for folder in ("bundle", "bundle-refused") for file in (tmp_path / "run" / folder).glob("model*")}
    assert {"model.onnx", "model.int8.onnx", "model.tflite", "model.int8.tflite"} <= made
    assert environment.verdict("film.png", "--model", "run/bundle")
