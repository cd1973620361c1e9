"""pneumo-bench calibration: draws, ways and tables, on films whose answers can be worked out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("psutil", reason="benchmarks need the extra bench")

from pneumo_bench import calibration as module
from pneumo_bench.calibration import WAYS, calibration_tables, measure_places
from pneumo_edge.bundle import read_bundle
from pneumo_edge.errors import DataError


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two sites: 60 films to draw from and 40 to be judged by at one, films of one label alone at the other."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(110):
        label = i % 2 if i < 100 else 0
        waves = 45 * np.sin(np.linspace(0, 4 * np.pi, 100, endpoint=False) + i)
        grey = np.tile(127 + (18 if label else -18) + 14 * rng.normal() + waves, (100, 1))
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(
            {
                "path": f"{i}.png",
                "label": ("NORMAL", "PNEUMONIA")[label],
                "patient": f"p{i}",
                "site": "here" if i < 100 else "healthy",
                "split": "test" if i % 5 > 2 else "train",
            }
        )
    path = tmp_path / "films.csv"
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_draws_are_calibrated_on_and_judged_by_other_films(
    bundle: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLACES", {"as before": module.PLACES["as before"]})
    record = measure_places(read_bundle(bundle), manifest, draws=2, seed=0, counts=(8, 40))
    [result] = record["results"]
    assert (result["site"], result["learned"], result["test_films"]) == ("here", False, 40)
    assert all(each["refused"] for each in result["draws"]["8"])  # of 8 films there are not 5 of each label
    for each in result["draws"]["40"]:
        assert each["films"] == 40
        assert set(each["ece"]) == set(each["log_loss"]) == set(WAYS)
        # The tiny bundle says 75 % where half of the films are ill, with a scale far too small.
        assert each["log_loss"]["pneumo-calibrate"] < each["log_loss"]["before"]
        screening = each["operating_points"]["screening"]["after"]["sensitivity"]
        assert screening["low"] <= screening["value"] <= screening["high"]
    first, second = result["draws"]["40"]
    assert first["calibration"] != second["calibration"]
    assert [row["films"] for row in record["simulated"]] == [20, 50, 100, 300]
    json.dumps(record, allow_nan=False)
    errors, points, simulated = calibration_tables(record)
    assert [row[:2] for row in errors.rows] == [("8", "0"), ("40", "2")]
    assert [row[:2] for row in points.rows] == [("40", "balanced"), ("40", "screening")]
    assert len(simulated.rows) == 4


def test_a_manifest_without_splits_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text("path,label\na.png,NORMAL\n", encoding="utf-8")
    with pytest.raises(DataError, match="with the columns path, label, patient, site and split"):
        measure_places(read_bundle(bundle), path, draws=1, seed=0)
