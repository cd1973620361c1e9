"""`pneumo-bench sites`: each site left out in turn, and the table of what the others taught."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumo_bench.sites import judge_left_out, run_folders, site_names, sites_table, train_without
from pneumo_edge.atomic import write_json
from pneumo_edge.bundle import LABELS, Calibration
from pneumo_edge.calibrate import measure as measure_module
from pneumo_edge.calibrate.measure import weighted_auc
from pneumo_edge.errors import DataError, PneumoError, RunError, UsageError
from pneumo_train.films import FilmFile
from pneumo_train.run import FORMAT_VERSION, METRICS, Config, Run, write_config, write_rows
from pneumo_train.split import LEFT_OUT, VALIDATION, write_split
from tiny_backbone import with_tiny_backbone

pytest.importorskip("sklearn", reason="needs the train extra")
pytest.importorskip("psutil", reason="needs the bench extra")

NAMES = ("north", "south", "east")


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "REPLICATES", 200)


def config(left_out: str | None) -> Config:
    return Config(
        format_version=FORMAT_VERSION, data=("/data/a",), sources={name: name for name in NAMES}, licences={}, ages={},
        labels={}, left_out=left_out, data_hash="0" * 64, patient_rule="x", backbone="none", head="local", size=32,
        weights="none", started_from="none", epochs=1, batch_size=8, learning_rate=1e-3, seed=0, balance="weights",
        teachers=(), precision="float32", limit=None, versions={}, trained="2026-01-01",
    )  # fmt: skip


WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes as much of a finished run as the table reads."""

    def write(site: str, gap: float = 3.0, labels: Sequence[int] = (0, 1) * 60, threshold: float = 0.5) -> Path:
        run = tmp_path / f"left-out-{site}"
        run.mkdir()
        write_config(run, config(site))
        rng = np.random.default_rng(sum(map(ord, site)))
        films = [FilmFile(f"{site}/{i}.png", y, f"p{i // 2}", "train", site) for i, y in enumerate(labels)]
        films.append(FilmFile("other/0.png", 1, "q", "train", "other"))
        logits = (np.array(labels) - 0.5) * gap + rng.normal(0, 1, len(labels))
        write_split(run / "split.csv", films, [LEFT_OUT] * len(labels) + [VALIDATION])
        rows: list[dict[str, Any]] = [
            {"split": LEFT_OUT, "site": site, "path": film.path, "label": LABELS[film.label], "logit": logit}
            for film, logit in zip(films, logits, strict=False)
        ]
        rows.append({"split": VALIDATION, "site": "other", "path": "other/0.png", "label": "PNEUMONIA", "logit": 0})
        write_rows(run / "predictions.csv", list(rows[0]), rows)
        sure = {"value": 0.9, "low": 0.8, "high": 1.0}
        metrics: dict[str, Any] = dict.fromkeys(METRICS) | {
            "calibration": asdict(Calibration(2.0, 0.5, 0.5)),
            "operating_points": {"balanced": {"threshold": threshold}},
            "validation": {"mean": {"auc": sure}},
            "left_out": {"pointing": {"boxed": {"all": {"points": sure}}}} if site == "south" else {"pointing": None},
        }
        write_json(run / "metrics.json", metrics)
        return run

    return write


# ------------------------------------------------------------------------------------------------ the table


def test_each_site_is_judged_by_what_its_own_run_says(write_run: WriteRun) -> None:
    runs = [write_run("north", 4.0), write_run("south", 1.0, threshold=0.9), write_run("east", 3.0, [0] * 50)]
    record = judge_left_out(runs)
    json.dumps(record, allow_nan=False)
    north, south, east = record["results"]
    assert [result["site"] for result in record["results"]] == list(NAMES)
    assert north["trained_on"] == ["south", "east"]
    assert north["measures"]["auc"]["value"] > south["measures"]["auc"]["value"] + 0.1
    mean = record["mean"]
    assert mean["sites"] == 2
    for key in ("auc", "sensitivity", "specificity"):
        each = [
            (r["measures"].get(key) or r["measures"]["operating_points"]["balanced"][key])["value"]
            for r in (north, south)
        ]
        # Whatever the threshold of each run.
        assert mean[key]["value"] == pytest.approx(np.mean(each)), key
        assert mean[key]["low"] < mean[key]["value"] < mean[key]["high"]
    point = south["measures"]["operating_points"]["balanced"]
    assert point["threshold"] == 0.9
    assert point["specificity"]["value"] > point["sensitivity"]["value"]
    assert north["measures"]["patients"] == 60
    assert (east["measures"], east["one_class"]["label"], east["one_class"]["n"]) == (None, "NORMAL", 50)


