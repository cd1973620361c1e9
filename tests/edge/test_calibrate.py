"""A bundle is fitted to the films of a place: sums against brute force and simulation, and the whole command."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pneumo_edge.bundle import Calibration, read_bundle
from pneumo_edge.calibrate.decoys import decoys
from pneumo_edge.calibrate.films import read_films
from pneumo_edge.calibrate.fit import (
    STANDARD,
    Answers,
    Before,
    Wish,
    area,
    cross_fit,
    fit,
    folds,
    lowest,
    share_of,
    worth,
)
from pneumo_edge.calibrate.measure import auc_interval, wilson
from pneumo_edge.calibrate.plan import buderer, exact, patients_for, plan
from pneumo_edge.calibrate.platt import LOG_SCALE_SD, OFFSET_SD, fit_calibration, moved, probabilities
from pneumo_edge.errors import DataError, UsageError

Floats = npt.NDArray[np.float64]

BEFORE = Calibration(1.25, 0.75, 0.65)
START = Before(BEFORE, {"balanced": 0.0, "screening": -2.0})


def answers(labels: Any, logits: Any, patients: Any = None) -> Answers:
    names = tuple(map(str, range(len(labels)) if patients is None else patients))
    return Answers(np.asarray(labels, np.int64), np.asarray(logits, np.float64), names)


def place(rng: np.random.Generator, n: int, true: Calibration) -> Answers:
    """Films of a place whose calibration is `true`."""
    x = rng.normal(np.where(rng.random(n) < 0.5, -1.6, 1.6), 1.2)
    return answers(rng.random(n) < probabilities(x, true), x)


# -------------------------------------------------------------------------------------------- calibration with a prior


def test_a_prior_is_the_answer_of_a_search_over_all() -> None:
    films = place(np.random.default_rng(0), 40, Calibration(0.8, -1.0, 0.3))
    n1 = float(films.labels.sum())
    start = moved(BEFORE, (n1 + 1) / 42)

    def loss(a: float, b: float) -> float:
        z = math.exp(a) * films.logits + b
        away = ((a - math.log(start.scale)) / LOG_SCALE_SD) ** 2 + ((b - start.offset) / OFFSET_SD) ** 2
        return float(np.sum(np.logaddexp(0, z) - films.labels * z)) + away / 2

    found = fit_calibration(films.labels, films.logits, prior=BEFORE)
    grid = [(loss(a, b), a, b) for a in np.linspace(-1.5, 1.5, 151) for b in np.linspace(-3, 3, 301)]
    _, a, b = min(grid)
    assert math.log(found.scale) == pytest.approx(a, abs=0.02)
    assert found.offset == pytest.approx(b, abs=0.02)
    assert loss(math.log(found.scale), found.offset) <= min(grid)[0] + 1e-9


def test_without_evidence_the_prior_stays_and_with_much_it_goes() -> None:
    films = place(np.random.default_rng(1), 4000, Calibration(0.5, -2.0, 0.2))
    nothing = fit_calibration(films.labels, films.logits, np.full(4000, 1e-9), BEFORE)
    assert (nothing.scale, nothing.offset) == pytest.approx((1.25, moved(BEFORE, 0.5).offset), abs=1e-3)
    much = fit_calibration(films.labels, films.logits, prior=BEFORE)
    alone = fit_calibration(films.labels, films.logits)
    assert (much.scale, much.offset) == pytest.approx((alone.scale, alone.offset), abs=0.03)


def test_films_that_do_not_overlap_have_a_finite_scale() -> None:
    found = fit_calibration(np.repeat([0, 1], 10), np.repeat([-2.0, 2.0], 10), prior=BEFORE)
    assert 1.25 < found.scale < 1.25 * math.exp(3 * LOG_SCALE_SD)


@pytest.mark.parametrize("count", [20, 50, 100, 300])
def test_the_prior_is_no_worse_than_either_alone(count: int) -> None:
    """Log loss above the truth in places drawn from the prior, and in one where nothing has changed."""
    for spread, room in ((1.0, 0.0005), (0.0, 0.012)):
        rng = np.random.default_rng(count)
        lost: list[list[float]] = []
        while len(lost) < 80:
            here = moved(BEFORE, float(rng.uniform(0.2, 0.7)))
            true = Calibration(
                here.scale * math.exp(spread * LOG_SCALE_SD * rng.normal()),
                here.offset + spread * OFFSET_SD * rng.normal(),
                here.prevalence,
            )
            films = place(rng, count, true)
            if min(films.people(0), films.people(1)) < 5:
                continue
            try:
                anew = fit_calibration(films.labels, films.logits)
            except DataError:
                continue
            x = place(rng, 500, true).logits
            q = probabilities(x, true)

            def expected(found: Calibration, x: Any = x, q: Any = q) -> float:
                z = found.scale * x + found.offset
                return float(np.mean(np.logaddexp(0, z) - q * z))

            ours = fit_calibration(films.labels, films.logits, prior=BEFORE)
            lost.append([expected(each) - expected(true) for each in (BEFORE, anew, ours)])
        old, anew_loss, ours_loss = np.mean(lost, axis=0)
        assert ours_loss <= min(old, anew_loss) + room


# ---------------------------------------------------------------------------------------------------- operating points


def test_a_floor_of_sensitivity_holds_nine_times_of_ten() -> None:
    for n, share in ((60, 0.9), (114, 0.98), (300, 0.95)):
        rng = np.random.default_rng(n)
        failed = 0
        for _ in range(200):
            logits = np.concatenate([rng.normal(2, 1, n), rng.normal(-1, 1, n)])
            cut = lowest(answers(np.repeat([1, 0], n), logits), share, -9.0)
            assert cut > -9.0
            failed += 0.5 * (1 + math.erf((2 - cut) / math.sqrt(2))) < share
        assert failed / 200 <= 0.15


def test_too_few_patients_for_a_floor_keep_the_lower_cut() -> None:
    few = answers([1] * 30 + [0] * 30, np.concatenate([np.linspace(1, 3, 30), np.linspace(-3, 0, 30)]))
    assert lowest(few, 0.98, -2.0) == -2.0
    assert lowest(few, 0.98, 5.0) == pytest.approx(0.5)  # midway between the lowest positive and the film below
    # The same films, of three patients: no better known than three.
    assert lowest(answers(few.labels, few.logits, [i % 3 for i in range(60)]), 0.8, -2.0) == -2.0


def test_the_cheapest_cut_is_the_one_of_a_search() -> None:
    films = place(np.random.default_rng(3), 20_000, Calibration(1.0, -1.0, 0.3))
    found = fit(films, START, {"balanced": Wish("balanced"), "cost": Wish("cost", 5.0)})
    for name, missed in (("cost", 5.0), ("balanced", (1 - films.labels.mean()) / films.labels.mean())):
        grid = np.linspace(-4, 4, 401)
        costs = [
            missed * np.sum((films.logits < cut) & (films.labels == 1))
            + np.sum((films.logits >= cut) & (films.labels == 0))
            for cut in grid
        ]
        at = int(np.argmin(np.abs(grid - found.cuts[name])))
        assert costs[at] <= min(costs) * 1.01


def test_a_stated_prevalence_moves_probabilities_and_balanced_but_no_floor() -> None:
    films = place(np.random.default_rng(4), 300, BEFORE)
    wishes = STANDARD | {"cost": Wish("cost", 1.0)}
    here, there = fit(films, START, wishes), fit(films, START, wishes, prevalence=0.05)
    assert there.calibration.prevalence == 0.05
    assert there.cuts["screening"] == here.cuts["screening"]
    assert there.cuts["balanced"] == pytest.approx(here.cuts["balanced"])
    assert there.cuts["cost"] > here.cuts["cost"]
    assert there.threshold("screening") < here.threshold("screening")
    assert there.threshold("balanced") == pytest.approx(0.05)


def test_no_patient_is_on_both_sides() -> None:
    rng = np.random.default_rng(5)
    patients = rng.integers(0, 60, 150)
    films = answers((patients % 3 == 0), rng.normal(0, 1, 150), patients)
    fold = folds(films)
    assert all(len(set(fold[patients == each].tolist())) == 1 for each in set(patients.tolist()))
    ill = [len({p for p in patients[fold == number].tolist() if p % 3 == 0}) for number in range(10)]
    assert max(ill) - min(ill) <= 1


def test_a_film_does_not_take_part_in_what_judges_it() -> None:
    films = place(np.random.default_rng(6), 60, BEFORE)
    p, called = cross_fit(films, START, STANDARD)
    changed = Answers(films.labels.copy(), films.logits, films.patients)
    changed.labels[7] = 1 - changed.labels[7]
    fold = folds(films)
    other = fit(films.part(fold != fold[7]), START, STANDARD)
    assert p[7] == pytest.approx(
        probabilities(films.logits[7:8], moved(other.calibration, float(films.labels.mean())))[0]
    )
    assert called["balanced"][7] == (films.logits[7] >= other.cuts["balanced"])


def test_what_a_point_is_worth_by_hand() -> None:
    films = answers([1] * 10 + [0] * 20, np.zeros(30))
    called = np.array([True] * 9 + [False] + [True] * 4 + [False] * 16)
    found = worth(films, called, 0.1)
    assert (found.sensitivity.value, found.specificity.value) == (0.9, 0.8)
    assert (found.sensitivity.low, found.sensitivity.high) == pytest.approx(wilson(9, 10))
    assert found.ppv.value == pytest.approx(0.09 / 0.27)
    assert found.npv.value == pytest.approx(0.72 / 0.73)
    assert found.flagged.value == pytest.approx(0.27)
    for each in vars(found).values():
        assert each.low < each.value < each.high
    # Films of one patient count as one.
    assert share_of(np.array([True] * 9), ["a"] * 9).low < 0.25


def test_the_interval_of_an_area_holds() -> None:
    rng = np.random.default_rng(8)
    truth = 0.5 * (1 + math.erf(1.5 / 2))
    missed = 0
    for _ in range(300):
        found = area(answers([1] * 25 + [0] * 25, np.concatenate([rng.normal(1.5, 1, 25), rng.normal(0, 1, 25)])))
        missed += not found.low <= truth <= found.high
    assert missed / 300 <= 0.08
    low, high = auc_interval(1.0, 10, 10)
    assert (0.7 < low < 0.9, high) == (True, 1.0)


# ------------------------------------------------------------------------------------------------------------ the plan


def test_exact_intervals_are_those_of_the_tables() -> None:
    # Clopper and Pearson: 0 of 10 and 10 of 10 are 1 - (alpha / 2) ** (1 / n); 5 of 10 is 0.187 to 0.813.
    assert exact(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1), abs=1e-6)
    assert exact(10, 10) == pytest.approx((0.025**0.1, 1.0), abs=1e-6)
    assert exact(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)


@pytest.mark.parametrize("interval", [wilson, exact])
def test_the_plan_is_the_fewest_from_which_on_the_margin_holds(
    interval: Callable[[int, int], tuple[float, float]],
) -> None:
    n = patients_for(0.9, 0.08, interval)

    def half(count: int) -> float:
        low, high = interval(round(0.9 * count), count)
        return (high - low) / 2

    assert half(n) <= 0.08
    assert half(n - 1) > 0.08 or half(n - 2) > 0.08


def test_the_plan_by_hand() -> None:
    assert buderer(0.9, 0.05) == 139  # 1.96 ** 2 * 0.09 / 0.0025 = 138.3
    found = plan(0.95, 0.95, 0.05, 0.2)
    assert found.ill == found.well
    assert found.films == math.ceil(found.ill / 0.2)
    with pytest.raises(UsageError, match="more than 100,000 patients"):
        plan(0.95, 0.95, 0.0001, 0.2)


# ----------------------------------------------------------------------------------------------------------- the films


def grey_film(path: Path, mean: float, seed: int) -> Path:
    """A film that the tiny model answers by its mean grey level: 128 is logit 0."""
    waves = 45 * np.sin(np.linspace(0, 4 * np.pi, 100, endpoint=False) + seed)
    pixels = np.clip(mean + np.tile(waves, (100, 1)), 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write_place(folder: Path, films: int = 40, *, apart: float = 40.0) -> Path:
    """Films of both labels, half and half, whose greys overlap."""
    rng = np.random.default_rng(0)
    for i in range(films):
        label = i % 2
        mean = 127 + (apart if label else -apart) / 2 + 14 * rng.normal()
        grey_film(folder / ("NORMAL", "PNEUMONIA")[label] / f"{i:03}.png", mean, i)
    return folder


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(folder: Path) -> list[dict[str, str]]:
    return [
        {"path": film.relative_to(folder).as_posix(), "label": film.parent.name, "patient": f"p{i // 2}", "age": str(i),
         "view": ("AP", "PA")[i % 2], "accession": f"a{i}"}
        for i, film in enumerate(sorted(folder.rglob("*.png")))
    ]  # fmt: skip


def test_a_manifest_names_patients_and_groups(tmp_path: Path) -> None:
    folder = write_place(tmp_path / "films", 30)
    found = read_films(write_manifest(folder / "films.csv", rows_of(folder)))
    assert found.patients_known
    assert len({film.patient for film in found.films}) == 15
    assert found.films[20].groups == {"age": "18 to 39 years", "view": "AP"}  # an accession is no group


def test_copies_stay_with_one_patient(tmp_path: Path) -> None:
    folder = write_place(tmp_path / "films", 12)
    first = folder / "NORMAL" / "000.png"
    (folder / "NORMAL" / "copy.png").write_bytes(first.read_bytes())
    (folder / "NORMAL" / "letter.txt").write_text("no film")
    found = read_films(folder)
    assert [film.patient for film in found.films if film.name.endswith(("000.png", "copy.png"))] == [
        "NORMAL/000.png"
    ] * 2
    assert any("1 films are copies" in each for each in found.remarks)
    assert any("1 files that are no films" in each for each in found.remarks)


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def calibrate(installed_command: Any) -> Callable[..., subprocess.CompletedProcess[str]]:
    command = installed_command("pneumo-calibrate")

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)

    return call


def test_from_films_to_a_bundle(calibrate: Any, bundle: Path, infer: Any, tmp_path: Path) -> None:
    folder = write_place(tmp_path / "films", 60)
    manifest = write_manifest(folder / "films.csv", rows_of(folder))
    new = tmp_path / "new"
    done = calibrate(
        manifest, "--output", new, "--name", "St <Anne>", "--prevalence", "0.2", "--sensitivity", "0.9",
        "--specificity", "0.8", "--cost", "10:1", "--accept-films",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot be known" in done.stderr
    made, old = read_bundle(new).description, read_bundle(bundle).description
    digest = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in new.iterdir()}
    assert digest["model.onnx"] == old.files["model.onnx"].sha256
    assert set(digest) == {"model.onnx", "model.json", "SITE.md", "calibration.html"}
    assert list(made.operating_points) == ["balanced", "screening", "sensitivity-0.9", "specificity-0.8", "cost-10:1"]
    assert made.calibration.prevalence == 0.2
    site = made.site
    assert site is not None
    assert (site.name, site.films, site.patients) == ("St <Anne>", {"NORMAL": 30, "PNEUMONIA": 30}, 30)
    assert (site.was, site.was_operating_points) == (old.calibration, old.operating_points)
    reference = made.files["model.onnx"].reference
    assert reference is not None
    assert (reference.films, reference.contrast is None) == (60, False)
    page = (new / "calibration.html").read_text(encoding="utf-8")
    assert "St &lt;Anne&gt;" in page
    assert "<Anne>" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert made.operating_points["balanced"].threshold == pytest.approx(0.2)
    listed = infer("--list", "--model", new)
    assert "calibrated at St <Anne>" in listed.stdout
    judged = infer(folder / "PNEUMONIA", "--model", new, "--format", "json", "--operating-point", "cost-10:1")
    assert {json.loads(line)["prevalence"] for line in judged.stdout.splitlines()} == {0.2}
    # Another calibration starts from the bundle as it was exported: the same films give the same again.
    again = calibrate(
        manifest, "--model", new, "--output", tmp_path / "again", "--name", "St <Anne>", "--prevalence", "0.2"
    )
    assert again.returncode == 0, again.stderr
    second = read_bundle(tmp_path / "again").description
    assert second.calibration == made.calibration
    assert second.site is not None
    assert second.site.was == old.calibration


def test_no_picture_leaves_where_none_is_to(calibrate: Any, tmp_path: Path) -> None:
    done = calibrate(write_place(tmp_path / "films", 40), "--output", tmp_path / "new", "--no-pictures")
    assert done.returncode == 0, done.stderr
    assert "<img" not in (tmp_path / "new" / "calibration.html").read_text(encoding="utf-8")


def test_the_plan_needs_no_films(calibrate: Any) -> None:
    done = calibrate("--plan", "--sensitivity", "0.95", "--margin", "0.05", "--prevalence", "0.2")
    assert done.returncode == 0, done.stderr
    assert "Buderer" in done.stdout
    needed = plan(0.95, 0.95, 0.05, 0.2)
    assert re.search(rf"Wilson +{needed.ill} +{needed.well} +{needed.films}", done.stdout)


def spoil(folder: Path, how: str) -> Path:
    """Makes of good films what cannot be calibrated on."""
    ill, rows = sorted((folder / "PNEUMONIA").iterdir()), rows_of(folder)
    if how in ("few", "one class"):
        for film in ill[4 if how == "few" else 0 :]:
            film.unlink()
        return folder
    if how == "another folder":
        (folder / "TUBERCULOSIS").mkdir()
        return folder
    if how == "both labels":
        (folder / "NORMAL" / "copy.png").write_bytes(ill[0].read_bytes())
        return folder
    if how == "chance":
        for i, film in enumerate(sorted(folder.rglob("*.png"))):
            grey_film(film, 127, i)
        return folder
    rows[3] |= {
        "label": {"label": "ILL"},
        "missing": {"path": "NORMAL/gone.png"},
        "twice": {"path": rows[2]["path"]},
        "columns": {},
    }[how]
    if how == "columns":
        rows = [{"file": row["path"], "class": row["label"]} for row in rows]
    return write_manifest(folder / "films.csv", rows)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("few", "too few films: 4 patients with PNEUMONIA films, 5 of each label are the least"),
        ("one class", "has no film that is PNEUMONIA: both are needed"),
        ("another folder", "has the folder TUBERCULOSIS, which is neither NORMAL nor PNEUMONIA"),
        ("both labels", "are one film, labelled NORMAL and PNEUMONIA"),
        ("chance", "on these films the model cannot be told from chance: do not use it here"),
        ("label", "line 5: the label 'ILL' is neither NORMAL nor PNEUMONIA"),
        ("missing", "is not there: paths are relative to the manifest"),
        ("twice", "stands in line 4 already"),
        ("columns", "has no column path and no column label"),
    ],
)
def test_bad_films_are_one_sentence_and_no_bundle(calibrate: Any, tmp_path: Path, how: str, words: str) -> None:
    source = spoil(write_place(tmp_path / "films", 30), how)
    done = calibrate(source, "--output", tmp_path / "new")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --output"),
        (["--output", "new", "--prevalence", "1.5"], "not between 0 and 1"),
        (["--output", "new", "--cost", "10"], "is not two numbers above 0"),
        (["--output", "new", "--sensitivity", "95"], "--sensitivity 95 is not between 0 and 1"),
        (["--plan", "--margin", "0.7"], "--margin 0.7 is not between 0 and 0.5"),
        (["--plan", "--prevalence", "0"], "a prevalence of 0 is not between 0 and 1"),
    ],
)
def test_bad_options_are_one_sentence(calibrate: Any, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = calibrate(tmp_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_what_stands_there_is_not_replaced(calibrate: Any, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    done = calibrate(write_place(tmp_path / "films", 30), "--output", tmp_path / "new")
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert list((tmp_path / "new").iterdir()) == []


def test_a_film_that_cannot_be_read_is_named_and_left_out(calibrate: Any, tmp_path: Path) -> None:
    folder = write_place(tmp_path / "films", 40)
    (folder / "NORMAL" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = calibrate(folder, "--output", tmp_path / "new")
    assert done.returncode == 1
    assert "not used: NORMAL/broken.png" in done.stderr
    assert "1 films could not be read" in (tmp_path / "new" / "SITE.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------- accepting own films


def test_drawings_that_are_no_chest_film_stay_out() -> None:
    """With the model that comes with pneumo: the limit rises for a clinic's films, and lets no drawing in."""
    from dataclasses import replace

    from pneumo_edge.bundle import DEFAULT_BUNDLE
    from pneumo_edge.calibrate.judge import FileAnswers, accepting
    from pneumo_edge.classifier import Classifier, Prediction

    bundle = read_bundle(DEFAULT_BUNDLE)
    file = "model.int8.onnx"
    before = bundle.description.files[file].novelty_limit
    n = 50

    def films(novelty: float) -> FileAnswers:
        return FileAnswers(np.zeros(n), np.full(n, novelty), np.full(n, 50.0), ((),) * n, {})

    slightly = accepting(bundle, file, films(before * 0.92))
    assert not slightly.bounded
    assert slightly.limit == pytest.approx(before * 0.92 * 1.1)
    far = accepting(bundle, file, films(before * 100))
    assert far.bounded
    files = bundle.description.files
    raised = replace(bundle, description=replace(bundle.description, files=files | {file: replace(files[file], novelty_limit=far.limit)}))  # fmt: skip # noqa: E501
    names = [name for name, _ in decoys()]
    sources = [(picture, name) for name, picture in decoys()]
    with Classifier(bundle, file) as old, Classifier(raised, file) as new:
        passed = [
            {answer.path for answer in each.predict_batch(sources) if isinstance(answer, Prediction) and answer.label}
            for each in (old, new)
        ]
    assert passed[1] <= passed[0]
    assert len(passed[0]) < len(names) / 4


def test_a_folder_that_cannot_be_searched_is_not_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / label / "closed").mkdir(parents=True)
        Image.new("L", (64, 64), 90 + len(label)).save(tmp_path / label / "film.png")
    search = os.scandir

    def refuse(folder: str | Path) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return search(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # root may search whatever it likes
    with pytest.raises(DataError, match=r"closed cannot be searched \(Permission denied\): check its permissions"):
        read_films(tmp_path)
