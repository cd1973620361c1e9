"""The folder of a run: what is read back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumo_edge.errors import RunError
from pneumo_train.films import index_hash, prepare
from pneumo_train.run import (
    FORMAT_VERSION,
    METRICS,
    PREDICTIONS,
    Config,
    Run,
    read_rows,
    write_config,
    write_rows,
)
from pneumo_train.sources import KAGGLE_PATIENT, gather
from pneumo_train.split import TEST, TRAIN, VALIDATION, write_split

CONFIG = Config(
    format_version=FORMAT_VERSION, data=("/films", "north=/more"), sources={"here": "films"},
    licences={"here": "none"}, ages={"here": (1.0, 5.0)},
    labels={"COVID19": "PNEUMONIA"}, left_out=None, data_hash="00", patient_rule=KAGGLE_PATIENT,
    backbone="efficientnet_lite0", head="gap", size=32, weights="none", started_from="none", epochs=2, batch_size=8,
    learning_rate=3e-4, seed=0, balance="weights", teachers=(), precision="float32", limit=None,
    versions={"numpy": "2"}, trained="2026-01-01",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def damaged(run: Path, change: Callable[[dict[str, Any]], None], name: str = "config.json") -> None:
    parsed = json.loads((run / name).read_text())
    change(parsed)
    (run / name).write_text(json.dumps(parsed))


def sentence(error: pytest.ExceptionInfo[RunError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's settings alone."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, CONFIG)
    return folder


# ---------------------------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize("limit", [None, 40])
def test_a_config_comes_back_as_it_was(run: Path, limit: int | None) -> None:
    sources = {"Köln": "Filme – Köln", "here": "films"}
    config = replace(CONFIG, limit=limit, sources=sources, left_out="here" if limit else None)
    write_config(run, config)
    assert Run(run).config == config
    assert config.data_name == "Filme – Köln; films"
    assert [p.name for p in run.iterdir()] == ["config.json"]  # no temporary file is left


@pytest.mark.parametrize("field", sorted(asdict(CONFIG)))
def test_every_setting_must_be_there(run: Path, field: str) -> None:
    damaged(run, lambda c: c.pop(field))
    with pytest.raises(RunError, match=f"missing key {field}|another version") as error:
        _ = Run(run).config
    assert str(run) in sentence(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", "sgd"), ("size", "32"), ("size", 32.5), ("size", True), ("epochs", None), ("limit", "all"),
        ("learning_rate", "fast"), ("learning_rate", float("nan")), ("versions", ["numpy"]), ("versions", {"numpy": 2}),
        ("backbone", 7), ("data", None), ("data", "/films"), ("sources", "films"), ("left_out", 1),
    ],
)  # fmt: skip
def test_unknown_settings_and_wrong_types_are_refused(run: Path, key: str, value: object) -> None:
    damaged(run, lambda c: c.update({key: value}))
    with pytest.raises(RunError, match=rf"config\.json is damaged \(.*{key}.*\): train it again") as error:
        _ = Run(run).config
    sentence(error)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_is_refused(run: Path, version: object) -> None:
    damaged(run, lambda c: c.update(format_version=version, unknown=1))
    with pytest.raises(RunError, match="made by another version of pneumo"):
        _ = Run(run).config


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 2}'])
def test_what_is_no_config_is_refused(run: Path, content: bytes) -> None:
    (run / "config.json").write_bytes(content)
    with pytest.raises(RunError, match="damaged") as error:
        _ = Run(run).config
    sentence(error)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no config\.json: is it a run\?"):
        _ = Run(tmp_path).config
    file = tmp_path / "file"
    file.write_text("")
    for wrong in (tmp_path / "nowhere", file):
        with pytest.raises(RunError, match="is no folder: give the run that pneumo-train wrote"):
            _ = Run(wrong).config


# -------------------------------------------------------------------------------------------- metrics and the model


def test_an_unfinished_run_says_how_to_finish_it(run: Path) -> None:
    for name in ("metrics", "model_path", "model"):
        with pytest.raises(RunError, match=f"finish it with pneumo-train --resume {run}"):
            getattr(Run(run), name)
    (run / "model.keras").write_bytes(b"")
    assert Run(run).model_path == run / "model.keras"


def test_metrics_are_read_whole_or_not_at_all(run: Path) -> None:
    whole = dict.fromkeys(METRICS)
    (run / "metrics.json").write_text(json.dumps(whole))
    assert Run(run).metrics == whole
    for content in ("{}", "[]", "{", json.dumps({**whole, "more": 1}), json.dumps({"test": None})):
        (run / "metrics.json").write_text(content)
        with pytest.raises(RunError, match=r"metrics\.json is damaged"):
            _ = Run(run).metrics


# -------------------------------------------------------------------------------------------------------- CSV files


def test_rows_come_back_as_text(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    write_rows(path, ("epoch", "note"), [{"epoch": 1, "note": 'a, "b"'}, {"epoch": 2, "note": ""}])
    assert read_rows(path) == [{"epoch": "1", "note": 'a, "b"'}, {"epoch": "2", "note": ""}]
    assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"epoch\n" + b"x" * 200_000])
def test_rows_that_cannot_be_read_are_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(RunError, match=r"history\.csv is missing or damaged"):
        read_rows(tmp_path / "history.csv")


# ------------------------------------------------------------------------------------------------ the films of a run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for i, name in enumerate(
        ("train/NORMAL/a.png", "train/NORMAL/b.png", "train/PNEUMONIA/c.png", "test/NORMAL/d.png")
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 40), 10 * i).save(root / name)
    (root / "train/PNEUMONIA/e.png").write_bytes(b"no picture")
    return root


@pytest.fixture
def config(run: Path, data: Path) -> Config:
    """Written beside the split of its data."""
    gathered = gather([str(data)])
    files, prepared = gathered.films, prepare(gathered.roots, gathered.films, 32)
    write_split(run / "split.csv", files, [TRAIN, VALIDATION, TRAIN, "unreadable", TEST])
    made = replace(CONFIG, data=(str(data),), data_hash=index_hash(files, prepared.sha256))
    write_config(run, made)
    return made


def test_the_films_of_a_split_are_those_that_were_cut(run: Path, config: Config) -> None:
    films = Run(run).films
    train = films.part(TRAIN)
    assert train.paths == ["train/NORMAL/a.png", "train/PNEUMONIA/c.png"]
    assert train.patients == ["data:a", "data:c"]  # a name read off a file is of its site alone
    assert train.sites == ["data", "data"]
    assert train.labels.tolist() == [0, 1]
    assert train.pixels[:, 0, 0].tolist() == [0, 20]
    assert films.positions(TEST).tolist() == [4]
    assert films.part(TEST).pixels[0, 0, 0] == 30
    assert films.part(VALIDATION).pixels.dtype == np.uint8


def test_films_may_have_moved(run: Path, data: Path, config: Config, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "chest_xray"
    moved.parent.mkdir()
    data.rename(moved)
    with pytest.raises(RunError, match="say where they are with --data"):
        _ = Run(run).films
    assert Run(run, [str(moved.parent)]).films.part(TRAIN).pixels[:, 0, 0].tolist() == [0, 20]


def test_other_films_are_refused(run: Path, data: Path, config: Config) -> None:
    Image.new("L", (40, 40), 99).save(data / "train/NORMAL/a.png")
    with pytest.raises(RunError, match="give the right ones with --data"):
        _ = Run(run).films


def test_more_films_do_not_matter(run: Path, data: Path, config: Config) -> None:
    Image.new("L", (40, 40), 99).save(data / "train/NORMAL/another.png")
    assert len(Run(run).films.files) == 5


def test_a_film_that_is_gone_is_named(run: Path, data: Path, config: Config) -> None:
    (data / "train/NORMAL/b.png").unlink()
    with pytest.raises(RunError, match=r"b\.png, a film of .*, is missing"):
        _ = Run(run).films


def test_a_split_that_was_cut_short_is_noticed(run: Path, config: Config) -> None:
    lines = (run / "split.csv").read_text().splitlines(keepends=True)
    (run / "split.csv").write_text("".join(lines[:-1]))
    with pytest.raises(RunError, match="are not those"):
        _ = Run(run).films
    (run / "split.csv").write_text(lines[0])
    with pytest.raises(RunError, match=r"split\.csv is missing or damaged"):
        _ = Run(run).films


def test_an_open_run_reads_its_films_once(run: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return prepare(*arguments)

    monkeypatch.setattr("pneumo_train.run.prepare", counted)
    opened = Run(run)
    assert opened.films is opened.films
    assert (opened.films.part(TRAIN).paths, len(calls)) == (["train/NORMAL/a.png", "train/PNEUMONIA/c.png"], 1)
    assert opened.config == config


def test_measures_that_were_written_are_what_is_read(run: Path) -> None:
    opened = Run(run)
    row = dict.fromkeys(PREDICTIONS, "x") | {"logit": 0.5}
    for films in (1, 2):
        opened.write_measures([row], dict.fromkeys(METRICS) | {"films": films})
        assert opened.metrics["films"] == Run(run).metrics["films"] == films
        assert opened.predictions == [dict.fromkeys(PREDICTIONS, "x") | {"logit": "0.5"}]
    assert opened.is_finished
