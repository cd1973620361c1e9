"""pneumo-bench web and web-agreement: a page in Chromium against the native runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from chromium import need_chromium
from pneumo_edge.errors import DataError

need_chromium("ai_edge_litert", "psutil")

from pneumo_bench.web import measure_web, web_tables  # noqa: E402
from pneumo_bench.web_agreement import compare_web, web_agreement_table  # noqa: E402
from pneumo_train.phantom import draw_phantoms  # noqa: E402


def test_the_page_is_timed(runtime: dict[str, bytes]) -> None:
    record = measure_web(bundle=None, folder=None, films=2, rounds=1)
    assert record["cold_seconds"]["slowest"] >= record["cold_seconds"]["median"] > 0
    assert record["tab_bytes"] > 1e7
    assert record["sizes"]["bytes_packed"] < 15e6
    assert record["sizes"]["model_bytes_packed"] < 4e6
    for side in record["milliseconds"].values():
        assert side["whole"] > side["infer"] > 0
    assert record["largest_difference"] < 0.05
    assert [len(table.rows) for table in web_tables(record)] == [3, 1]


def test_answers_are_compared(runtime: dict[str, bytes], tmp_path: Path) -> None:
    draw_phantoms(tmp_path / "phantoms", films=20)
    record = compare_web(bundle=None, folders=[tmp_path / "phantoms"], films=4)
    assert record["settings"]["films"] == {f"{tmp_path.name}/phantoms": 4}
    png = record["browser"]["PNG"]
    assert (png["films"], png["arrays"]["equal"], png["withheld_otherwise"]) == (4, 4, 0)
    assert 0 <= png["probability_difference"]["mean"] <= png["probability_difference"]["max"] < 0.02
    assert record["native_without_xnnpack"]["films"] == 4
    assert [cells[0] for cells in web_agreement_table(record).rows][:2] == ["PNG in the browser", "JPEG in the browser"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no JPEG films"):
        compare_web(bundle=None, folders=[tmp_path / "empty"], films=4)
