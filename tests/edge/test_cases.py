"""Pictures of public bug reports, in `../shared/cases` beside the checkout: right, or refused with the right word.

The kinds that they stand for are covered by `test_dicom.py` and `test_deep.py`, which make their own pictures. All but
two are made of one film, so what is right is that they agree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
pytest.importorskip("gdcm", reason="python-gdcm is not installed")

from places import SHARED
from pneumo_edge.plausibility import objections
from pneumo_edge.preprocess import Film, read_film

CASES = SHARED / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not here (../shared/cases)")

HEIGHT, WIDTH = 400, 480

BY_WINDOW = ["high-bit-15-rle.dcm", "high-bit-15-jpegls.dcm", "offset-table-wrong.dcm", "window-first-value-empty.dcm"]
BY_TABLE = ["voi-lut-one-entry-short.dcm", "voi-lut-descriptor-0.dcm", "voi-lut-first-value-negative-implicit.dcm"]
BY_OWN_RANGE = ["window-comma.dcm", "rescale-slope-0.dcm", "tiff-white-is-zero-16.tif", "la16-holding-12-bits.png"]
HOT = ["one-pixel-65535-in-12-bits.png", "one-pixel-16383-in-12-bits.png"]
WORDS = {
    "window-first-value-empty.dcm": "the file's first window cannot be used; the next one was",
    "window-comma.dcm": "the file's window cannot be used and was ignored",
    "rescale-slope-0.dcm": "the file's rescale slope is 0; both were ignored",
}


def film(name: str) -> Film:
    found = read_film(CASES / name, WIDTH)
    assert (found.width, found.height) == (WIDTH, HEIGHT)
    assert found.warnings == ((WORDS[name],) if name in WORDS else ())
    return found


def away(one: Film, other: Film) -> npt.NDArray[np.int_]:
    return np.abs(one.pixels.astype(int) - other.pixels)


def test_each_case_is_asked_for() -> None:
    others = ["padding-as-us-over-signed.dcm", "for-processing-linear-mono1.dcm"]
    there = sorted(path.name for path in CASES.iterdir() if path.suffix != ".md")
    assert there == sorted([*BY_WINDOW, *BY_TABLE, *BY_OWN_RANGE, *HOT, *others])


@pytest.mark.parametrize("names", [BY_WINDOW, BY_TABLE, BY_OWN_RANGE])
def test_cases_made_of_one_film_agree(names: list[str]) -> None:
    first = film(names[0])
    assert objections(first) == ()
    assert len(np.unique(first.pixels)) > 200
    for name in names[1:]:
        assert away(film(name), first).max() <= 1, name


@pytest.mark.parametrize("name", HOT)
def test_a_hot_pixel_is_all_that_it_changes(name: str) -> None:
    differs = away(film(name), film(BY_OWN_RANGE[0]))
    assert np.count_nonzero(differs > 2) < 60  # around the one pixel: the film is resampled
    assert differs.mean() < 0.3


def test_padding_is_left_out_of_the_range() -> None:
    found = film("padding-as-us-over-signed.dcm")
    assert found.pixels.mean() == pytest.approx(97, abs=1)
    assert len(np.unique(found.pixels)) > 200


def test_raw_values_get_no_verdict_without_a_word() -> None:
    found = film("for-processing-linear-mono1.dcm")
    assert any("FOR PROCESSING" in doubt for doubt in objections(found))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, ["+Wi", "1"]) for name in BY_WINDOW[:2]),
        *((name, ["+Wl", "1"]) for name in BY_TABLE),
        ("rescale-slope-0.dcm", ["+Wm"]),
    ],
)
def test_cases_agree_with_dcmtk(name: str, options: list[str], tmp_path: Path) -> None:
    if shutil.which("dcm2pnm") is None:
        why = "needs dcm2pnm: apt install dcmtk"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    case = CASES / name
    if "jpegls" in name:
        # dcm2pnm itself knows native pixels and run lengths.
        case = tmp_path / "plain.dcm"
        subprocess.run(["dcmdjpls", CASES / name, case], check=True)
    subprocess.run(["dcm2pnm", "--quiet", *options, case, tmp_path / "film.pgm"], check=True)
    with Image.open(tmp_path / "film.pgm") as grey:
        grey.save(tmp_path / "film.png")
    assert away(read_film(tmp_path / "film.png", WIDTH), film(name)).max() <= 2
