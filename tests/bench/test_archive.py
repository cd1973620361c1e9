"""pneumo-bench archive, on a few films."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("distributed", reason="the extra archive is not installed")

from pneumo_bench.archive import CORES, WAYS, _extrapolate, make_films, time_archive
from pneumo_edge.errors import MissingExtraError, UsageError


def test_films_are_copies_and_mutations(tmp_path: Path) -> None:
    mean = make_films(tmp_path / "films", 205)
    films = sorted((tmp_path / "films").rglob("*.jpeg"))
    assert len(films) == 205
    assert len({film.read_bytes() for film in films}) == 205
    assert mean == pytest.approx(np.mean([film.stat().st_size for film in films]))
    with Image.open(films[0]) as film:
        assert film.mode == "L"
        assert min(film.size) > 96


def test_what_millions_would_take_is_worked_out_from_the_figures() -> None:
    found = {
        "listing": {"paths_per_second": 1000.0, "peak_rss": 2e8, "bytes_for_a_film": 16.0, "films": 1_000_000},
        "driver_ms_for_a_part": 5.0,
        "row_bytes": 100.0,
    }
    each = _extrapolate("phantom", 50.0, 2e4, 36_000_000, 500, found)
    assert each["core_hours"] == pytest.approx(200)
    assert each["judging_hours"] == pytest.approx(200 / CORES)
    assert each["driver_hours"] == pytest.approx(0.1)
    assert each["listing_hours"] == pytest.approx(10)
    assert each["hours"] == pytest.approx(12)
    assert each["bottleneck"] == "the listing"
    assert each["read_bytes_per_second"] == pytest.approx(CORES * 50 * 2e4)
    assert each["rows_bytes"] == pytest.approx(3.6e9)
    assert each["driver_bytes"] == pytest.approx(2e8 + 35e6 * 16)
    assert each["parts"] == 72_000
    assert _extrapolate("phantom", 50.0, 2e4, 1_000_000, 1, found)["bottleneck"] == "the driver"
    found["listing"] = found["listing"] | {"paths_per_second": 1e6}  # type: ignore[operator]
    assert _extrapolate("phantom", 50.0, 2e4, 1_000_000, 500, found)["bottleneck"] == "the cores"


def test_the_ways_are_measured_and_said(tmp_path: Path, bundle: Path) -> None:
    options = ("--films", "40", "--batch", "5", "--paths", "3000", "--rounds", "1", "--output", str(tmp_path))
    line = [sys.executable, "-m", "pneumo_bench.cli", "archive", "--model", str(bundle), *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "archive.json").read_text())
    assert [result["name"] for result in record["results"]] == list(WAYS)
    bare, one, two = (result["films_per_second"]["median"] for result in record["results"])
    assert min(bare, one, two) > 0
    ratios = [result["ratio"]["median"] for result in record["results"]]
    assert ratios == pytest.approx([1.0, one / bare, two / bare], rel=1e-3)
    assert record["results"][2]["ratio_to_one_worker"]["median"] == pytest.approx(two / one, rel=1e-3)
    assert record["overhead"]["median"] == pytest.approx(1 - one / bare, rel=1e-3)
    listing = record["listing"]
    assert listing["films"] == 3000
    assert listing["peak_rss"] >= listing["peak_rss_before"] > 1e7
    assert [each["films"] for each in record["extrapolation"]] == [10**6, 10**7, 10**8] * 2
    markdown = (tmp_path / "archive.md").read_text(encoding="utf-8")
    for text in (done.stdout, markdown):
        assert "two workers" in text
        assert "100 million, phantom" in text
        assert "not measured: worked out" in text
    assert record["command"] in markdown
    with Image.open(tmp_path / "archive.png") as figure:
        assert figure.width > 500


def test_what_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="10 films in parts of 5 leave two workers nothing to share"):
        time_archive(model=None, films=10, paths=10, batch=5, rounds=1)
    monkeypatch.setattr("pneumo_bench.archive.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pneumo\[archive\]'"):
        time_archive(model=None, films=10, paths=10, batch=1, rounds=1)
