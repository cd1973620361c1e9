"""pneumo-bench layers on the model that comes with pneumo and on a tiny one. What is asserted holds for any speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import WriteBundle

from pneumo_bench.cli import main
from pneumo_bench.inputs import open_bundles
from pneumo_bench.layers import KINDS, OTHERS, profile_all

pytest.importorskip("psutil", reason="benchmarks need pneumo[bench]")
pytest.importorskip("onnxruntime", reason="needs pneumo[onnx]")


def test_every_operation_is_of_one_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="--output needs pneumo[bench]")
    monkeypatch.setattr("sys.argv", ["pneumo-bench", "layers", "--films", "3", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    (result,) = json.loads((tmp_path / "layers.json").read_text())["results"]
    assert list(result["kinds"]) == [*KINDS, OTHERS]
    assert sum(kind["share"] for kind in result["kinds"].values()) == pytest.approx(1)
    assert result["microseconds"] == pytest.approx(sum(o["microseconds"] for o in result["operators"].values()))
    # EfficientNet-Lite0 has 49 convolutions; the engine may join one with its neighbours, but lose none.
    convolutions = [result["operators"].get(name, {"number": 0})["number"] for name in ("QLinearConv", "Conv")]
    assert min(convolutions) > 0
    assert sum(convolutions) >= 49
    assert result["name"] in (tmp_path / "layers.md").read_text()


def test_a_tiny_network_has_no_int8(bundle: Path) -> None:
    (result,) = profile_all(open_bundles([bundle]), films=2)["results"]
    assert result["kinds"]["int8 convolutions and sums"] == {"number": 0, "microseconds": 0.0, "share": 0.0}
    assert result["kinds"][OTHERS]["number"] >= 4  # two means, a difference and a product at least


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model.onnx", "tiny/model.onnx is no model that ONNX Runtime accepts"),
        ("model.tflite", "no model has an ONNX file to profile: give one that was exported with --formats onnx"),
    ],
)
def test_what_cannot_be_profiled_is_one_sentence(
    write_bundle: WriteBundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    words: str,
) -> None:
    folder = write_bundle({file: b"no graph"})
    monkeypatch.setattr("sys.argv", ["pneumo-bench", "layers", "--model", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert "Traceback" not in shown.err
