from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumo_bench import accuracy, machine, picture, process, results, training, training_worker
from pneumo_bench.inputs import open_bundles, sample_films
from pneumo_bench.latency import enter, latency_table, time_all
from pneumo_bench.machine import Watch
from pneumo_bench.robustness import DISTURBANCES, disturb
from pneumo_bench.spread import percentile, ratio_text, ratios, spread
from pneumo_bench.training import training_table
from pneumo_edge.atomic import write_json
from pneumo_edge.bundle import (
    FORMAT_VERSION,
    LABELS,
    Calibration,
    Description,
    InputContract,
    Interval,
    ModelFile,
    OperatingPoint,
    Provenance,
    write_description,
)
from pneumo_edge.calibrate.measure import measure
from pneumo_edge.classifier import Classifier, Prediction
from pneumo_edge.errors import DataError, MissingExtraError, PneumoError, RunError, UsageError
from pneumo_edge.overlay import draw_overlay
from pneumo_train.backbones import BACKBONES
from pneumo_train.films import Box, FilmFile
from pneumo_train.phantom import draw_phantoms
from pneumo_train.pointing import measure_pointing
from pneumo_train.run import FORMAT_VERSION as RUN_FORMAT
from pneumo_train.run import METRICS, Config, Run, write_config
from pneumo_train.sites import measure_sites
from pneumo_train.sources import KAGGLE_PATIENT, gather
from pneumo_train.split import write_split

SIZE = 32
HEAVY = ("tensorflow", "keras")