def test_the_area_is_that_of_the_logits(write_run: WriteRun) -> None:
    run = write_run("north", 2.0)
    with (run / "predictions.csv").open() as file:
        rows = [line.strip().split(",") for line in file][1:-1]
    labels, logits = np.array([r[3] == "PNEUMONIA" for r in rows]).astype(int), np.array([float(r[4]) for r in rows])
    expected = float(weighted_auc(labels, logits, np.ones((1, len(rows))))[0])
    assert judge_left_out([run])["results"][0]["measures"]["auc"]["value"] == pytest.approx(expected)


def test_the_table_has_a_row_for_each_site_and_the_mean(write_run: WriteRun) -> None:
    record = judge_left_out([write_run("north"), write_run("south"), write_run("east", labels=[1] * 40)])
    table = sites_table(record)
    assert [row[0] for row in table.rows] == [*NAMES, "mean"]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    north, south, east, mean = table.rows
    assert north[2].startswith(f"{record['results'][0]['measures']['auc']['value']:.4f} (")
    assert north[7] == "–"
    assert south[7].startswith("90.0%")
    assert east[1] == "40 PNEUMONIA"
    assert (east[2], east[4]) == ("–", "–")
    assert mean[1] == "2 sites"
    assert mean[2].startswith(f"{record['mean']['auc']['value']:.4f} (")
    assert "head local" in table.notes[-1]


def test_runs_that_do_not_go_together_are_refused(write_run: WriteRun) -> None:
    north, south = write_run("north"), write_run("south")
    other = replace(Run(south).config, seed=1, head="gap")
    write_config(south, other)
    with pytest.raises(RunError, match="differ in head, seed: a table is of one recipe"):
        judge_left_out([north, south])
    write_config(south, config("north"))
    with pytest.raises(UsageError, match="both leave out north"):
        judge_left_out([north, south])
    write_config(south, config(None))
    with pytest.raises(RunError, match="has left out no site"):
        judge_left_out([north, south])
    (north / "predictions.csv").write_text("split,site,path,label,logit\nleft_out,north,north/1.png,NORMAL,0\n")
    with pytest.raises(RunError, match=r"does not go with its split\.csv"):
        judge_left_out([north])


# ------------------------------------------------------------------------------------------------ the trainings


