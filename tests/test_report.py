"""The report of a run: what it says is what the files of the run say, and it needs nothing but itself."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumo_edge.bundle import LABELS, Calibration
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_train import measure as measure_module
from pneumo_train.films import index_hash, prepare
from pneumo_train.measure import measure
from pneumo_train.report import write_report
from pneumo_train.run import FORMAT_VERSION, Config, write_config, write_rows
from pneumo_train.sources import KAGGLE_PATIENT, gather
from pneumo_train.split import TEST, TRAIN, UNREADABLE, VALIDATION, write_split

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason="needs the train extra")
    for name in ("keras", "matplotlib", "sklearn")
]

SIZE = 32
FILM_FREE = {"confusion", "curves", "reliability", "roc_pr", "scores"}
WITH_FILMS = {"augmentation", "mistakes"}
THRESHOLDS = {"balanced": 0.5, "screening": 0.2}
EPOCH = {
    "loss": 0.6, "map_loss": "", "accuracy": 0.7, "val_loss": 0.5, "val_accuracy": 0.75, "val_auc": 0.8,
    "perturbed_loss": 0.55, "perturbed_accuracy": 0.7, "perturbed_auc": 0.75, "learning_rate": 3e-4, "seconds": 1.0,
    "films_per_second": 40.0,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(measure_module, "REPLICATES", 100)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of three weights with the layers that a heatmap needs."""
    import keras
    from keras import layers

    image = layers.Input((SIZE, SIZE, 1), name="image")
    x = layers.Identity(name="features")(layers.Conv2D(1, 3, 8, name="tiny_conv")(layers.Rescaling(1 / 255)(image)))
    logit = layers.Dense(1, name="logit")(layers.GlobalAveragePooling2D(name="pool")(x))
    path = tmp_path_factory.mktemp("model") / "model.keras"
    keras.Model(image, logit).save(path)
    return path


WriteRun = Callable[..., Path]


@pytest.fixture(scope="module")
def write_run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> WriteRun:
    """Writes a finished run as `pneumo-train` leaves it, but for the report: 24 films, six of them for validation."""

    def write(wrong: bool = True, tested: int = 0, name: str = "run") -> Path:
        folder = tmp_path_factory.mktemp("report")
        data, run = folder / "data", folder / name
        rng = np.random.default_rng(0)
        for i in range(24):
            side = "test" if i >= 18 else "train"
            film = f"person{i}_virus_1.png" if i % 2 else f"IM-{i:04d}-0001.png"
            path = data / side / LABELS[i % 2] / film
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 40)).astype(np.uint8)).save(path)
        (data / "train" / "NORMAL" / "IM-9999-0001.png").write_text("no picture")
        gathered = gather([str(data)])
        films, prepared = gathered.films, prepare(gathered.roots, gathered.films, SIZE)
        split = [TEST if f.folder == "test" else VALIDATION if i % 3 == 0 else TRAIN for i, f in enumerate(films)]
        split = [UNREADABLE if i in prepared.errors else part for i, part in enumerate(split)]
        run.mkdir()
        (run / "model.keras").write_bytes(model.read_bytes())
        write_split(run / "split.csv", films, split)
        config = Config(
            format_version=FORMAT_VERSION, data=(str(data),), sources={"data": "films of <one> clinic"}, licences={},
            labels={}, left_out=None,
            data_hash=index_hash(films, prepared.sha256),
            patient_rule=KAGGLE_PATIENT, backbone="mobilenetv2", head="gap", size=SIZE, weights="none",
            started_from="none", epochs=3, batch_size=8, learning_rate=3e-4, seed=4, balance="weights", teachers=(),
            precision="float32", limit=None, versions={"numpy": "2", "pneumo": "0.1.0"}, trained="2026-01-01",
        )  # fmt: skip
        write_config(run, config)
        history = [{"epoch": i} | EPOCH | {"perturbed_auc": auc} for i, auc in ((1, 0.7), (2, 0.9), (3, 0.8))]
        write_rows(run / "history.csv", list(history[0]), history)
        rows: list[dict[str, Any]] = []
        metrics: dict[str, Any] = {}
        parts = {VALIDATION: VALIDATION, f"{VALIDATION}_perturbed": VALIDATION} | ({TEST: TEST} if tested else {})
        for key, part in parts.items():
            chosen = [f for f, s in zip(films, split, strict=True) if s == part]
            labels = np.array([f.label for f in chosen])
            p = np.where(labels == 1, 0.9, 0.1) + np.linspace(-0.05, 0.05, len(labels))
            if wrong:
                p[np.flatnonzero(labels == 1)[0]], p[np.flatnonzero(labels == 0)[0]] = 0.03, 0.97
            metrics[key] = measure(labels, p, [f.patient for f in chosen], THRESHOLDS)
            rows += [
                {"split": key, "path": f.path, "label": LABELS[f.label], "logit": np.log(x / (1 - x)), "probability": x}
                for f, x in zip(chosen, p, strict=True)
            ]
        write_rows(run / "predictions.csv", list(rows[0]), rows)
        metrics |= {
            "films": dict(Counter(f"{s}/{LABELS[f.label]}" for s, f in zip(split, films, strict=True))),
            "sites": {},
            "left_out": None,
            "calibration": asdict(Calibration(1.25, -0.5, 0.5)),
            "operating_points": {name: {"threshold": t} for name, t in THRESHOLDS.items()},
            "test": {"measured": tested} | metrics[TEST] if tested else None,
        }
        (run / "metrics.json").write_text(json.dumps(metrics))
        return run

    return write


