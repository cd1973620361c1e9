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
from pneumo_edge.calibrate import measure as measure_module
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_train.films import index_hash, prepare
from pneumo_train.pointing import measure_pointing
from pneumo_train.report import FIGURES, write_report
from pneumo_train.run import FORMAT_VERSION, Config, Films, Run, write_config, write_rows
from pneumo_train.sites import measure_sites, weigh_sites
from pneumo_train.sources import KAGGLE_PATIENT, Gathered, gather
from pneumo_train.split import LEFT_OUT, TEST, TRAIN, UNREADABLE, VALIDATION, write_split

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason="needs the train extra")
    for name in ("keras", "matplotlib", "sklearn")
]

SIZE = 32
FILM_FREE = {"confusion", "curves", "reliability", "roc_pr", "scores", "sites"}
WITH_FILMS = {"augmentation", "mistakes"}
THRESHOLDS = {"balanced": 0.5, "screening": 0.2}
EPOCH = {
    "loss": 0.6, "accuracy": 0.7, "val_loss": 0.5, "val_accuracy": 0.75, "val_auc": 0.8, "perturbed_loss": 0.55,
    "perturbed_accuracy": 0.7, "perturbed_auc": 0.75, "learning_rate": 3e-4, "seconds": 1.0, "films_per_second": 40.0,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(measure_module, "REPLICATES", 100)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks of three weights, one for each head, with the layers that a heatmap needs."""
    import keras
    from keras import layers

    folder = tmp_path_factory.mktemp("model")
    image = layers.Input((SIZE, SIZE, 1), name="image")
    x = layers.Conv2D(1, 3, 8, name="tiny_conv")(layers.Rescaling(1 / 255)(image))
    x = layers.Identity(name="features")(x)
    logit = layers.Dense(1, name="logit")(layers.GlobalAveragePooling2D(name="pool")(x))
    keras.Model(image, logit).save(folder / "gap.keras")
    x = layers.Conv2D(1, 3, 8, name="local_logit")(layers.Rescaling(1 / 255)(image))
    logit = layers.Dense(1, name="logit")(layers.GlobalMaxPooling2D()(x))
    keras.Model(image, logit).save(folder / "local.keras")
    return {head: folder / f"{head}.keras" for head in ("gap", "local")}


WriteRun = Callable[..., Path]


def draw_data(data: Path, sites: int) -> Gathered:
    """Films of noise, a quarter of them in test/; of one site in folders, of two in a manifest with boxes."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24 if sites == 1 else 320):
        side = "test" if i // 2 % 4 == 3 else "train"
        film = f"person{i}_virus_1.png" if i % 2 else f"IM-{i:04d}-0001.png"
        path = data / side / LABELS[i % 2] / film
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40)).astype(np.uint8)).save(path)
        site = "<north>" if i < 160 else "south"
        rows.append(
            {"path": f"{side}/{LABELS[i % 2]}/{film}", "label": LABELS[i % 2], "site": site, "split": side}
            | {"view": "PA" if i >= 160 else ""}
        )
    if sites == 1:
        (data / "train" / "NORMAL" / "IM-9999-0001.png").write_text("no picture")
        return gather([f"one={data}"], sources={"one": "films of <one> clinic"})
    write_rows(data / "films.csv", list(rows[0]), rows)
    boxed = [row["path"] for row in rows if row["site"] == "south" and row["label"] == "PNEUMONIA"]
    box = {"x0": 0.5, "y0": 0.5, "x1": 1.0, "y1": 1.0}
    write_rows(data / "boxes.csv", ["path", *box], [{"path": path} | box for path in boxed])
    return gather([str(data)], sources={"<north>": "films of <one> clinic", "south": "others"})


