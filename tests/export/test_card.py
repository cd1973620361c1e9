"""The model card: what it says comes from the run, the bundle and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumo_edge.bundle import (
    FORMAT_VERSION,
    LABELS,
    Ages,
    Calibration,
    Description,
    InputContract,
    Interval,
    ModelFile,
    OperatingPoint,
    Provenance,
    Site,
)
from pneumo_edge.calibrate import measure as measure_module
from pneumo_edge.errors import UsageError
from pneumo_export.card import model_card, never_shown
from pneumo_export.cli import _read_sites
from pneumo_train.films import Box, FilmFile
from pneumo_train.pointing import measure_pointing
from pneumo_train.run import FORMAT_VERSION as RUN_FORMAT
from pneumo_train.run import Config, Films
from pneumo_train.sites import measure_sites

pytest.importorskip("sklearn", reason="needs the export extra")

NORTH = Site("north", "a hospital", "free", {"train/NORMAL": 30, "train/PNEUMONIA": 10}, 35, None, {}, {})
SOUTH = Site("south", "a clinic", "", {"train/NORMAL": 5}, 5, Ages(21.0, 48.0, 84.0, 5), {"AP": 2, "PA": 3}, {"F": 5})


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "REPLICATES", 100)


def metrics_of(sites: dict[str, list[int]], boxed: str = "") -> dict[str, Any]:
    """What a run would say of films of these labels; of `boxed` the pneumonias have a box in which the map is high."""
    box = (Box(0.0, 0.0, 0.5, 0.5),)
    files = tuple(
        FilmFile(f"{site}/{i}", y, f"p{i}", "train", site, boxes=box if site == boxed and y else ())
        for site, labels in sites.items()
        for i, y in enumerate(labels)
    )
    labels = np.array([film.label for film in files])
    logits = (labels - 0.5) * 2 + np.random.default_rng(0).normal(0, 1, len(files))
    films = Films(files, np.zeros((len(files), 1, 1), np.uint8), labels)
    maps = np.full((len(files), 4, 4), -3.0)
    maps[labels == 1, :2, :2] = 3.0
    boxes = [film.boxes for film in files]
    pointing = measure_pointing(maps, boxes, labels, logits > 0, films.patients, films.sites, 0.5)
    return measure_sites(films, logits, Calibration(1.0, 0.0, 0.5), {"balanced": 0.5}) | {"pointing": pointing}


def card(sites: tuple[Site, ...] = (NORTH, SOUTH), elsewhere: Any = None, data: str = "films", **parts: Any) -> str:
    sure = Interval(0.9, 0.8, 1.0)
    description = Description(
        FORMAT_VERSION,
        "lite0-local-160",
        "efficientnet_lite0",
        "local",
        InputContract("image", "uint8", 160, 1),
        LABELS,
        Calibration(1.0, 0.0, 0.5),
        {"balanced": OperatingPoint(0.5, sure, sure)},
        "balanced",
        Provenance(data, {}, "imagenet", "2026-01-01", {}, sites, "films of north: free"),
        {"model.onnx": ModelFile("fp32", 1, "0" * 64, 1.0)},
    )
    config = Config(
        format_version=RUN_FORMAT, data=(), sources={}, licences={}, ages={}, labels={}, left_out=None, data_hash="",
        patient_rule="", backbone="efficientnet_lite0", head="local", size=160, weights="imagenet",
        started_from="imagenet", epochs=1, batch_size=8, learning_rate=1e-3, seed=0, balance="weights", teachers=(),
        precision="float32", limit=None, versions={}, trained="2026-01-01",
    )  # fmt: skip
    metrics = {"validation": metrics_of({"north": [0, 1] * 30}), "test": None, "left_out": None} | parts
    return model_card(description, config, metrics, {"files": {}, "validation_films": 60}, elsewhere)


def row(text: str, *first: str) -> list[str]:
    found = re.search(rf"^\| {re.escape(' | '.join(first))} \|(.*)\|$", text, re.MULTILINE)
    assert found, first
    return [cell.strip() for cell in found.group(1).split("|")]


def test_each_site_and_the_mean_have_a_row() -> None:
    measured = metrics_of({"north": [0, 1] * 30, "south": [0, 0, 1] * 20, "east": [0] * 20})
    text = card(validation=measured)
    for site in ("north", "south"):
        cells = row(text, "validation", site)
        assert cells[0] == str(measured["sites"][site]["n"])
        assert cells[1].startswith(f"{measured['sites'][site]['auc']['value']:.4f} (")
    assert row(text, "validation", "mean of 2")[1].startswith(f"{measured['mean']['auc']['value']:.4f} (")
    assert row(text, "validation", "east")[0] == "20 NORMAL"
    assert "The test split has not been measured." in text
    alone = card(validation=metrics_of({"north": [0, 1] * 30}))
    assert "mean of" not in alone


def test_whom_it_knows_comes_from_the_bundle() -> None:
    text = card()
    assert row(text, "north") == ["30 NORMAL, 10 PNEUMONIA", "35", "not stated", "not stated", "a hospital"]
    assert row(text, "south")[2:4] == ["21 to 84, median 48 (known of 5)", "2 AP, 3 PA"]
    assert "2 sites and their scanners: north and south." in text
    assert "films of north: free" in text
    assert "Kermany" not in text
    assert "This model says nothing about real films" not in text
    assert "This model says nothing about real films" in card(data="phantoms (synthetic drawings)")


def test_what_it_was_never_shown_is_said_plainly() -> None:
    text = never_shown((NORTH, SOUTH))
    assert "never been shown a film of any place but north and south." in text
    assert "Where ages are known (south) it has seen people of 21 to 84 years" in text
    assert "Children are not among them." in text
    assert "The ages of north are not stated." in text
    assert "The views that are stated are AP and PA" in text
    children = replace(SOUTH, ages=Ages(1.0, 3.0, 5.0, 5), views={})
    text = never_shown((children,))
    assert "Adults are not among them." in text
    assert "Children" not in text
    assert "Views are not stated" in text
    everyone = never_shown((children, replace(SOUTH, name="east")))
    assert "not among them" not in everyone
    assert "is not stated" in never_shown(())


def test_places_that_taught_nothing() -> None:
    assert "has not learned from has not been measured" in card()
    own = metrics_of({"west": [0, 1] * 30})
    text = card(left_out=own)
    assert row(text, "west", "60")[0].startswith(f"{own['sites']['west']['auc']['value']:.4f} (")
    one, other = (metrics_of({site: [0, 1] * 20})["sites"][site] for site in ("north", "south"))
    record = {
        "kind": "sites",
        "settings": {"backbone": "b", "head": "local", "size": 128, "epochs": 4},
        "results": [
            {"site": "north", "measures": one, "one_class": None},
            {"site": "south", "measures": other, "one_class": None},
            {"site": "east", "measures": None, "one_class": metrics_of({"east": [1] * 9})["one_class"]["east"]},
        ],
        "mean": {"sites": 2, "auc": one["auc"], **one["operating_points"]["balanced"]},
    }
    text = card(elsewhere=record)
    assert "(b, local, 128 pixels, 4 epochs)" in text
    assert row(text, "south", "40")[0].startswith(f"{other['auc']['value']:.4f} (")
    assert row(text, "mean", "2 sites")[0].startswith(f"{one['auc']['value']:.4f} (")
    assert row(text, "east", "9 PNEUMONIA")[0] == ""
    assert "has not been measured" not in text.split("## How good it is")[1].split("Each file")[0].replace(
        "The test split has not been measured.", ""
    ).replace("Whether the heatmap points at the disease has not been measured", "")


def test_heatmaps_are_told_of_where_there_are_boxes() -> None:
    assert "Whether the heatmap points at the disease has not been measured" in card()
    measured = metrics_of({"north": [0, 1] * 30, "south": [0, 1] * 30}, boxed="south")
    text = card(validation=measured)
    cells = row(text, "south", "30")
    assert cells[0] == "25.0%"
    assert cells[1] == "100.0% (100.0% to 100.0%)"
    assert "Normal films that get a region, at the balanced point: north 0.0%; south 0.0%." in text


def test_results_of_sites_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "sites.json"
    for text in ("no json", "[]", "{}", json.dumps({"kind": "latency", "results": [1]})):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"is no sites\.json"):
            _read_sites(path)
    with pytest.raises(UsageError, match=r"is no sites\.json"):
        _read_sites(tmp_path / "nowhere.json")
    path.write_text(json.dumps({"kind": "sites", "results": [1]}))
    assert _read_sites(path)["results"] == [1]
