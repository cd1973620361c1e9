"""From films to verdicts. The tiny model's answers are worked out by hand: with m = mean grey / 255 its logit is
8 (m - 0.5) and its novelty 4 |m - 0.5|; calibration is sigmoid(0.5 logit + 0.25) at a prevalence of 0.75. Every
processor has the mean of 1,024 grey levels to seven digits, so three decimals hold on all of them."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumo_edge import Classifier, Prediction
from pneumo_edge import classifier as module
from pneumo_edge.backends import open_backend
from pneumo_edge.bundle import DEFAULT_BUNDLE
from pneumo_edge.classifier import Failure, usable_cores
from pneumo_edge.errors import BundleError, ImageError, MissingExtraError, PneumoError, UsageError
from pneumo_edge.overlay import FULL_EVIDENCE, colour_heatmap, draw_overlay
from pneumo_edge.plausibility import MAX_ASPECT, MAX_CHROMA, MIN_CONTRAST, MIN_SIDE, objections
from pneumo_edge.preprocess import Film

WriteBundle = Callable[..., Path]


def picture(mean: float, *, height: int = 128, width: int = 128, swing: float = 24) -> bytes:
    """A PNG of the given mean grey level with enough contrast to be a film: a step from dark to light."""
    grey = np.full((height, width), mean - swing)
    grey[:, width // 2 :] = mean + swing
    return encoded(np.rint(grey).astype(np.uint8))


def encoded(pixels: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(bundle, threads=1) as opened:
        yield opened


# ----------------------------------------------------------------------------------------- one film, by hand


def test_logit_probability_and_heatmap_are_those_of_the_hand(classifier: Classifier) -> None:
    answer = classifier.predict(picture(120, swing=60))
    # m = 120 / 255; logit = 8 (0.470588 - 0.5); 0.5 logit + 0.25 = 0.132353; sigmoid of that.
    assert answer.logit == pytest.approx(-0.235294, abs=1e-3)
    assert answer.probability == pytest.approx(0.533040, abs=1e-4)
    assert answer.novelty == pytest.approx(0.117647, abs=1e-3)
    assert answer.threshold == pytest.approx(0.5)
    assert answer.operating_point == "balanced"
    assert (answer.label, answer.in_distribution, answer.warnings) == ("PNEUMONIA", True, ())
    assert (answer.model, answer.file, answer.path) == ("tiny", "model.onnx", "-")
    assert answer.heatmap.shape == (4, 4)
    assert answer.heatmap[:, 0] == pytest.approx(60 / 255 - 0.5, abs=2e-3)
    assert answer.heatmap[:, 3] == pytest.approx(180 / 255 - 0.5, abs=2e-3)


def test_prevalence_moves_probability_and_threshold_by_bayes(bundle: Path) -> None:
    # Odds at 0.75 are 3, at 0.2 a quarter: all odds shrink to a twelfth. 0.533040 has odds 1.141511, a threshold of
    # 0.5 has odds 1: 0.0951259 / 1.0951259 = 0.086863 and 1 / 13 = 0.076923.
    with Classifier.load(bundle, prevalence=0.2) as rare:
        answer = rare.predict(picture(120, swing=60))
    assert answer.probability == pytest.approx(0.086863, abs=1e-4)
    assert answer.threshold == pytest.approx(1 / 13)
    assert answer.label == "PNEUMONIA"
    assert answer.logit == pytest.approx(-0.235294, abs=1e-3)


def test_the_prevalence_of_validation_changes_nothing(bundle: Path, classifier: Classifier) -> None:
    with Classifier.load(bundle, prevalence=0.75) as same:
        answer, plain = same.predict(picture(77)), classifier.predict(picture(77))
    assert (answer.probability, answer.threshold) == pytest.approx((plain.probability, plain.threshold))


@pytest.mark.parametrize("prevalence", [1e-6, 0.02, 0.2, 0.5, 0.95, 1 - 1e-9])
def test_prevalence_never_changes_the_verdict(prevalence: float, bundle: Path, classifier: Classifier) -> None:
    with Classifier.load(bundle, prevalence=prevalence) as moved:
        for mean in range(25, 235, 7):
            before, after = classifier.predict(picture(mean)), moved.predict(picture(mean))
            assert after.label == before.label
            assert (after.probability >= after.threshold) == (after.label == "PNEUMONIA")


def test_operating_points_by_name(bundle: Path, classifier: Classifier) -> None:
    # m = 24 / 255 gives a probability of 0.2021: above screening's 0.2, below balanced's 0.5.
    data = picture(24)
    with Classifier.load(bundle, operating_point="screening") as screening:
        answer = screening.predict(data)
    assert answer.probability == pytest.approx(0.2021, abs=1e-3)
    assert answer.threshold == pytest.approx(0.2)
    assert (answer.label, answer.operating_point) == ("PNEUMONIA", "screening")
    assert classifier.predict(data).label == "NORMAL"
    with pytest.raises(UsageError, match="has no operating point careful: it has balanced, screening"):
        Classifier.load(bundle, operating_point="careful")


def test_the_record_is_that_of_the_design(classifier: Classifier) -> None:
    record = json.loads(json.dumps(classifier.predict(picture(120)).record(), allow_nan=False))
    assert list(record) == [
        "path", "label", "probability", "logit", "threshold", "operating_point", "prevalence", "novelty",
        "in_distribution", "warnings", "model", "file", "contrast", "region", "milliseconds",
    ]  # fmt: skip
    assert set(record["milliseconds"]) == {"read", "infer"}
    assert min(record["milliseconds"].values()) > 0
    assert Failure("a.png", "why").record() == {"path": "a.png", "error": "why"}


def test_names(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "film.png"
    path.write_bytes(picture(100))
    assert classifier.predict(path).path == str(path)
    assert classifier.predict(str(path)).path == str(path)
    assert classifier.predict(path.read_bytes(), "bed 3").path == "bed 3"
    with pytest.raises(ImageError, match=r"^bed 4 is empty"):
        classifier.predict(b"", "bed 4")
    with pytest.raises(ImageError, match=r"none.png does not exist"):
        classifier.predict(tmp_path / "none.png")


# ------------------------------------------------------------------------------------------- withheld verdicts


def test_a_novel_picture_gets_no_verdict_unless_forced(bundle: Path, classifier: Classifier) -> None:
    light = picture(244, swing=10)  # novelty 4 (244 / 255 - 0.5) = 1.827, above the limit of 1.8
    answer = classifier.predict(light)
    assert answer.novelty == pytest.approx(1.827, abs=1e-2)
    assert (answer.label, answer.in_distribution) == (None, False)
    (said,) = answer.warnings
    # A chest film of an unusual kind is not told that it is none.
    assert said.endswith("has learned from: an unusual film, or no frontal chest film")
    assert answer.probability == pytest.approx(1 / (1 + math.exp(-0.5 * answer.logit - 0.25)))
    with Classifier.load(bundle, force_verdict=True) as bold:
        forced = bold.predict(light)
    assert (forced.label, forced.in_distribution, forced.warnings) == ("PNEUMONIA", False, answer.warnings)


def colour_photo() -> bytes:
    y, x = np.mgrid[0:128, 0:128] * 2
    return encoded(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        (colour_photo(), "the picture is in colour, an X-ray is grey"),
        (picture(120, swing=3), "the picture is almost blank"),
        (picture(120, height=200, width=60), "the picture is tiny (60 x 200 pixels)"),
        (
            picture(120, height=120, width=700),
            "the picture is 700 x 120 pixels, which is not the shape of a chest film",
        ),
    ],
    ids=["colour", "blank", "tiny", "aspect"],
)
def test_what_is_no_chest_film_gets_no_verdict(data: bytes, warning: str, classifier: Classifier) -> None:
    answer = classifier.predict(data)
    assert (answer.label, answer.in_distribution, answer.warnings) == (None, False, (warning,))


def film(*, chroma: float = 0, contrast: float = 40, width: int = 1000, height: int = 800) -> Film:
    pixels = np.full((32, 32, 1), 128, np.uint8)
    pixels[:16] = 128 - int(contrast)
    pixels[16:] = 128 + int(contrast)
    return Film(pixels, width, height, chroma, ())


def test_the_limits_are_where_they_are_said_to_be() -> None:
    assert objections(film()) == ()
    assert objections(film(chroma=MAX_CHROMA)) == ()
    assert len(objections(film(chroma=MAX_CHROMA + 0.01))) == 1
    assert objections(film(contrast=MIN_CONTRAST)) == ()
    assert len(objections(film(contrast=MIN_CONTRAST - 1))) == 1
    assert objections(film(width=MIN_SIDE, height=MIN_SIDE)) == ()
    assert len(objections(film(width=MIN_SIDE, height=MIN_SIDE - 1))) == 1
    assert objections(film(width=round(MAX_ASPECT * 200), height=200)) == ()
    assert len(objections(film(width=round(MAX_ASPECT * 200) + 1, height=200))) == 1
    assert len(objections(film(chroma=99, contrast=0, width=9, height=99))) == 4


def test_a_grey_film_saved_in_colour_is_no_colour_picture(classifier: Classifier) -> None:
    grey = np.asarray(Image.open(io.BytesIO(picture(120))))
    for kind in ("JPEG", "WEBP", "PNG"):
        assert classifier.predict(encoded(np.stack([grey] * 3, axis=-1), kind)).in_distribution, kind


def test_warnings_of_the_file_stand_beside_the_verdict(classifier: Classifier) -> None:
    buffer = io.BytesIO()
    first = Image.open(io.BytesIO(picture(120)))
    first.save(buffer, "TIFF", save_all=True, append_images=[first])
    answer = classifier.predict(buffer.getvalue())
    assert (answer.label, answer.in_distribution) == ("PNEUMONIA", True)
    assert answer.warnings == ("the file holds several pictures; only the first was read",)


@pytest.mark.parametrize("constant", ["eight", "four"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_answer_that_is_no_number_is_no_verdict(
    constant: str, value: float, new_model: Any, write_bundle: WriteBundle
) -> None:
    next(tensor for tensor in new_model.graph.initializer if tensor.name == constant).float_data[0] = value
    with Classifier.load(write_bundle({"model.onnx": new_model.SerializeToString()})) as broken:
        with pytest.raises(ImageError, match=r"^-: model.onnx gives no number for this picture"):
            broken.predict(picture(120))
        assert [type(answer) for answer in broken.predict_batch([picture(120)])] == [Failure]


# ------------------------------------------------------------------------------------------------- many films


def test_a_batch_keeps_the_order_with_failures_between(classifier: Classifier, tmp_path: Path) -> None:
    sources: list[Path | bytes] = []
    for i in range(60):
        path = tmp_path / f"{i:02}.png"
        # Sizes differ, so that the workers finish out of order.
        path.write_bytes(picture(30 + 3 * i, height=120 + 400 * (i % 3)) if i % 7 else b"no picture")
        sources.append(path if i % 5 else path.read_bytes())
    answers = list(classifier.predict_batch(sources))
    assert len(answers) == len(sources)
    for i, (source, answer) in enumerate(zip(sources, answers, strict=True)):
        assert answer.path == (str(source) if i % 5 else "-")
        if i % 7:
            assert isinstance(answer, Prediction)
            alone = classifier.predict(source)
            assert (answer.logit, answer.label) == (alone.logit, alone.label)
        else:
            assert isinstance(answer, Failure)
            assert "is not an image that can be read here" in answer.error


def test_a_batch_reads_ahead_a_bounded_number(classifier: Classifier) -> None:
    data = picture(100)
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield data

    answers = classifier.predict_batch(endless())
    assert taken == 0
    for given_back in range(1, 60):
        next(answers)
        assert taken - given_back < 4 * usable_cores()
    before = threading.active_count()
    answers.close()  # type: ignore[attr-defined]
    assert taken < 60 + 4 * usable_cores()
    assert threading.active_count() < before


def test_an_empty_batch_has_no_answers(classifier: Classifier) -> None:
    assert list(classifier.predict_batch([])) == []


def test_an_error_of_the_source_goes_through(classifier: Classifier) -> None:
    def broken() -> Iterator[bytes]:
        yield picture(100)
        raise RuntimeError("the list of films ends here")

    with pytest.raises(RuntimeError, match="ends here"):
        list(classifier.predict_batch(broken()))


@pytest.mark.parametrize("engine", ["onnx", "tflite"])
def test_many_threads_get_the_same_answers(engine: str, classifier: Classifier) -> None:
    films = [picture(30 + 10 * i) for i in range(20)]
    if engine == "tflite":
        if not find_spec("ai_edge_litert") or not DEFAULT_BUNDLE.is_dir():
            pytest.skip("the extra `tflite` is not installed, or there is no default bundle in this tree yet")
        classifier = Classifier.load(engine="tflite", threads=1)
    alone = [classifier.predict(data).logit for data in films]
    assert len(set(alone)) > 10
    with ThreadPoolExecutor(8) as pool:
        for together in pool.map(lambda _: [classifier.predict(data).logit for data in films], range(8)):
            assert together == alone


def test_one_film_gets_all_cores_and_several_get_one_each(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def counted(engine: str, model: bytes, size: int, threads: int, name: str) -> Any:
        opened.append(threads)
        return open_backend(engine, model, size, threads, name)

    monkeypatch.setattr(module, "open_backend", counted)
    monkeypatch.setattr(module, "usable_cores", lambda: 3)
    with Classifier.load(bundle) as default:
        default.predict(picture(100))
        assert len(list(default.predict_batch([picture(100)]))) == 1
        assert opened == [3]
        assert len(list(default.predict_batch([picture(100)] * 9))) == 9
    assert opened == [3, 1]
    opened.clear()
    with Classifier.load(bundle, threads=2) as told:
        told.predict(picture(100))
        assert len(list(told.predict_batch([picture(100)] * 9))) == 9
    assert opened == [2]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs to know the cores of this process")
@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", None),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("9900000 100000", None),
        ("0 0", None),
        ("", None),
    ],
)
def test_a_container_gets_as_many_threads_as_it_may_use(
    limit: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n")
    monkeypatch.setattr(module, "_CPU_LIMIT", tmp_path / "cpu.max")
    assert usable_cores() == (cores or len(os.sched_getaffinity(0)))


def test_memory_does_not_grow_with_the_number_of_films(classifier: Classifier) -> None:
    data = picture(100)

    def peak(films: int) -> int:
        tracemalloc.start()
        try:
            assert sum(1 for _ in classifier.predict_batch(data for _ in range(films))) == films
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(50)
    assert peak(1500) < peak(150) + 100_000


def test_leaving_the_context_closes_the_engine(bundle: Path) -> None:
    with Classifier.load(bundle) as opened:
        opened.predict(picture(100))
    with pytest.raises(PneumoError, match="this Classifier has been closed: load it again"):
        opened.predict(picture(100))
    with pytest.raises(PneumoError, match="has been closed"):
        list(opened.predict_batch([picture(100)]))


# ------------------------------------------------------------------------------------------------- the overlay


def test_the_heatmap_colours_what_it_stands_for_and_leaves_the_rest() -> None:
    grey = Image.new("L", (120, 90), 100)
    for nothing in (np.zeros((4, 4), np.float32), np.full((4, 4), -9, np.float32)):
        assert colour_heatmap(grey, nothing).getcolors() == [(120 * 90, (100, 100, 100))]
    evidence = np.zeros((4, 4), np.float32)
    evidence[0, 3] = 2 * FULL_EVIDENCE
    mixed = np.asarray(colour_heatmap(grey, evidence)).astype(int)
    red, _, blue = mixed[:30, 90:].transpose(2, 0, 1)
    assert (red - 100).max() > 40
    assert (mixed[50:, :60] == 100).all()
    assert (mixed == 255).all(axis=-1).any()  # the line at half of the peak
    assert blue.max() <= 255
    weak = np.asarray(colour_heatmap(grey, evidence * np.float32(0.01))).astype(int)
    assert np.abs(weak - 100).max() < 30
    assert not (weak == 255).all(axis=-1).any()


@pytest.mark.parametrize(("height", "width"), [(128, 128), (700, 100), (100, 340)])
def test_the_overlay_has_room_for_its_words(height: int, width: int, classifier: Classifier) -> None:
    data = picture(120, height=height, width=width)
    answer = replace(classifier.predict(data), warnings=("a warning of many words " * 6,) * 2)
    sheet = draw_overlay(data, answer)
    assert sheet.width >= 640
    foot = np.asarray(sheet)[-36:]
    assert (foot.max(axis=-1) > 200).any()  # "Not a diagnosis" stands at the lower edge
    taller = draw_overlay(data, replace(answer, warnings=answer.warnings * 5))
    assert sheet.height < taller.height < sheet.height + 200


# ----------------------------------------------------------------------------------- which file, which engine


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.1, 2.0, math.nan, math.inf])
def test_a_prevalence_that_is_no_share_is_refused(prevalence: float, bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"is not between 0 and 1: give a share such as 0\.2"):
        Classifier.load(bundle, prevalence=prevalence)


def test_what_the_bundle_does_not_have_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no engine tensorrt: choose auto, onnx or tflite"):
        Classifier.load(bundle, engine="tensorrt")
    with pytest.raises(BundleError, match="has no file for the engine tflite: export it with that format"):
        Classifier.load(bundle, engine="tflite")
    with pytest.raises(BundleError, match=r"has no file model.int8.onnx: it has model.onnx"):
        Classifier.load(bundle, file="model.int8.onnx")
    with pytest.raises(UsageError, match=r"model.onnx is not a file of the engine tflite: leave out one of the two"):
        Classifier.load(bundle, file="model.onnx", engine="tflite")
    with pytest.raises(UsageError, match="0 threads cannot run a model: give 1 or more"):
        Classifier.load(bundle, threads=0)
    with pytest.raises(BundleError, match="is not a folder"):
        Classifier.load(tmp_path / "none")
    assert Classifier.load(bundle, file="model.onnx", engine="onnx").file == "model.onnx"


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        (("onnxruntime", "ai_edge_litert"), "model.tflite"),
        (("onnxruntime",), "model.int8.onnx"),
        (("ai_edge_litert",), "model.tflite"),
        ((), "model.tflite"),
    ],
)
def test_auto_is_a_fixed_order(
    installed: tuple[str, ...], chosen: str, write_bundle: WriteBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle({"model.onnx": b"fp32", "model.int8.onnx": b"int8", "model.tflite": b"lite"})
    opened: list[str] = []

    def open_nothing(engine: str, model: bytes, size: int, threads: int, name: str) -> None:
        opened.append(Path(name).name)

    monkeypatch.setattr(module, "open_backend", open_nothing)
    monkeypatch.setattr(module, "find_spec", lambda name: name in installed or None)
    Classifier.load(folder)
    assert opened == [chosen]


ENGINES = {
    "tflite": (
        ("ai_edge_litert", "ai_edge_litert.interpreter"),
        "a TFLite model needs the package ai-edge-litert",
    ),
    "onnx": (("onnxruntime",), "an ONNX model needs the package onnxruntime"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("asked", ["auto", "by name"])
def test_a_missing_engine_is_named_with_its_extra(
    engine: str, asked: str, write_bundle: WriteBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle({f"model.{engine}": b"a graph"})
    modules, sentence = ENGINES[engine]
    for name in modules:
        # They may be loaded already.
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"model.{engine}: {sentence}: pip install 'pneumo\[{engine}\]'"):
        Classifier.load(folder, engine="auto" if asked == "auto" else engine)


@pytest.mark.skipif(not DEFAULT_BUNDLE.is_dir(), reason="there is no default bundle in this tree yet")
def test_the_default_bundle_answers_and_knows_a_photo_when_it_sees_one() -> None:
    with Classifier.load() as default:
        assert default.file == ("model.int8.tflite" if find_spec("ai_edge_litert") else "model.int8.onnx")
        answer = default.predict(colour_photo())
    assert (answer.label, answer.in_distribution) == (None, False)
    assert 0 < answer.probability < 1