@pytest.fixture(scope="module")
def write_run(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> WriteRun:
    """Writes a finished run as `pneumo-train` leaves it, but for the report.

    Of one site there are 24 films, six of them for validation. Of two there are 320, a quarter for validation; those of
    the site "south" have a view, and its pneumonias have a box around the lower right quarter.
    """

    def write(wrong: bool = True, tested: int = 0, name: str = "run", sites: int = 1, head: str = "gap") -> Path:
        folder = tmp_path_factory.mktemp("report")
        data, run = folder / "data", folder / name
        gathered = draw_data(data, sites)
        films = list(gathered.films)
        prepared = prepare(gathered.roots, films, SIZE)
        # Pairs of neighbours, so that both classes and both sites are everywhere.
        split = [TEST if f.folder == "test" else VALIDATION if i // 2 % 3 == 0 else TRAIN for i, f in enumerate(films)]
        split = [UNREADABLE if i in prepared.errors else part for i, part in enumerate(split)]
        run.mkdir()
        (run / "model.keras").write_bytes(models[head].read_bytes())
        write_split(run / "split.csv", films, split)
        config = Config(
            format_version=FORMAT_VERSION, data=(str(data),), sources=gathered.sources, licences={}, ages={}, labels={},
            left_out=None, data_hash=index_hash(films, prepared.sha256), patient_rule=KAGGLE_PATIENT,
            backbone="mobilenetv2", head=head, size=SIZE, weights="none", started_from="none", epochs=3, batch_size=8,
            learning_rate=3e-4, seed=4, balance="weights", teachers=(), precision="float32", limit=None,
            versions={"numpy": "2", "pneumo": "0.1.0"}, trained="2026-01-01",
        )  # fmt: skip
        write_config(run, config)
        history = [{"epoch": i} | EPOCH | {"perturbed_auc": auc} for i, auc in ((1, 0.7), (2, 0.9), (3, 0.8))]
        write_rows(run / "history.csv", list(history[0]), history)
        predictions: list[dict[str, Any]] = []
        metrics: dict[str, Any] = {}
        parts = {VALIDATION: VALIDATION, f"{VALIDATION}_perturbed": VALIDATION} | ({TEST: TEST} if tested else {})
        for key, part in parts.items():
            chosen = [f for f, s in zip(films, split, strict=True) if s == part]
            labels = np.array([f.label for f in chosen])
            p = np.where(labels == 1, 0.9, 0.1) + np.linspace(-0.05, 0.05, len(labels))
            if wrong:
                p[np.flatnonzero(labels == 1)[0]], p[np.flatnonzero(labels == 0)[0]] = 0.03, 0.97
            logits = np.log(p / (1 - p))
            judged = Films(tuple(chosen), np.zeros((len(chosen), 1, 1), np.uint8), labels)
            maps = np.random.default_rng(0).normal(-2, 1, (len(chosen), 4, 4))
            pointing = measure_pointing(
                maps, [f.boxes for f in chosen], labels, p >= 0.5, judged.patients, judged.sites,
                0.5 if head == "local" else None,
            )  # fmt: skip
            metrics[key] = measure_sites(judged, logits, Calibration(1.0, 0.0, 0.5), THRESHOLDS)
            metrics[key]["pointing"] = pointing
            predictions += [
                {"split": key, "path": f.path, "label": LABELS[f.label], "logit": logit, "probability": x}
                for f, x, logit in zip(chosen, p, logits, strict=True)
            ]
        write_rows(run / "predictions.csv", list(predictions[0]), predictions)
        metrics |= {
            "films": dict(Counter(f"{s}/{LABELS[f.label]}" for s, f in zip(split, films, strict=True))),
            "sites": {},
            "calibration": asdict(Calibration(1.25, -0.5, 0.5)),
            "operating_points": {name: {"threshold": t} for name, t in THRESHOLDS.items()},
            "left_out": None,
            "test": {"measured": tested} | metrics[TEST] if tested else None,
        }
        if sites == 2:
            metrics[VALIDATION]["site_probe"] = {
                "weighing": weigh_sites([f for f, s in zip(films, split, strict=True) if s == TRAIN]),
                "class_from_site": {"films_as_they_are": 0.612, "films_weighed": 0.5},
                "guess": 0.5,
                "site_from_features": 0.987,
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
    write_report(Run(folder))
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
    assert sum("with what the model saw" in str(picture["alt"]) for picture in page.all("img")) == 2


def test_a_run_without_mistakes_has_an_empty_gallery(write_run: WriteRun) -> None:
    run = write_run(wrong=False)
    (run / "mistakes.png").write_bytes(b"of an earlier report")
    write_report(Run(run))
    page = page_of(run)
    assert "Pneumonia that was missed: none" in page.text
    assert "False alarms: none" in page.text
    assert not (run / "mistakes.png").exists()


def test_a_measured_test_split_comes_first_and_is_never_in_the_gallery(write_run: WriteRun) -> None:
    run = write_run(tested=2, name="<b>run & co")
    write_report(Run(run))
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


# ------------------------------------------------------------------------------------------------ several sites


@pytest.fixture(scope="module")
def two_sites(write_run: WriteRun) -> Path:
    """A run of two sites with the head that says where, its test split measured, its left-out site made up."""
    folder = write_run(sites=2, head="local", tested=1)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics[LEFT_OUT] = metrics[VALIDATION]
    metrics[VALIDATION]["pointing"]["one_place"] = 0.97
    metrics[LEFT_OUT]["one_class"] = {
        "east": {"label": "NORMAL", "n": 40, "right": {"balanced": {"value": 0.75, "low": 0.7, "high": 0.8}}}
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_report(Run(folder))
    return folder


def table(page: str, caption: str) -> str:
    found = re.search(rf"<table><caption>{re.escape(caption)}</caption>(.*?)</table>", page)
    assert found, caption
    return found.group(1)


def test_each_site_and_their_mean_stand_in_the_report(two_sites: Path) -> None:
    raw = (two_sites / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((two_sites / "metrics.json").read_text())
    for name, key in {"validation": VALIDATION, "test": TEST}.items():
        rows = table(raw, f"By site: {name} films")
        sites = metrics[key]["sites"]
        assert list(sites) == ["<north>", "south"]
        for site, words in {"<north>": "&lt;north&gt;", "south": "south"}.items():
            m = sites[site]
            named = f"{words}<small>{m['n']} films, 50\N{NO-BREAK SPACE}% with pneumonia</small>"
            point = m["operating_points"]["balanced"]
            expected = [f"{m['auc']['value']:.3f}"]
            expected += [f"{100 * point[k]['value']:.1f} %" for k in ("accuracy", "sensitivity", "specificity")]
            assert cells(rows, named)[:5] == [*expected, f"{m['ece']['value']:.3f}"]
        mean = metrics[key]["mean"]
        assert cells(rows, "mean over sites")[0] == f"{mean['auc']['value']:.3f}"
    page = page_of(two_sites)
    assert "in the mean over 2 sites, which all count the same" in page.text
    at = metrics[TEST]["mean"]["operating_points"]["balanced"]["sensitivity"]
    assert f"Of 100 films with pneumonia it finds {100 * at['value']:.0f} " in page.text
    own = metrics[VALIDATION]["sites"]["south"]["own"]["operating_points"]["balanced"]
    shares = " / ".join(f"{100 * own[key]['value']:.1f} %" for key in ("sensitivity", "specificity"))
    assert shares in page.text
    # A left-out site of one class.
    elsewhere = table(raw, "A site that nothing was learned from: all its films")
    assert cells(elsewhere, "east<small>40 films, all NORMAL</small>") == ["", "", "", "75.0 %", "", ""]


def test_groups_and_weights_stand_in_the_report(two_sites: Path) -> None:
    raw = (two_sites / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((two_sites / "metrics.json").read_text())
    group = metrics[VALIDATION]["sites"]["south"]["groups"]["view"]["PA"]
    found = cells(table(raw, "View: validation films, as far as it is known"), "south, PA")
    assert found[:3] == [str(group["n"]), str(group["positives"]), f"{group['auc']['value']:.3f}"]
    weights = table(raw, "Training films of each site")
    for site, words in {"<north>": "&lt;north&gt;", "south": "south"}.items():
        m = metrics[VALIDATION]["site_probe"]["weighing"][site]
        assert cells(weights, words) == [f"{100 * m[k]:.1f} %" for k in ("weight", "prevalence", "weighted_prevalence")]
        assert cells(weights, words)[2] == "50.0 %"
    page = page_of(two_sites)
    assert "with an AUC of 0.612; with films weighed as in training, of 0.500" in page.text
    assert "finds the site of 98.7 % of the films that it has not seen" in page.text


def test_heatmaps_stand_in_the_report_beside_their_baseline(two_sites: Path) -> None:
    raw = (two_sites / "report.html").read_text(encoding="utf-8")
    pointing = json.loads((two_sites / "metrics.json").read_text())[VALIDATION]["pointing"]
    everyone = pointing["sites"]["south"]["all"]
    name = f"south<small>{everyone['films']} films, boxes cover 25\N{NO-BREAK SPACE}%</small>"
    row = cells(table(raw, "Heatmaps and boxes: validation films"), name)
    assert row == [
        f"{100 * everyone['points']['value']:.1f} %", f"{everyone['pixel_auc']['value']:.3f}",
        f"{everyone['iou']['value']:.3f}", f"{100 * everyone['touched']['value']:.1f} %",
        f"{100 * everyone['evidence_outside']['value']:.1f} %",
    ]  # fmt: skip
    assert f"M {100 * everyone['mean_map_points']['value']:.1f} %".replace(" %", "\N{NO-BREAK SPACE}%") in raw
    normals = table(raw, "Films labelled NORMAL: validation films")
    assert cells(normals, "south")[1] == f"{100 * pointing['normals']['south']['with_region']['value']:.1f} %"
    page = page_of(two_sites)
    assert "reaches a local probability of 50 %" in page.text
    assert (
        "In 97 % of the validation films with pneumonia the strongest place of the heatmap is the same one" in page.text
    )
    assert re.search(r"Points into a box, from the best overlap to the least: (\d+ of \d+|none)", page.text)
    assert re.search(r"Points elsewhere, the least overlap first: (\d+ of \d+|none)", page.text)
    with Image.open(two_sites / "overlays.png") as shown:
        # Boxes are drawn in blue.
        assert (np.asarray(shown.convert("RGB")) == (86, 180, 233)).all(axis=-1).any()


def test_a_run_of_one_site_without_boxes_says_nothing_of_either(run: Path) -> None:
    page = page_of(run)
    assert "mean over" not in page.text
    assert "Does the site tell the class?" not in page.text
    assert "Does it point at the disease?" not in page.text
    assert not (run / "overlays.png").exists()


def test_figures_that_may_be_published_show_no_film() -> None:
    assert set(FIGURES) == FILM_FREE