def model_bytes(middle: float) -> bytes:
    """A graph that keeps the contract: the brighter the film is, compared with `middle`, the more it is pneumonia."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {"middle": [middle], "scale": [0.1], "levels": [255.0]}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["grey"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Sub", ["mean", "middle"], ["above"]),
            helper.make_node("Mul", ["above", "scale"], ["logit"]),
            helper.make_node("ReduceMean", ["grey"], ["heatmap"], axes=[3], keepdims=0),
            helper.make_node("Div", ["mean", "levels"], ["novelty"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE, 1])],
        [
            helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["n", SIZE, SIZE]),
            helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["n"]),
        ],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def write_bundle(folder: Path, files: dict[str, bytes], name: str = "tiny") -> Path:
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    half = Interval(0.5, 0.4, 0.6)
    description = Description(
        FORMAT_VERSION,
        name,
        "none",
        "gap",
        InputContract("image", "uint8", SIZE, 1),
        LABELS,
        Calibration(1.0, 0.0, 0.5),
        {"balanced": OperatingPoint(0.5, half, half)},
        "balanced",
        Provenance("phantoms", {}, "none", "2018-02-22", {}),
        {
            file: ModelFile(
                "int8" if "int8" in file else "fp32", len(content), hashlib.sha256(content).hexdigest(), 0.5
            )
            for file, content in files.items()
        },
    )
    write_description(folder, description)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The second file has another middle, so that some verdicts differ.
    files = {"model.onnx": model_bytes(105), "model.int8.onnx": model_bytes(125)}
    return write_bundle(tmp_path_factory.mktemp("bench") / "bundle", files)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_phantoms(tmp_path_factory.mktemp("bench") / "phantoms", films=80, seed=1)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """As much of a run as the benchmark reads: the films in val/ are held back."""
    run = tmp_path_factory.mktemp("bench") / "run"
    run.mkdir()
    config = Config(
        RUN_FORMAT, (str(phantoms),), {"phantoms": "phantoms"}, {}, {}, {}, None, "0" * 64, KAGGLE_PATIENT, "none",
        "gap", SIZE, "none", "none", 1, 1, 1e-3, 0, "weights", (), "float32", None, {}, "2018-02-22",
    )  # fmt: skip
    write_config(run, config)
    films = gather([str(phantoms)]).films
    write_split(run / "split.csv", films, ["validation" if film.folder == "val" else film.folder for film in films])
    return run


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pneumo_bench.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# ------------------------------------------------------------------------------------------------- statistics


def test_percentile_is_the_nearest_rank() -> None:
    values = list(range(100, 0, -1))
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.9) == 90
    assert percentile(values, 0.99) == 99
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_percentile_refuses_what_the_queries_cannot_tell() -> None:
    assert percentile(list(range(99)), 0.99) is None
    assert percentile(list(range(9)), 0.9) is None
    assert percentile([1.0], 0.5) is None


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert spread([4.0, 1.0]) == {"median": 2.5, "low": 1.0, "high": 4.0}
    assert spread([1.0, None]) is None
    assert spread([]) is None


def test_ratios_are_taken_within_a_round() -> None:
    # The second round was twice as slow for both: the ratio does not move.
    assert ratios([1.0, 2.0], [4.0, 8.0]) == {"median": 0.25, "low": 0.25, "high": 0.25}
    assert ratio_text({"median": 0.0625, "low": 0, "high": 0}) == "1/16.0"
    assert ratio_text({"median": 1.049, "low": 0, "high": 0}) == "1.05"
    assert ratio_text(None) == "–"


# ----------------------------------------------------------------------------------------------- the machine


class _FakePsutil:
    """A load average, and what the processors have done between the first look and the second."""

    def __init__(self, load: float, busy: float, steal: float) -> None:
        self._load = load
        self._looks = iter([SimpleNamespace(user=0.0, steal=0.0), SimpleNamespace(user=busy, steal=steal)])

    def getloadavg(self) -> tuple[float, float, float]:
        return (self._load, 0.0, 0.0)

    def cpu_times(self) -> SimpleNamespace:
        return next(self._looks)


@pytest.mark.parametrize(
    ("load", "busy", "own", "steal", "words"),
    [
        (0.3, 0.1, 0.0, 0.1, []),
        (3.0, 0.0, 0.0, 0.0, []),
        (0.3, 5.0, 0.0, 0.0, ["other processes took 25%"]),
        (0.3, 15.0, 14.5, 0.0, []),
        (0.3, 0.0, 0.0, 1.0, ["hypervisor took 5%"]),
        (1.5, 9.0, 4.0, 1.0, ["other processes took 25%", "hypervisor"]),
    ],
)
def test_company_is_noticed(
    monkeypatch: pytest.MonkeyPatch, load: float, busy: float, own: float, steal: float, words: list[str]
) -> None:
    # Ten seconds of two processors.
    fake, clock, spent = (
        _FakePsutil(load, busy, steal),
        iter((100.0, 110.0)),
        iter(((1.0, 0.0), (1.0 + own / 2, own / 2))),
    )
    monkeypatch.setattr(machine, "_psutil", lambda: fake)
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(spent))
    monkeypatch.setattr(machine, "os", SimpleNamespace(cpu_count=lambda: 2))
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = Watch().finish()
    assert found["seconds"] == 10.0
    assert len(found["busy"]) == len(words)
    for sentence, word in zip(found["busy"], words, strict=True):
        assert word in sentence


def test_the_time_of_workers_is_our_own() -> None:
    _, before = machine._own_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert machine._own_seconds()[1] - before > 0.25


def test_children_for_which_nobody_waited_are_our_own_where_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, clock = _FakePsutil(0.3, 10.0, 0.0), iter((100.0, 110.0))
    monkeypatch.setattr(machine, "_psutil", lambda: fake)
    monkeypatch.setattr(machine, "_own_seconds", lambda: (1.0, 2.0))
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(machine, "os", SimpleNamespace(cpu_count=lambda: 2))
    assert Watch().finish(children_seconds=9.9)["busy"] == []


def test_peak_memory_is_that_of_the_process_alone() -> None:
    held = np.ones(200_000_000, np.uint8)
    code = (
        "import numpy as np; from pneumo_bench.machine import peak_rss\n"
        "small = peak_rss(); x = np.ones(80_000_000, np.uint8); del x; print(small, peak_rss())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert small < len(held)
    if Path("/proc/self/status").exists():
        assert large - small > 70_000_000


def test_missing_psutil_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingExtraError, match=r"psutil: pip install 'pneumo\[bench\]'"):
        Watch()


# ------------------------------------------------------------------------------------------------ the inputs


def test_bundles_of_one_name_are_told_apart_by_their_folders(bundle: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", {"model.onnx": model_bytes(100)})
    third = write_bundle(tmp_path / "third", {"model.onnx": model_bytes(100)}, name="unlike")
    assert list(open_bundles([bundle])) == ["tiny"]
    assert list(open_bundles([bundle, other, third])) == [str(bundle), str(other), "unlike"]


def test_films_are_spread_over_the_folder(phantoms: Path, tmp_path: Path) -> None:
    with sample_films(phantoms, 8) as (films, name):
        assert len(films) == 8
        assert name == "phantoms"
        assert {film.parts[-3] for film in films} >= {"train", "test"}
    with pytest.raises(DataError, match="--films"), sample_films(tmp_path, 8):
        pass


# ------------------------------------------------------------------------------------------------- latency


@pytest.fixture(scope="module")
def timed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    output = tmp_path_factory.mktemp("bench") / "latency"
    baseline = "onnxruntime:tiny/model.onnx"
    options = ("--queries", "100", "--rounds", "2", "--threads", "1", "--baseline", baseline)
    return bench("latency", "--model", bundle, *options, "--output", output), output


def test_latency_times_every_file_and_its_peers(timed: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, output = timed
    assert done.returncode == 0, done.stderr
    record = read_json(output / "latency.json")
    results = {result["name"]: result for result in record["results"]}
    ours = {"tiny/model.onnx", "tiny/model.int8.onnx"}
    assert ours | {f"onnxruntime:{name}" for name in ours} <= set(results)
    for result in results.values():
        p50, p90, p99 = (result[key]["median"] for key in ("p50_ms", "p90_ms", "p99_ms"))
        assert 0 < p50 <= p90 <= p99
        assert result["p50_ms"]["low"] <= p50 <= result["p50_ms"]["high"]
        assert result["load_ms"]["median"] > 0
        assert result["first_ms"]["median"] > 0
        assert 10e6 < result["peak_rss"]["median"] < 2e9
        assert (result["films_per_second"] is not None) == (result["name"] in ours)
    for name in ours:
        best = results[name]["best_peer"]["name"]
        file_peers = [r for r in results.values() if r["name"].endswith(f":{name}")]
        assert best == min(file_peers, key=lambda r: float(r["p50_ms"]["median"]))["name"]
        assert all(peer["best_peer"] is None for peer in file_peers)
    base = results["onnxruntime:tiny/model.onnx"]
    assert base["p50_ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    # One model, one film: whichever engine it was, it answered the same.
    for name in ours:
        answers = [r["logit"] for r in results.values() if r["name"].endswith(name)]
        assert max(answers) - min(answers) < 1e-3
    assert results["tiny/model.onnx"]["logit"] != pytest.approx(results["tiny/model.int8.onnx"]["logit"])


def test_latency_says_where_and_how_it_was_measured(timed: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, output = timed
    record = read_json(output / "latency.json")
    assert record["command"].startswith("pneumo-bench latency --model ")
    assert record["machine"]["processor"]
    assert record["machine"]["cores"] >= 1
    assert {"python", "numpy", "onnxruntime"} <= set(record["machine"]["versions"])
    assert {"load_average_before", "load_average_after", "others_share", "busy"} <= set(record["load"])
    markdown = (output / "latency.md").read_text(encoding="utf-8")
    for text in (markdown, done.stdout):
        assert "tiny/model.int8.onnx" in text
        assert record["machine"]["processor"] in text
        assert ("THE MACHINE WAS BUSY" in text) == bool(record["load"]["busy"])
        assert "Keras predict and tf.function" in text
    assert record["command"] in markdown
    assert {file.name for file in output.iterdir()} == {"latency.json", "latency.md", "latency.png"}
    with Image.open(output / "latency.png") as figure:
        assert figure.width > 500


def test_a_missing_peer_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    record = time_all(open_bundles([bundle]), [], threads=[1], queries=10, rounds=1, baseline=None, films=None)
    assert [gap["name"] for gap in record["missing"]] == [
        "openvino:tiny/model.onnx",
        "openvino:tiny/model.int8.onnx",
        "litert:tiny/model.tflite",
    ]
    assert record["missing"][2]["reason"].startswith("the bundle has no model.tflite")
    note = "not timed: openvino:tiny/model.onnx: openvino is not installed: pip install 'pneumo[bench]'"
    assert note in latency_table(record).notes
    # Ten queries cannot tell a p99.
    assert record["results"][0]["p99_ms"] is None
    assert record["baseline"] == "tiny/model.onnx"


def test_an_engine_that_is_missing_costs_its_files_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    [(name, found)] = open_bundles([bundle]).items()
    stated = found.description.files["model.onnx"]
    files = found.description.files | {"model.tflite": stated}
    both = {name: replace(found, description=replace(found.description, files=files))}
    contestants, missing = enter(both, [])
    assert "tiny/model.onnx" in {contestant.name for contestant in contestants}
    assert {gap["name"] for gap in missing} >= {"tiny/model.tflite", "litert:tiny/model.tflite"}


def test_a_file_that_its_engine_refuses_is_reported_and_the_others_are_timed(tmp_path: Path) -> None:
    files = {"model.onnx": model_bytes(105), "model.int8.onnx": b"no model at all"}
    done = bench(
        "latency", "--model", write_bundle(tmp_path / "b", files), "--queries", "10", "--rounds", "1", "--threads", "1"
    )
    assert done.returncode == 1, done.stderr
    assert (
        "failed: tiny/model.int8.onnx, 1 thread: model.int8.onnx is no model that ONNX Runtime accepts" in done.stdout
    )
    assert "Traceback" not in done.stdout + done.stderr


def test_an_unknown_baseline_lists_what_there_is(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing called resnet50.*tiny/model\.onnx"):
        time_all(open_bundles([bundle]), [], threads=[1], queries=10, rounds=1, baseline="resnet50", films=None)


# ------------------------------------------------------------------------------------------------- accuracy


@pytest.fixture(scope="module")
def judged(
    bundle: Path, phantoms: Path, timed: tuple[subprocess.CompletedProcess[str], Path]
) -> tuple[subprocess.CompletedProcess[str], Path]:
    output = timed[1].parent / "accuracy"
    latency = timed[1] / "latency.json"
    done = bench("accuracy", "--model", bundle, "--data", phantoms, "--latency", latency, "--output", output)
    return done, output


def test_accuracy_is_what_the_classifier_says(
    judged: tuple[subprocess.CompletedProcess[str], Path], bundle: Path, phantoms: Path
) -> None:
    done, output = judged
    assert done.returncode == 0, done.stderr
    record = read_json(output / "accuracy-test.json")
    right = {}
    films = sorted(phantoms.glob("test/*/*.jpeg"))
    for result in record["results"]:
        file = result["name"].split("/")[1]
        with Classifier.load(bundle, file=file, force_verdict=True) as classifier:
            answers = [classifier.predict(film) for film in films]
        assert all(isinstance(answer, Prediction) for answer in answers)
        right[file] = np.array([a.label == film.parent.name for a, film in zip(answers, films, strict=True)])
        at = result["measures"]["operating_points"]["balanced"]
        assert result["measures"]["n"] == len(films)
        assert at["accuracy"]["value"] == pytest.approx(right[file].mean())
        assert at["accuracy"]["low"] <= at["accuracy"]["value"] <= at["accuracy"]["high"]
        assert result["withheld"] == pytest.approx(np.mean([not answer.in_distribution for answer in answers]))
        assert {"auc", "ece"} <= set(result["measures"])
    first, second = record["results"]
    assert first["flips"] == {"lost": 0, "won": 0, "mcnemar_p": 1.0}
    before, after = right["model.onnx"], right["model.int8.onnx"]
    assert second["flips"]["lost"] == np.sum(before & ~after) > 0
    assert second["flips"]["won"] == np.sum(after & ~before)


def test_accuracy_writes_a_table_and_figures(judged: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, output = judged
    names = {"accuracy-test.json", "accuracy-test.md", "accuracy-test.png", "accuracy-test-latency.png"}
    assert {file.name for file in output.iterdir()} == names
    markdown = (output / "accuracy-test.md").read_text(encoding="utf-8")
    assert "| tiny/model.int8.onnx |" in markdown
    assert f"{read_json(output / 'accuracy-test.json')['settings']['films']} test films of" in markdown
    assert "has no times of" not in done.stderr


def test_validation_films_are_also_disturbed(bundle: Path, run_folder: Path, phantoms: Path, tmp_path: Path) -> None:
    done = bench(
        "accuracy", "--model", bundle, "--split", "validation", "--run", run_folder, "--output", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    record = read_json(tmp_path / "out" / "accuracy-validation.json")
    assert record["settings"]["films"] == len(list(phantoms.glob("val/*/*.jpeg")))
    result = record["results"][0]
    found = {(each["disturbance"], each["strength"]): each for each in result["robustness"]}
    assert len(found) == sum(len(disturbance.strengths) for disturbance in DISTURBANCES) == 28
    clean = result["measures"]["operating_points"]["balanced"]["accuracy"]["value"]
    for each in found.values():
        assert each["accuracy_drop"] == pytest.approx(clean - each["accuracy"]["value"])
        assert each["auc_drop"] == pytest.approx(result["measures"]["auc"]["value"] - each["auc"]["value"])
    # The model goes by the mean grey: a gamma of 2 makes every film darker, and no film is pneumonia any more.
    assert found["exposure", 2.0]["accuracy"]["value"] < clean
    assert (tmp_path / "out" / "robustness.png").stat().st_size > 10_000
    assert "exposure (gamma)" in done.stdout


def test_a_film_that_cannot_be_read_is_named(bundle: Path, tmp_path: Path) -> None:
    phantoms = draw_phantoms(tmp_path / "phantoms", films=40)
    films = sorted(phantoms.glob("test/*/*.jpeg"))
    films[0].write_text("no film")
    done = bench("accuracy", "--model", bundle, "--data", phantoms)
    assert done.returncode == 1, done.stderr
    assert f"not read: {films[0]} is not an image" in done.stdout
    assert f"{len(films) - 1} test films" in done.stdout


def test_the_test_films_need_no_training_films_beside_them(phantoms: Path, tmp_path: Path) -> None:
    films = gather([str(phantoms)]).films
    there = accuracy.test_split([str(phantoms)])
    assert there.files == tuple(film for film in films if film.folder == "test")
    (tmp_path / "chest_xray").mkdir()
    with pytest.raises(DataError, match="holds no test/ folder"):
        accuracy.test_split([str(tmp_path)])
    shutil.copytree(phantoms / "test", tmp_path / "chest_xray" / "test")
    litter = tmp_path / "chest_xray" / "test" / "NORMAL" / "__MACOSX"
    litter.mkdir()
    (litter / "film.jpeg").write_text("no film")
    (litter.parent / "._film.jpeg").write_text("no film")
    alone = accuracy.test_split([f"{there.files[0].site}={tmp_path}"])
    assert alone.roots == (tmp_path / "chest_xray",)
    assert alone.files == there.files


# ----------------------------------------------------------------------------------------------- robustness


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda d: str(d.name))
def test_a_disturbance_grows_with_its_strength_and_is_always_the_same(disturbance: Any, phantoms: Path) -> None:
    with Image.open(sorted(phantoms.glob("test/*/*.jpeg"))[0]) as film:
        films = np.asarray(film.convert("L").resize((96, 96)))[np.newaxis]

    def change(strength: float) -> float:
        changed = disturb(films, ["a"], disturbance, strength)
        assert changed.shape == films.shape
        assert changed.dtype == np.uint8
        assert np.array_equal(changed, disturb(films, ["a"], disturbance, strength))
        return float(np.abs(changed.astype(int) - films).mean())

    assert 3 <= len(disturbance.strengths) <= 4
    if disturbance.neutral is None:
        assert change(disturbance.strengths[-1]) > change(disturbance.strengths[0]) > 0
        return
    assert change(disturbance.neutral) < 0.01
    for side in (1, -1):
        # From the neutral strength outward.
        strengths = sorted(
            (s for s in disturbance.strengths if (s - disturbance.neutral) * side > 0), key=lambda s: s * side
        )
        changes = [change(strength) for strength in strengths]
        assert all(a < b for a, b in zip([0.0, *changes], changes, strict=False))


def test_each_film_is_disturbed_by_its_own_lot(phantoms: Path) -> None:
    with Image.open(sorted(phantoms.glob("test/*/*.jpeg"))[0]) as film:
        films = np.asarray(film.convert("L").resize((96, 96)))[np.newaxis]
    [noise] = [disturbance for disturbance in DISTURBANCES if disturbance.name == "noise"]
    assert not np.array_equal(disturb(films, ["a"], noise, 8), disturb(films, ["b"], noise, 8))


# ----------------------------------------------------------------------------------------------- end to end


def test_end_to_end_times_the_parts(bundle: Path, tmp_path: Path) -> None:
    done = bench("end-to-end", "--model", bundle, "--rounds", "1", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = read_json(tmp_path / "out" / "end-to-end.json")
    # pneumo-infer takes int8 before fp32; the bare script is timed on both.
    assert {(r["name"], r["mode"]) for r in record["results"]} == {
        (name, mode)
        for name in ("tiny/model.int8.onnx", "bare:tiny/model.onnx", "bare:tiny/model.int8.onnx")
        for mode in ("cold", "warm")
    }
    for result in record["results"]:
        times = {part: found["median"] for part, found in result["milliseconds"].items()}
        total = times.pop("total")
        cold = {"python", "import", "load"} if result["mode"] == "cold" else set()
        assert set(times) == {"decode", "infer", "print"} | cold
        assert total == pytest.approx(sum(times.values()), abs=1e-3)
        assert all(value > 0 for value in times.values())
        # An interpreter with NumPy, Pillow and an engine, and not the whole machine.
        if sys.platform == "linux":
            assert 30e6 < result["peak_rss"]["median"] < 500e6
    assert record["results"][0]["ratio"]["median"] == 1.0
    install = record["install"]
    assert {"pneumo", "numpy", "ai-edge-litert", "pillow", "typer", "rich"} < set(install)
    assert not {"tensorflow", "matplotlib", "onnxruntime"} & set(install)
    assert install["total"] == sum(size for name, size in install.items() if name != "total")
    assert install["ai-edge-litert"] > 10e6
    assert "the base install takes" in done.stdout
    assert "1500 x" in done.stdout
    names = {"end-to-end.json", "end-to-end.md", "end-to-end.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


# ------------------------------------------------------------------------------------------------- training


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Trains here: importing TensorFlow once for each training would take a minute. Returns the jobs."""
    pytest.importorskip("tensorflow", reason="training needs TensorFlow")
    jobs: list[dict[str, Any]] = []

    def ask(module: str, job: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        assert module == training_worker.__name__
        jobs.append(job)
        with monkeypatch.context() as patched:
            patched.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])
            return training_worker.time_training(**job)

    monkeypatch.setattr(training, "ask", ask)
    return jobs