def draw_sites(folder: Path, names: Sequence[str] = NAMES[:2], films: int = 40) -> Path:
    """Two sites of noise, brighter where it is pneumonia, with a box around a bright corner."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows, boxes = [], []
    for site in names:
        for i in range(films):
            label = i % 2
            film = np.clip(rng.normal(90, 20, (48, 48)), 0, 255)
            film[24:, 24:] += 80 * label
            path = f"{site}-{i}.png"
            Image.fromarray(film.clip(0, 255).astype(np.uint8)).save(folder / path)
            rows.append({"path": path, "label": ("well", "ill")[label], "site": site, "patient": f"{site}-{i // 2}"})
            if label and site == "south":
                boxes.append({"path": path, "x0": 0.5, "y0": 0.5, "x1": 1.0, "y1": 1.0})
    write_rows(folder / "films.csv", list(rows[0]), rows)
    write_rows(folder / "boxes.csv", list(boxes[0]), boxes)
    return folder


LABEL_OPTIONS = ("--label", "well=NORMAL", "--label=ill=PNEUMONIA")


def test_the_sites_are_those_that_training_would_find(tmp_path: Path) -> None:
    data = draw_sites(tmp_path / "films")
    assert site_names([str(data)], LABEL_OPTIONS) == ["north", "south"]
    with pytest.raises(DataError):
        site_names([str(data)], ())
    alone = draw_sites(tmp_path / "alone", ("south",))
    with pytest.raises(UsageError, match="all films are of one site, south"):
        site_names([str(alone)], LABEL_OPTIONS)


def test_runs_have_names_that_any_disk_takes(tmp_path: Path) -> None:
    found = run_folders(["north", "St. Mary/2", "St. Mary:2", "..", "Ø"], tmp_path)
    names = [path.name for path in found.values()]
    assert names == ["left-out-north", "left-out-St.-Mary-2", "left-out-St.-Mary-2-2", "left-out-site", "left-out-Ø"]
    assert all(path.parent == tmp_path for path in found.values())


def test_what_is_finished_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = run_folders(NAMES, tmp_path)
    for site in ("north", "south"):
        folders[site].mkdir()
        (folders[site] / "config.json").write_text("{}")
    (folders["north"] / "metrics.json").write_text("{}")
    with pytest.raises(UsageError, match="exists already: go on with --resume"):
        train_without(folders, ["a", "b"], ["--epochs", "1"], resume=False)
    called: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        called.append(command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    train_without(folders, ["a", "b"], ["--epochs", "1"], resume=True)
    assert called == [
        ["--resume", str(folders["south"])],
        ["--data", "a", "--data", "b", "--epochs", "1", "--leave-out", "east", "--output", str(folders["east"])],
    ]
    said = capsys.readouterr().err
    assert "south left out, training 1 of 2\n" in said
    assert "east left out, training 2 of 2, about 0 min left for all" in said
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))
    with pytest.raises(PneumoError, match="the training without south ended with 2"):
        train_without(folders, ["a"], [], resume=True)


def command(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pneumo_bench.cli", "sites", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --data for each data set"),
        (["--data", ".", "--run", "."], "give --data for each data set"),
        (["--run", ".", "--epochs", "1"], "--epochs is for training"),
        (["--data", ".", "--leave-out=x"], "--leave-out is not for pneumo-bench sites"),
        (["--data", ".", "--test"], "--test is not for pneumo-bench sites"),
        (["--run", "nowhere"], "nowhere is no folder"),
    ],
)
def test_bad_usage_is_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = command(*arguments, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_two_sites_from_films_to_the_table(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="training needs TensorFlow")
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    environment = with_tiny_backbone(tmp_path) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    data, output = draw_sites(tmp_path / "films"), tmp_path / "out"
    tiny = ("--backbone", "tiny", "--weights", "none", "--size", "64", "--learning-rate", "0.03")
    options = (*LABEL_OPTIONS, *tiny, "--epochs", "4", "--batch-size", "8")
    done = command("--data", data, "--output", output, *options, environment=environment)
    assert done.returncode == 0, done.stderr
    record = json.loads((output / "sites.json").read_text())
    assert [result["site"] for result in record["results"]] == ["north", "south"]
    for result in record["results"]:
        assert result["measures"]["n"] == 40
        assert 0 <= result["measures"]["auc"]["value"] <= 1
        stated = json.loads((output / "runs" / result["run"] / "metrics.json").read_text())
        # Of the site that was left out nothing was learned; the run's own measure is the same but for rounded logits.
        assert set(stated["validation"]["sites"]) == set(result["trained_on"])
        assert stated["left_out"]["auc"]["value"] == pytest.approx(result["measures"]["auc"]["value"], abs=5e-3)
        assert (output / "runs" / result["run"] / "report.html").is_file()
    # The boxes of the south are of no use to the run without it but to judge by.
    assert record["results"][0]["pointing"] is None
    assert record["results"][1]["pointing"]["films"] == 20
    assert "| mean |" in (output / "sites.md").read_text(encoding="utf-8")
    with Image.open(output / "sites.png") as figure:
        assert figure.width > 500
    # Once more: nothing is left to train.
    again = command("--data", data, "--output", output, "--resume", *options, environment=environment)
    assert again.returncode == 0, again.stderr
    assert "left out, training" not in again.stderr
    assert json.loads((output / "sites.json").read_text())["mean"] == record["mean"]
