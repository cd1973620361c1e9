"""pneumo-bench agreement on the tiny bundle: onnxruntime with and without optimisations, OpenVINO where it is there.

All engines compute in float32, OpenVINO because it is told to (on AMX it would take bfloat16): a mean of 1,024 grey
levels, which every processor has to seven digits, so probabilities agree to more than the five asked for.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pneumo_bench import agreement
from pneumo_bench.accuracy import decode
from pneumo_bench.accuracy import test_split as split_of_test
from pneumo_bench.cli import main
from pneumo_bench.inputs import open_bundles
from pneumo_edge.errors import MissingExtraError
from pneumo_train.phantom import draw_phantoms

pytest.importorskip("psutil", reason="benchmarks need pneumo[bench]")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_phantoms(tmp_path_factory.mktemp("agreement") / "phantoms", films=40)


def test_the_command_compares_every_way_and_writes_it_down(
    bundle: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="--output needs pneumo[bench]")
    line = ["pneumo-bench", "agreement", "--model", str(bundle), "--data", str(phantoms), "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as ended:
        main()
    record = json.loads((tmp_path / "agreement.json").read_text())
    ways = {result["way"]: result for result in record["results"]}
    wanted = {"onnxruntime, all optimisations", "onnxruntime, no optimisation"}
    if find_spec("openvino") is None:
        assert ended.value.code == 1
        assert "openvino" in record["missing"][0]["reason"]
    else:
        assert ended.value.code == 0
        wanted.add("OpenVINO")
    assert set(ways) == wanted
    for result in ways.values():
        assert result["name"] == "tiny/model.onnx"
        assert result["probability_difference"]["max"] < 1e-5
        assert result["flips"] == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].strip() == "The same answer everywhere, on test films"
    assert f"{record['settings']['films']} test films" in (tmp_path / "agreement.md").read_text()


def test_what_differs_is_counted_and_named(bundle: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(model: bytes) -> agreement.Logit:
        # The bundle says PNEUMONIA above a probability of 0.5, which is a logit of -0.5.
        return lambda film: -0.6 if film.mean() > 0 else 0.0

    def garbled(model: bytes) -> agreement.Logit:
        return lambda _: float("nan")

    def absent(model: bytes) -> agreement.Logit:
        raise MissingExtraError("other", "bench", "this way")

    monkeypatch.setitem(agreement.WAYS, ".onnx", {"other": other, "garbled": garbled, "absent": absent})
    bundles = open_bundles([bundle])
    record = agreement.compare_all(bundles, split_of_test([str(phantoms)]))
    own = agreement._own(bundles["tiny"], "model.onnx", "tiny")
    pixels = decode(split_of_test([str(phantoms)]), [32]).pixels[32]
    logits = np.array([own(film[np.newaxis, ..., np.newaxis]) for film in pixels])
    p = 1 / (1 + np.exp(-(0.5 * logits + 0.25)))
    results = {result["way"]: result for result in record["results"]}
    q = 1 / (1 + np.exp(-(0.5 * -0.6 + 0.25)))
    assert results["other"]["flips"] == np.sum(p >= 0.5)
    assert results["other"]["probability_difference"]["max"] == pytest.approx(np.abs(p - q).max())
    assert results["other"]["probability_difference"]["mean"] == pytest.approx(np.abs(p - q).mean())
    assert results["garbled"]["probability_difference"]["max"] == 1.0
    assert [gap["name"] for gap in record["missing"]] == ["tiny/model.onnx, absent"]
    notes = agreement.agreement_table(record).notes
    assert any(note == "more than 0.02: tiny/model.onnx, garbled" for note in notes)
    assert any("this way needs the package other" in note for note in notes)


def test_films_must_be_named(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["pneumo-bench", "agreement", "--model", str(bundle)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--run RUN" in capsys.readouterr().err