class Page(HTMLParser):
    """Text, tags and pictures of a page; every tag must be closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"img", "meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(write_run: WriteRun) -> Path:
    """A run with one mistake of each kind and its report; the test split is not measured."""
    folder = write_run()
    write_report(folder)
    return folder


def page_of(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def cells(page: str, row: str) -> list[str]:
    """Returns the cells of the first row with this name, without the intervals."""
    found = re.search(rf'<tr><th scope="row">{re.escape(row)}</th>(.*?)</tr>', page)
    assert found, row
    text = re.sub(r"<small>.*?</small>", "", found.group(1))
    return [cell.replace("\N{NO-BREAK SPACE}", " ").strip() for cell in re.findall(r"<td>(.*?)</td>", text)]


def test_the_report_says_what_the_files_of_the_run_say(run: Path) -> None:
    page = page_of(run)
    raw = (run / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((run / "metrics.json").read_text())
    parts = [metrics[VALIDATION], metrics[f"{VALIDATION}_perturbed"]]
    points = [part["operating_points"]["balanced"] for part in parts]
    for row, name in {
        "Accuracy": "accuracy", "Sensitivity = recall": "sensitivity", "Specificity": "specificity",
        "Precision": "precision", "F1": "f1",
    }.items():  # fmt: skip
        assert cells(raw, row) == [f"{100 * point[name]['value']:.1f} %" for point in points], row
    for row, name in {
        "AUC": "auc", "Average precision": "average_precision", "Brier score, 0 is best": "brier",
        "Calibration error (ECE), 0 is best": "ece",
    }.items():  # fmt: skip
        assert cells(raw, row) == [f"{part[name]['value']:.3f}" for part in parts], row
    assert cells(raw, "Pneumonia missed (FN)") == [str(point["confusion"][1][0]) for point in points]
    assert cells(raw, "False alarms (FP)") == [str(point["confusion"][0][1]) for point in points]
    sensitivity = points[0]["sensitivity"]
    low, high = (f"{100 * sensitivity[name]:.1f}" for name in ("low", "high"))
    assert f"{low}\N{EN DASH}{high}" in raw
    assert f"W {100 * sensitivity['wilson_low']:.1f}\N{EN DASH}{100 * sensitivity['wilson_high']:.1f}" in raw
    for value in points[0]["ppv_npv"]:
        found = cells(raw, f"{value['prevalence']:.0%}".replace("%", "\N{NO-BREAK SPACE}%"))
        assert found[:2] == [f"{100 * value['ppv']:.1f} %", f"{100 * value['npv']:.1f} %"]
    assert "The test split has not been measured." in page.text
    assert f"{parts[0]['n']} validation films of {parts[0]['patients']} patients" in page.text
    assert "sigmoid(1.250 x logit -0.500)" in page.text
    assert "epoch 2 of 3" in page.text
    assert page.text.count(NOT_A_DIAGNOSIS) == 2
    assert "education and research" in page.text


def test_the_data_and_the_settings_stand_in_the_report(run: Path) -> None:
    page = page_of(run)
    raw = (run / "report.html").read_text(encoding="utf-8")
    films = json.loads((run / "metrics.json").read_text())["films"]
    for part in (TRAIN, VALIDATION, TEST):
        normal, ill = films[f"{part}/NORMAL"], films[f"{part}/PNEUMONIA"]
        # Each of these films is a patient's only one.
        assert cells(raw, part) == [str(n) for n in (normal, ill, normal + ill, normal + ill)]
    assert "could not be read (1): train/NORMAL/IM-9999-0001.png" in page.text
    for setting, value in {"backbone": "mobilenetv2", "seed": "4", "limit": "none", "learning rate": "0.0003"}.items():
        assert re.sub("<.*?>", "", cells(raw, setting)[0]) == value
    assert "films of &lt;one&gt; clinic" in raw
    assert str(run.parent) not in raw  # where the films lay is nobody's business


def test_the_report_can_be_read_anywhere(run: Path) -> None:
    page = page_of(run)
    raw = (run / "report.html").read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import|https?:", re.sub(r"base64,[^\"]*", "", raw))
    pictures = page.all("img")
    assert len(pictures) > 12
    for picture in pictures:
        assert picture["alt"], "a picture without words"
        head, _, data = str(picture["src"]).partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            opened.load()
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert len(page.all("h1")) == 1
    assert {h["scope"] for h in page.all("th")} == {"col", "row"}
    assert len(page.all("caption")) == len(page.all("table"))
    assert "@media print" in raw


def test_figures_lie_beside_the_report(run: Path) -> None:
    assert {path.stem for path in run.glob("*.png")} == FILM_FREE | WITH_FILMS
    widths = {}
    for name in FILM_FREE:
        with Image.open(run / f"{name}.png") as picture:
            widths[name] = picture.width
            assert np.asarray(picture.convert("L")).std() > 5
    # Three panels of the curves, two parts of the validation.
    assert widths["curves"] * 2 == widths["confusion"] * 3


def test_the_gallery_shows_both_kinds_of_mistakes(run: Path) -> None:
    page = page_of(run)
    assert "Pneumonia that was missed: 1 of 1" in page.text
    assert "False alarms: 1 of 1" in page.text
    assert "Labelled PNEUMONIA, called NORMAL at 3 %" in page.text
    assert "Labelled NORMAL, called PNEUMONIA at 97 %" in page.text
    assert sum("with the heatmap" in str(picture["alt"]) for picture in page.all("img")) == 2


def test_a_run_without_mistakes_has_an_empty_gallery(write_run: WriteRun) -> None:
    run = write_run(wrong=False)
    (run / "mistakes.png").write_bytes(b"of an earlier report")
    write_report(run)
    page = page_of(run)
    assert "Pneumonia that was missed: none" in page.text
    assert "False alarms: none" in page.text
    assert not (run / "mistakes.png").exists()


def test_a_measured_test_split_comes_first_and_is_never_in_the_gallery(write_run: WriteRun) -> None:
    run = write_run(tested=2, name="<b>run & co")
    write_report(run)
    page = page_of(run)
    test = json.loads((run / "metrics.json").read_text())["test"]
    raw = (run / "report.html").read_text(encoding="utf-8")
    assert "The test split has been measured 2 times." in page.text
    assert f"Measured on {test['n']} test films" in page.text
    assert "<h1>&lt;b&gt;run &amp; co</h1>" in raw
    assert len(cells(raw, "Accuracy")) == 3
    gallery = raw.partition("The most confident mistakes")[2].partition("What training films")[0]
    shown = set(re.findall(r"<small>([^<]*\.png)</small>", gallery))
    with (run / "split.csv").open() as rows:
        of_test = {Path(row.split(",")[0]).name for row in rows if row.rstrip().endswith(TEST)}
    assert len(shown) == 2
    assert not shown & of_test
