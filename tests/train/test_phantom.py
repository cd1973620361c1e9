from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pneumo_edge.errors import DataError, UsageError
from pneumo_train.phantom import SOURCE, draw_phantoms
from pneumo_train.sources import gather

FILMS = 300
NAME = {
    "NORMAL": re.compile(r"(IM-\d{4})-\d{4}\.jpeg"),
    "PNEUMONIA": re.compile(r"(person\d+)_(?:bacteria|virus)_\d+\.jpeg"),
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_phantoms(tmp_path_factory.mktemp("phantom") / "set", films=FILMS, seed=0)


def _films(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpeg"))


def _patient(film: Path) -> str:
    match = NAME[film.parent.name].fullmatch(film.name)
    assert match, film
    return match[1]


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


# ------------------------------------------------------------------------------------------------------ the files


def test_layout_is_the_one_of_the_kaggle_set(phantoms: Path) -> None:
    counts = Counter(str(film.parent.relative_to(phantoms)) for film in _films(phantoms))
    assert counts == {
        "train/NORMAL": 47,
        "train/PNEUMONIA": 133,
        "val/NORMAL": 16,
        "val/PNEUMONIA": 44,
        "test/NORMAL": 22,
        "test/PNEUMONIA": 38,
    }
    # Nothing else lies there that a reader of the folder could trip over.
    assert sorted(entry.name for entry in phantoms.iterdir()) == ["PHANTOM.json", "test", "train", "val"]
    assert len(_hashes(phantoms)) == FILMS + 1


def test_the_mark_says_that_these_are_drawings(phantoms: Path) -> None:
    mark = json.loads((phantoms / "PHANTOM.json").read_text())
    assert mark["films"] == FILMS
    assert mark["seed"] == 0
    assert "no patients" in mark["note"]
    assert "never a substitute for real films" in mark["note"]


def test_patients_have_one_to_four_films_and_stay_in_one_split(phantoms: Path) -> None:
    films = _films(phantoms)
    splits = {(film.parts[-3], _patient(film)) for film in films}
    assert len(splits) == len({patient for _, patient in splits})
    per_patient = Counter(_patient(film) for film in films)
    assert set(per_patient.values()) == {1, 2, 3, 4}


def test_a_patient_has_one_kind_of_pneumonia_and_both_kinds_occur(phantoms: Path) -> None:
    kinds: dict[str, set[str]] = {}
    for film in phantoms.glob("*/PNEUMONIA/*.jpeg"):
        kinds.setdefault(_patient(film), set()).add(film.name.split("_")[1])
    assert all(len(kind) == 1 for kind in kinds.values())
    assert set.union(*kinds.values()) == {"bacteria", "virus"}


def test_films_are_grey_of_many_sizes_and_no_two_alike(phantoms: Path) -> None:
    sizes = set()
    for film in _films(phantoms):
        with Image.open(film) as image:
            assert (image.format, image.mode) == ("JPEG", "L")
            assert 300 <= image.width <= 500
            assert 0.8 <= image.width / image.height <= 1.5
            sizes.add(image.size)
    assert len(sizes) > FILMS // 2
    assert len(set(_hashes(phantoms).values())) == FILMS + 1


# ---------------------------------------------------------------------------------------------- the same set again


def test_same_seed_gives_same_bytes_and_another_seed_another_set(tmp_path: Path) -> None:
    first = _hashes(draw_phantoms(tmp_path / "first", films=20, seed=7))
    assert _hashes(draw_phantoms(tmp_path / "second", films=20, seed=7)) == first
    other = _hashes(draw_phantoms(tmp_path / "other", films=20, seed=8))
    assert not set(other.values()) & set(first.values())


def test_a_standing_set_is_returned_untouched(tmp_path: Path) -> None:
    folder = draw_phantoms(tmp_path / "set", films=20)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}

    def drawn(done: int, total: int) -> None:
        pytest.fail("a standing set was drawn again")

    assert draw_phantoms(folder, films=20, progress=drawn) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


@pytest.mark.parametrize(("films", "seed"), [(21, 0), (20, 1)])
def test_a_set_of_other_arguments_is_refused(tmp_path: Path, films: int, seed: int) -> None:
    folder = draw_phantoms(tmp_path / "set", films=20)
    before = _hashes(folder)
    with pytest.raises(DataError, match=rf"{re.escape(str(folder))} exists .* name a new folder, or remove"):
        draw_phantoms(folder, films=films, seed=seed)
    assert _hashes(folder) == before


@pytest.mark.parametrize("mark", [None, "", "[]", "{broken", '{"films": 20}', b"\xff\xfe"])
def test_a_folder_that_is_something_else_is_refused(tmp_path: Path, mark: str | bytes | None) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    if mark is not None:
        (folder / "PHANTOM.json").write_bytes(mark if isinstance(mark, bytes) else mark.encode())
    before = _hashes(folder)
    with pytest.raises(DataError, match=re.escape(str(folder))):
        draw_phantoms(folder, films=20)
    assert _hashes(folder) == before


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(DataError, match=re.escape(str(file))):
        draw_phantoms(file, films=20)
    with pytest.raises(DataError, match="cannot be drawn"):
        draw_phantoms(file / "below", films=20)
    assert file.read_text() == "mine"


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert not (tmp_path / "set").exists()
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_phantoms(tmp_path / "set", films=20, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_another_process_finished_first_is_taken(tmp_path: Path) -> None:
    def race(done: int, total: int) -> None:
        if done == total:
            draw_phantoms(tmp_path / "set", films=20)

    assert draw_phantoms(tmp_path / "set", films=20, progress=race) == tmp_path / "set"
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_missing_parents_are_made_and_progress_counts_every_film(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    draw_phantoms(tmp_path / "a" / "b" / "set", films=23, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 23) for done in range(1, 24)]
    assert len(_films(tmp_path)) == 23


@pytest.mark.parametrize(("films", "seed"), [(19, 0), (-1, 0), (20, -1)])
def test_arguments_out_of_range_are_refused(tmp_path: Path, films: int, seed: int) -> None:
    with pytest.raises(UsageError, match="phantom set"):
        draw_phantoms(tmp_path / "set", films=films, seed=seed)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- several sites


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_phantoms(tmp_path_factory.mktemp("phantom") / "sites", films=FILMS, several_sites=True)


def test_several_sites_stand_in_a_manifest_with_boxes(sites: Path) -> None:
    found = gather([str(sites)])
    assert len(found.films) == FILMS
    assert not found.remarks
    counts = Counter((film.site, film.folder) for film in found.films)
    assert counts == {
        ("phantom_north", "train"): 90, ("phantom_north", "val"): 30, ("phantom_north", "test"): 30,
        ("phantom_south", "train"): 54, ("phantom_south", "val"): 18, ("phantom_south", "test"): 18,
        ("phantom_coast", "train"): 36, ("phantom_coast", "val"): 12, ("phantom_coast", "test"): 12,
    }  # fmt: skip
    assert set(found.sources.values()) == {SOURCE}
    splits = {(film.patient, film.site, film.folder) for film in found.films}
    assert len(splits) == len({patient for patient, *_ in splits})
    assert all(film.patient_known for film in found.films)
    # The sites differ in who is shown and in how many are ill.
    ill = {site: np.mean([f.label for f in found.films if f.site == site]) for site in found.sources}
    assert ill["phantom_north"] > ill["phantom_coast"] > ill["phantom_south"] == pytest.approx(0.5, abs=0.02)
    ages = {site: [f.age or 0 for f in found.films if f.site == site] for site in found.sources}
    assert max(ages["phantom_north"]) <= 6
    assert min(ages["phantom_south"]) >= 18
    assert {film.sex for film in found.films} == {"F", "M"}
    assert {film.view for film in found.films if film.site == "phantom_south"} == {"AP", "PA"}


def test_each_site_is_a_set_of_its_own_too(sites: Path) -> None:
    found = gather([str(sites / "phantom_south")])
    assert len(found.films) == 90
    assert found.sources == {"phantom_south": SOURCE}


def test_a_site_can_be_told_from_its_exposure_and_grain(sites: Path) -> None:
    features: dict[str, list[tuple[float, float]]] = {}
    for film in gather([str(sites)]).films:
        with Image.open(sites / film.path) as image:
            grey = np.asarray(image, float)
        # Between neighbours nothing but grain changes quickly.
        grain = np.median(np.abs(np.diff(grey, 2, axis=1)))
        features.setdefault(film.site, []).append((float(np.median(grey)) / 40, float(np.log(grain + 0.5))))
    centres = {site: np.mean(found, axis=0) for site, found in features.items()}
    right = [
        min(centres, key=lambda name: float(np.linalg.norm(centres[name] - one))) == site
        for site, found in features.items()
        for one in found
    ]
    assert np.mean(right) > 0.55  # by guessing it would be a third


def test_boxes_stand_around_opacities(sites: Path) -> None:
    films = gather([str(sites)]).films
    assert not any(film.boxes for film in films if film.label == 0)
    ill = [film for film in films if film.label == 1]
    assert np.mean([bool(film.boxes) for film in ill]) > 0.95
    assert 0.02 < np.mean([sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in film.boxes) for film in ill]) < 0.15
    # Haze on one side: what lies in the box is lighter than its mirror image.
    lighter = []
    for film in ill:
        if "bacteria" in film.path and len(film.boxes) == 1:
            with Image.open(sites / film.path) as image:
                grey = np.asarray(image.resize((200, 200)), float)
            x0, y0, x1, y1 = (round(200 * side) for side in film.boxes[0])
            lighter.append(grey[y0:y1, x0:x1].mean() - grey[y0:y1, 200 - x1 : 200 - x0].mean())
    assert len(lighter) > 20
    assert np.mean(np.array(lighter) > 0) > 0.85


def test_several_sites_are_another_set_than_one(tmp_path: Path) -> None:
    first = _hashes(draw_phantoms(tmp_path / "first", films=30, several_sites=True))
    assert _hashes(draw_phantoms(tmp_path / "second", films=30, several_sites=True)) == first
    assert draw_phantoms(tmp_path / "first", films=30, several_sites=True) == tmp_path / "first"
    with pytest.raises(DataError, match="is not the phantom set"):
        draw_phantoms(tmp_path / "first", films=30)
    assert _hashes(tmp_path / "first") == first


# --------------------------------------------------------------------------------------------- what can be learned


def _auc(ill: npt.NDArray[np.bool_], score: npt.NDArray[np.floating[Any]]) -> float:
    """Probability that an ill film scores above a normal one (the Mann-Whitney form; ties count half)."""
    above = score[ill][:, None] - score[~ill][None, :]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def _edges(pixels: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Histograms of gradient orientation in 12 x 12 cells, normalised per cell: (n, 96, 96) -> (n, 1152)."""
    down, right = np.gradient(pixels, axis=(1, 2))
    strength = np.hypot(down, right)
    octant = np.floor((np.arctan2(down, right) % np.pi) / np.pi * 8).astype(int) % 8
    cells = [(strength * (octant == o)).reshape(-1, 12, 8, 12, 8).sum(axis=(2, 4)) for o in range(8)]
    histograms = np.stack(cells, axis=-1)
    norm = np.linalg.norm(histograms, axis=-1, keepdims=True)
    flat: npt.NDArray[np.floating[Any]] = (histograms / (norm + 0.05)).reshape(len(pixels), -1)
    return flat


def test_pneumonia_can_be_learned_but_not_from_the_mean_grey(phantoms: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn comes with pneumo[train]")
    films = _films(phantoms)
    ill = np.array([film.parent.name == "PNEUMONIA" for film in films])
    train = np.array([film.parts[-3] == "train" for film in films])
    mean_grey, pixels = np.empty(FILMS), np.empty((FILMS, 96, 96))
    for row, film in enumerate(films):
        with Image.open(film) as image:
            mean_grey[row] = np.asarray(image, dtype=float).mean()
            pixels[row] = np.asarray(image.resize((96, 96), Image.Resampling.BICUBIC), dtype=float) / 255.0

    trivial = _auc(ill, mean_grey)
    assert max(trivial, 1.0 - trivial) < 0.70

    # Sum and difference of a film and its mirror image: either lung may be the ill one.
    here, mirrored = _edges(pixels), _edges(pixels[:, :, ::-1])
    features = np.hstack([here + mirrored, np.abs(here - mirrored)])
    features = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
    model = linear_model.LogisticRegression(C=1e-3, max_iter=2000, class_weight="balanced")
    score = model.fit(features[train], ill[train]).decision_function(features[~train])
    learned = _auc(ill[~train], score)
    assert learned > 0.75
    assert learned > max(trivial, 1.0 - trivial) + 0.05