def test_training_is_timed_in_both_ways(
    in_this_process: list[dict[str, Any]], phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras import layers

    def build(image: Any) -> Any:
        small = layers.Conv2D(8, 8, 8, name="first")(image)
        return layers.Conv2D(8, 4, 4, activation="relu", name="second")(small)

    monkeypatch.setitem(BACKBONES, "tiny", replace(BACKBONES["mobilenetv2"], name="tiny", build=build))
    record = training.time_both(phantoms, backbone="tiny", size=32, epochs=2, batch_size=8, films=12, rounds=1)
    ours, usual = record["results"]
    assert (ours["way"], usual["way"]) == ("pneumo-train", "usual way")
    assert len(in_this_process) == 2
    assert record["settings"]["films"] == 12
    assert ours["epochs"] == usual["epochs"] == 2
    assert ours["films_per_second"]["median"] == pytest.approx(12 * 2 / ours["seconds"]["median"], rel=1e-3)
    assert ours["ratio"]["median"] == pytest.approx(
        ours["films_per_second"]["median"] / usual["films_per_second"]["median"], rel=1e-3
    )
    assert usual["ratio"]["median"] == 1.0
    assert [line[:2] for line in training_table(record).rows] == [("pneumo-train", "2"), ("usual way", "2")]


def test_those_layers_learn_that_pneumo_train_lets() -> None:
    pytest.importorskip("tensorflow", reason="training needs TensorFlow")
    tuned = training_worker._build("mobilenetv2", 32)
    paths = [weight.path for weight in tuned.trainable_weights]
    assert len(paths) > 50
    assert not [path for path in paths if "_BN/" in path]


def test_a_training_that_fails_is_one_sentence(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorflow", reason="training needs TensorFlow")
    monkeypatch.setattr(training, "ask", lambda *_: {"error": "no memory"})
    with pytest.raises(PneumoError, match="pneumo-train could not be timed: no memory"):
        training.time_both(phantoms, backbone="mobilenetv2", size=32, epochs=1, batch_size=8, films=12, rounds=1)


def test_training_without_tensorflow_is_one_sentence(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError, match=r"tensorflow: pip install 'pneumo\[train\]'"):
        training.time_both(phantoms, backbone="mobilenetv2", size=32, epochs=1, batch_size=8, films=12, rounds=1)


def test_the_films_are_spread_over_both_classes(phantoms: Path) -> None:
    films = gather([str(phantoms)]).films
    train = [film for film in films if film.folder == "train"]
    chosen = training._spread(train, 12)
    assert len(chosen) == 12
    assert {film.label for film in chosen} == {0, 1}
    assert training._spread(train, 0) == training._spread(train, 10_000) == train
    with pytest.raises(DataError, match="that Keras can read"):
        training._spread([replace(film, path="train/NORMAL/a.dcm") for film in train], 0)


def test_a_process_that_dies_is_an_answer() -> None:
    assert process.ask("pneumo_bench.nothing", {})["error"].startswith("its process ended with 1: ")
    assert process.ask("pneumo_bench.worker", {"engine": "x"})["error"].startswith("time_engine() missing")


# ---------------------------------------------------------------------------------------------- docs/results


@pytest.fixture
def finished(run_folder: Path, tmp_path: Path) -> Path:
    """A run with all its files, as far as they matter here, and a bundle."""
    run = tmp_path / "runs" / "lite0"
    shutil.copytree(run_folder, run)
    config = replace(Run(run).config, weights=str(tmp_path / "w.h5"), teachers=(str(tmp_path / "runs" / "r50"),))
    write_config(run, replace(config, started_from=f"{tmp_path / 'w.h5'}: 9 of 9 layers loaded"))
    labels, p = np.array([0, 1] * 10), np.linspace(0.1, 0.9, 20)
    measures = measure(labels, p, [str(i) for i in range(20)], {"balanced": 0.5})
    metrics = dict.fromkeys(METRICS) | {"validation": measures, "validation_perturbed": measures}
    write_json(run / "metrics.json", metrics)
    (run / "bundle").mkdir()
    parity = {"data": "films", "calibration_films": ["train/NORMAL/a.jpeg"], "reason": f"({run}/model.keras) is gone"}
    write_json(run / "bundle" / "parity.json", parity)
    kept_back = (
        "predictions.csv", "report.html", "mistakes.png", "overlays.png", "augmentation.png", "model.keras",
    )  # fmt: skip
    for name in ("history.csv", *results.FIGURES, *kept_back, "bundle/model.onnx"):
        (run / name).write_text(name)
    return run


def test_what_is_collected_names_no_folder_and_holds_no_film(finished: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs" / "results"
    (docs / "bench").mkdir(parents=True)
    (docs / "bench" / "latency.md").write_text("times")
    results.main([str(docs), str(finished)])
    assert {file.name for file in (docs / "lite0").iterdir()} == {
        "config.json", "metrics.json", "history.csv", "parity.json", "curves.png", "confusion.png", "roc_pr.png",
        "reliability.png", "scores.png", "sites.png",
    }  # fmt: skip
    config = read_json(docs / "lite0" / "config.json")
    assert config["data"] == "; ".join(config["sources"].values()) == "phantoms"
    assert config["weights"] == "w.h5"
    assert config["teachers"] == ["r50"]
    assert config["started_from"] == "w.h5: 9 of 9 layers loaded"
    parity = read_json(docs / "lite0" / "parity.json")
    assert parity["calibration_films"] == ["train/NORMAL/a.jpeg"]
    assert parity["reason"] == "(model.keras) is gone"
    assert read_json(docs / "lite0" / "metrics.json") == read_json(finished / "metrics.json")
    for file in docs.rglob("*"):
        assert file.is_dir() or str(tmp_path) not in file.read_text(encoding="utf-8"), file
    summary = read_json(docs / "results.json")
    assert summary["bench"] == ["bench/latency.md"]
    assert summary["runs"]["lite0"]["validation"]["n"] == 20
    assert summary["runs"]["lite0"]["test"] is None
    markdown = (docs / "results.md").read_text(encoding="utf-8")
    assert "| [lite0](lite0/metrics.json) | none, gap, 32 | 20 validation, perturbed |" in markdown
    assert "(bench/latency.md)" in markdown


def test_results_of_an_earlier_recipe_stand_apart_and_link_to_the_same_page(finished: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs" / "results"
    for folder, up in ((docs, "../"), (docs / "earlier", "../../")):
        results.main([str(folder), str(finished)])
        markdown = (folder / "results.md").read_text(encoding="utf-8")
        assert f"]({up}benchmarks.md)" in markdown
    assert "Made by `python -m pneumo_bench.results docs/results/earlier RUN...`" in markdown


def test_runs_of_one_recipe_are_averaged_and_those_of_before_stay(finished: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    results.main([str(docs), str(finished)])
    other = finished.with_name("another-seed")
    shutil.copytree(finished, other)
    # Not exported: its training is a result all the same.
    shutil.rmtree(other / "bundle")
    write_config(other, replace(Run(other).config, seed=7))
    metrics = read_json(other / "metrics.json")
    metrics["validation"]["auc"]["value"] -= 0.02
    write_json(other / "metrics.json", metrics)
    flat = finished.with_name("flat")
    shutil.copytree(finished, flat)
    write_config(flat, replace(Run(flat).config, head="flatten"))
    shutil.rmtree(finished)
    results.main([str(docs), str(other), str(flat)])
    assert not (docs / "another-seed" / "parity.json").exists()
    summary = read_json(docs / "results.json")
    assert list(summary["runs"]) == ["another-seed", "flat", "lite0"]
    assert list(summary["seeds"]) == ["another-seed"]
    group = summary["seeds"]["another-seed"]
    assert group["runs"] == ["another-seed", "lite0"]
    value = summary["runs"]["lite0"]["validation"]["auc"]["value"]
    assert group["validation"]["auc"] == pytest.approx({"mean": value - 0.01, "sd": 0.02 / np.sqrt(2)})
    assert "test" not in group
    assert f"| another-seed, lite0 | validation | {value - 0.01:.3f} ± 0.014 |" in (docs / "results.md").read_text()


def test_several_sites_and_heatmaps_have_rows_of_their_own(finished: Path, tmp_path: Path) -> None:
    split, films = judged_films({"plain": [0, 1] * 10, "boxed": [0] * 10 + [1] * 30})
    logits = (films.labels - 0.5) * 2 + np.random.default_rng(0).normal(0, 1, len(split.files))
    judged, plain = films.at(SIZE), Calibration(1.0, 0.0, 0.5)
    measures = measure_sites(judged, logits, plain, {"balanced": 0.5})
    maps = films.pixels[SIZE].astype(float)
    boxes = [film.boxes for film in split.files]
    pointing = measure_pointing(maps, boxes, films.labels, logits > 0, judged.patients, judged.sites, None)
    one = measure_sites(judged, logits, plain, {"balanced": 0.5}) | {"mean": None}
    metrics = read_json(finished / "metrics.json")
    metrics |= {"validation": measures | {"pointing": pointing}, "left_out": one, "test": measures}
    write_json(finished / "metrics.json", metrics)
    results.main([str(tmp_path / "docs"), str(finished)])
    run = read_json(tmp_path / "docs" / "results.json")["runs"]["lite0"]
    assert run["validation"]["auc"] == measures["mean"]["auc"]
    assert run["validation"]["sites"]["boxed"]["auc"] == measures["sites"]["boxed"]["auc"]
    assert run["validation"]["pointing"]["films"] == 30
    assert run["left_out"] is None
    markdown = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    area = measures["mean"]["auc"]
    assert f"| 60 test, mean over 2 sites | {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f}) |" in markdown
    assert "| 40 validation: boxed |" in markdown
    assert "| [lite0](lite0/metrics.json) | 30 validation | 1.000 (1.000 to 1.000) |" in markdown


def test_an_unfinished_run_leaves_what_was_collected_before(finished: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    results.collect(finished, docs)
    (finished / "scores.png").unlink()
    with pytest.raises(RunError, match=r"holds no scores\.png"):
        results.collect(finished, docs)
    assert (docs / "lite0" / "scores.png").exists()
    assert [path.name for path in docs.iterdir()] == ["lite0"]
    with pytest.raises(UsageError, match="rename the run"):
        results.collect(finished.rename(finished.with_name("bench")), docs)


def test_the_picture_is_a_phantom_and_says_so(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, ...]] = []

    def draw(source: str, prediction: Prediction) -> Image.Image:
        said.append(prediction.warnings)
        return draw_overlay(source, prediction)

    monkeypatch.setattr(picture, "draw_overlay", draw)
    picture.draw_picture(tmp_path / "film.png", bundle)
    assert said == [(picture.CAPTION,)]
    with Image.open(tmp_path / "film.png") as drawn:
        assert drawn.format == "PNG"
        assert drawn.width == picture.WIDTH
    assert (tmp_path / "film.png").stat().st_size < 150_000


# ------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["latency", "--model", "nowhere"], "nowhere is not a folder"),
        (["latency", "--model", "BUNDLE", "--threads", "one"], "--threads one is no list of positive numbers"),
        (["latency", "--model", "BUNDLE", "--threads", "0"], "--threads 0"),
        (["latency", "--model", "BUNDLE", "--queries", "1"], "--queries"),
        (["latency", "--model", "BUNDLE", "--baseline", "resnet50"], "nothing called resnet50"),
        (["latency", "--model", "BUNDLE", "--run", "nowhere"], "nowhere"),
        (["accuracy", "--model", "BUNDLE"], "--data"),
        (["accuracy", "--model", "BUNDLE", "--data", "nowhere"], "nowhere is no folder"),
        (["accuracy", "--model", "BUNDLE", "--split", "validation"], "--run"),
        (["accuracy", "--model", "BUNDLE", "--data", ".", "--run", "."], "--split validation"),
        (["accuracy", "--model", "BUNDLE", "--data", ".", "--latency", "x.json"], "--output"),
        (["accuracy", "--model", "BUNDLE", "--data", ".", "--latency", "x.json", "--output", "o"], "no latency.json"),
        (["end-to-end", "--model", "BUNDLE", "--baseline", "resnet50"], "nothing called resnet50"),
        (["end-to-end", "--model", "BUNDLE", "--films", "EMPTY"], "EMPTY holds no films"),
        (["training"], "--data"),
        (["training", "--data", "EMPTY"], "EMPTY holds no train/ folder"),
        (["training", "--data", "EMPTY", "--backbone", "resnet51"], "no backbone 'resnet51'"),
        (["training", "--data", "EMPTY", "--size", "100"], "multiple of 32"),
        (["speed"], "speed"),
        ([], "command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_one_sentence_and_two(
    arguments: list[str], words: str, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from pneumo_bench import cli

    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pneumo-bench", *(str(bundle) if a == "BUNDLE" else a for a in arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    shown = "".join(capfd.readouterr())
    assert stopped.value.code == 2
    assert words in shown
    assert "Traceback" not in shown


def test_every_option_has_help() -> None:
    import typer

    from pneumo_bench.cli import app

    command = typer.main.get_command(app)
    commands = [command, *command.commands.values()]  # type: ignore[attr-defined]
    assert {c.name for c in commands[1:]} == {
        "latency", "layers", "accuracy", "agreement", "end-to-end", "training", "serve", "http", "archive", "sites",
        "faithful", "calibration", "web", "web-agreement",
    }  # fmt: skip
    for each in commands:
        assert all(getattr(parameter, "help", None) for parameter in each.params), each.name


def test_no_tensorflow_is_imported(bundle: Path, phantoms: Path) -> None:
    code = f"""
import sys
from pneumo_bench.cli import app
for arguments in (
    ["latency", "--model", {str(bundle)!r}, "--queries", "10", "--rounds", "1", "--threads", "1"],
    ["accuracy", "--model", {str(bundle)!r}, "--data", {str(phantoms)!r}],
):
    app(arguments, standalone_mode=False)
import pneumo_bench.worker, pneumo_bench.end_to_end, pneumo_bench.plots
print("imported:", *sorted({{name.split(".")[0] for name in sys.modules}} & set({(*HEAVY, "matplotlib")!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported:"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pneumo_bench import cli\n"
        "print(*(m for m in ('numpy', 'onnxruntime', 'sklearn', 'tensorflow', 'matplotlib') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tensorflow" not in done.stdout
    assert "onnxruntime" not in done.stdout
    assert "matplotlib" not in done.stdout


# -------------------------------------------------------------------------------- accuracy: sites, boxes, pictures


def judged_films(sites: dict[str, list[int]]) -> tuple[accuracy.Split, accuracy.Decoded]:
    """Films of 32 x 32 pixels, grey 90 or 130 by label; the pneumonias of "boxed" have a bright quarter and a box."""
    files, pixels = [], []
    for site, labels in sites.items():
        for i, label in enumerate(labels):
            film = np.full((SIZE, SIZE), (90, 130)[label], np.uint8)
            boxes: tuple[Box, ...] = ()
            if label and site == "boxed":
                film[:16, :16] = 250
                boxes = (Box(0.0, 0.0, 0.5, 0.5),)
            files.append(FilmFile(f"{site}/{i}.png", label, f"p{i}", "test", site, boxes=boxes))
            pixels.append(film)
    known = {SIZE: np.zeros(len(files), bool)}
    films = accuracy.Decoded(tuple(files), np.array([f.label for f in files]), {SIZE: np.stack(pixels)}, known, ())
    return accuracy.Split("test", (Path("nowhere"),), tuple(files)), films


def test_several_sites_are_judged_apart_and_in_the_mean(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Between 105 and 125 the two files part: the second calls the bright normals of "bright" NORMAL.
    split, films = judged_films({"plain": [0, 1] * 10, "boxed": [0] * 10 + [1] * 30, "normals": [0] * 5})
    films.pixels[SIZE][:5] = 115
    films.doubtful[SIZE][-1] = True
    pictures = replace(films, files=tuple(replace(f, site="cat") for f in films.files[:2]))
    pictures = replace(pictures, pixels={SIZE: np.full((2, SIZE, SIZE), 255, np.uint8)}, labels=np.zeros(2, int))
    pictures = replace(pictures, doubtful={SIZE: np.zeros(2, bool)})
    others = accuracy.Split("other", (Path("elsewhere"),), pictures.files)
    monkeypatch.setattr(accuracy, "decode", lambda which, _: pictures if which is others else films)
    record = accuracy.judge_all(open_bundles([bundle]), split, others)
    assert record["settings"]["sites"] == ["plain", "boxed", "normals"]
    first = record["results"][0]
    sites = first["measures"]["sites"]
    assert list(sites) == ["plain", "boxed"]
    each = [sites[site]["operating_points"]["balanced"]["accuracy"]["value"] for site in sites]
    assert each == [pytest.approx(17 / 20), pytest.approx(1.0)]
    mean = first["measures"]["mean"]["operating_points"]["balanced"]["accuracy"]["value"]
    assert mean == pytest.approx(np.mean(each))
    assert first["measures"]["one_class"]["normals"]["right"]["balanced"]["value"] == 1.0
    assert first["withheld_by_site"]["normals"] == pytest.approx(0.2)
    # The heatmap is the film itself: brightest in the box, whatever the head says.
    pointing = first["pointing"]["sites"]["boxed"]["all"]
    assert pointing["films"] == 30
    assert pointing["points"]["value"] == 1.0
    assert pointing["pixel_auc"]["value"] == 1.0
    assert first["pointing"]["region_threshold"] is None
    # Novelty is the mean grey, and nothing is as bright as white.
    told = first["not_chest"]
    assert (told["n"], told["withheld"], told["novelty_auc"]) == (2, 1.0, 1.0)
    assert list(told["kinds"]) == ["cat"]
    tables = {table.title: table for table in accuracy.accuracy_tables(record)}
    assert list(tables) == ["Accuracy on test films", "By site", "Heatmaps against boxes", "Other pictures"]
    assert tables["Accuracy on test films"].rows[0][2].startswith(f"{mean:.1%}")
    assert [row[1] for row in tables["By site"].rows[:3]] == ["plain", "boxed", "normals"]
    for table in tables.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_pictures_that_are_no_chest_film_are_counted_by_folder(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    for kind, grey in {"white": 255, "grey": 20}.items():
        (tmp_path / "others" / kind).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(-20, 20, (120, 120))
        Image.fromarray(np.clip(noise + grey, 0, 255).astype(np.uint8)).save(tmp_path / "others" / kind / "a.png")
    out = tmp_path / "out"
    done = bench("accuracy", "--model", bundle, "--data", phantoms, "--not-chest", tmp_path / "others", "--output", out)
    assert done.returncode == 0, done.stderr
    told = read_json(out / "accuracy-test.json")["results"][0]["not_chest"]
    assert told["n"] == 2
    assert told["kinds"]["white"] == {"n": 1, "withheld": 1.0, "novel": 1.0, "novelty_auc": 1.0}
    # Dark pictures are not novel to a model that goes by the mean grey.
    assert told["kinds"]["grey"]["novelty_auc"] == 0.0
    assert "| tiny/model.onnx | white | 1 | 100.0% | 100.0% | 1.0000 |" in (out / "accuracy-test.md").read_text()
    (tmp_path / "empty").mkdir()
    done = bench("accuracy", "--model", bundle, "--data", phantoms, "--not-chest", tmp_path / "empty")
    assert done.returncode == 2
    assert "holds no pictures" in done.stderr
