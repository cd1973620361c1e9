"""The export on a tiny network, with the real converters and the real engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the export needs pneumo[export]")
pytest.importorskip("tf2onnx", reason="the export needs pneumo[export]")

import keras

from pneumo_edge import Classifier
from pneumo_edge.backends import open_backend
from pneumo_edge.bundle import Calibration, read_bundle
from pneumo_edge.errors import RunError, UsageError
from pneumo_export.export import Exported, export_run
from pneumo_export.gate import Candidate, Judged, judge, mcnemar, too_few
from pneumo_export.graph import deployed, feature_model, fit_novelty, fold, outputs_of
from pneumo_export.quantise import float_share
from pneumo_train.backbones import BACKBONES, Backbone, build_model
from pneumo_train.phantom import draw_phantoms
from pneumo_train.run import read_metrics
from pneumo_train.train import start_run

SIZE = 64
FILES = ("model.onnx", "model.int8.onnx", "model.tflite", "model.int8.tflite")


def _tiny(image: Any) -> Any:
    x = image
    for i, filters in enumerate((16, 24, 32), start=1):
        x = keras.layers.Conv2D(filters, 3, 2, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{i}")(x)
        x = keras.layers.ReLU(6.0, name=f"relu{i}")(x)
        x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depth{i}")(x)
        x = keras.layers.BatchNormalization(name=f"depthnorm{i}")(x)
        x = keras.layers.ReLU(6.0, name=f"depthrelu{i}")(x)
    return x


TINY = Backbone(
    name="tiny",
    build=_tiny,
    application=None,
    scale=1 / 128,
    offset=(-127 / 128,) * 3,
    default_size=SIZE,
    learning_rate=3e-3,
    frozen_layers="",
    novelty_layers=("relu2", "depthrelu3"),
    float_layers="",
    licence="none.",
)


@pytest.fixture(scope="module", autouse=True)
def _tiny_backbone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the runs "gap" and "flatten" of the tiny network on 520 phantoms."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        draw_phantoms(folder / "phantoms", films=520)
        for head in ("gap", "flatten"):
            start_run(
                folder / head,
                data=str(folder / "phantoms"),
                backbone="tiny",
                head=head,
                weights="none",
                size=SIZE,
                epochs=10,
                batch_size=16,
                learning_rate=None,
                seed=0,
                limit=None,
            )
        yield folder


@pytest.fixture(scope="module")
def exported(runs: Path) -> Exported:
    return export_run(runs / "gap", runs / "gap-bundle", calibration_films=64)


def _random_model(backbone: str, head: str, size: int = SIZE) -> keras.Model:
    """A network whose batch-norm has statistics of its own: at the initial ones, folding would be trivial."""
    keras.utils.set_random_seed(0)
    model = build_model(backbone, head, size)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights(
                [
                    gamma * rng.uniform(0.8, 1.2, gamma.shape),
                    beta + rng.normal(0, 0.1, beta.shape),
                    mean + rng.normal(0, 0.1, mean.shape),
                    variance * rng.uniform(0.8, 1.2, variance.shape),
                ]
            )
    return model


def _films(count: int, size: int = SIZE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (count, size, size), dtype=np.uint8)


def _logits(model: keras.Model, films: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(model.predict_on_batch(films[..., np.newaxis].astype(np.float32)))[:, 0]


@pytest.mark.parametrize("backbone", ["tiny", "efficientnet_lite0", "mobilenetv2", "resnet50", "vgg16"])
def test_folding_changes_nothing(backbone: str) -> None:
    model = _random_model(backbone, "gap")
    plain = fold(model, backbone)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in plain.layers)
    films = _films(4)
    expected = _logits(model, films)
    np.testing.assert_allclose(_logits(plain, films), expected, atol=1e-3 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("head", ["gap", "flatten"])
def test_heatmap_is_features_times_gradient(head: str) -> None:
    import tensorflow as tf

    model = _random_model("tiny", head)
    plain = fold(model, "tiny")
    features = outputs_of(feature_model(plain, "tiny"), _films(64))["features"]
    films = _films(8)
    found = outputs_of(deployed(plain, "tiny", fit_novelty(features)), films)
    both = keras.Model(model.input, [model.get_layer("features").output, model.output])
    with tf.GradientTape() as tape:
        maps, logit = both(films[..., np.newaxis].astype(np.float32), training=False)
        gradient = tape.gradient(logit, maps)
    # HiResCAM. The gap head averages over h x w places, so its gradient is the CAM weight over their number.
    expected = np.sum(maps * gradient, axis=-1)
    if head == "gap":
        expected = expected * maps.shape[1] * maps.shape[2]
    np.testing.assert_allclose(found["logit"], logit[:, 0], atol=1e-4)
    np.testing.assert_allclose(found["heatmap"], expected, atol=1e-4)


def test_novelty_is_the_regularised_mahalanobis_distance() -> None:
    rng = np.random.default_rng(0)
    known = (rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12))).astype(np.float32)
    fitted = fit_novelty(known, components=4)
    z = (known[:5] - fitted.mean) / fitted.scale
    axes = fitted.axes.astype(np.float64)
    covariance = (axes * (fitted.variances - fitted.residual_variance)) @ axes.T
    covariance += fitted.residual_variance * np.eye(12)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z) / 12)
    y = z @ axes
    rest = np.sum(z**2, axis=1) - np.sum(y**2, axis=1)
    found = np.sqrt((np.sum(y**2 / fitted.variances, axis=1) + rest / fitted.residual_variance) / 12)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # About 1 in the mean square over the films it was fitted on.
    z = (known - fitted.mean) / fitted.scale
    y = z @ axes
    rest = np.sum(z**2, axis=1) - np.sum(y**2, axis=1)
    squares = (np.sum(y**2 / fitted.variances, axis=1) + rest / fitted.residual_variance) / 12
    assert squares.mean() == pytest.approx(1, abs=0.02)


def test_float_files_answer_as_keras_and_keep_the_contract(exported: Exported) -> None:
    assert exported.bundle is not None
    records = exported.parity["files"]
    assert set(records) == set(FILES)
    for name in ("model.onnx", "model.tflite"):
        assert records[name]["failures"] == []
        assert records[name]["logit_difference"]["max"] <= 1e-3
    bundle = read_bundle(exported.bundle)
    several = open_backend("onnx", bundle.read_file("model.onnx"), SIZE, 1, "model.onnx").run(
        _films(3)[..., np.newaxis]
    )
    single = open_backend("tflite", bundle.read_file("model.tflite"), SIZE, 1, "model.tflite").run(
        _films(3)[..., np.newaxis]
    )
    for of_onnx, of_tflite in zip(several, single, strict=True):
        assert of_onnx.dtype == np.float32
        np.testing.assert_allclose(of_onnx, of_tflite, atol=1e-3)
    assert several.logit.shape == several.novelty.shape == (3,)
    assert several.heatmap.shape == (3, SIZE // 8, SIZE // 8)


@pytest.mark.parametrize("head", ["gap", "flatten"])
def test_int8_files_are_int8_and_close(head: str, runs: Path, exported: Exported) -> None:
    made = exported if head == "gap" else export_run(runs / "flatten", runs / "flatten-bundle", calibration_films=64)
    for name in ("model.int8.onnx", "model.int8.tflite"):
        record = made.parity["files"][name]
        assert record["precision"] == "int8"
        assert record["float_share_of_convolution_weights"] <= 0.1
        assert record["distinct_scores"] > 0.5 * record["distinct_scores_fp32"]
        assert record["probability_difference"]["mean"] < 0.1


def test_the_bundle_judges_films(runs: Path, exported: Exported) -> None:
    film = next((runs / "phantoms" / "test" / "PNEUMONIA").glob("*.jpeg"))
    answers = {}
    for file in ("model.onnx", "model.tflite"):
        with Classifier.load(exported.bundle, file=file) as classifier:
            answers[file] = classifier.predict(film)
    assert answers["model.onnx"].logit == pytest.approx(answers["model.tflite"].logit, abs=1e-3)
    assert answers["model.onnx"].heatmap.shape == (SIZE // 8, SIZE // 8)


def test_the_bundle_says_where_it_comes_from(runs: Path, exported: Exported) -> None:
    assert exported.bundle is not None
    parity = json.loads((exported.bundle / "parity.json").read_text())
    split = dict(line.split(",")[::3] for line in (runs / "gap" / "split.csv").read_text().splitlines())
    assert len(parity["calibration_films"]) == 64
    assert {split[film] for film in parity["calibration_films"]} == {"train"}
    card = (exported.bundle / "MODEL_CARD.md").read_text()
    for part in ("Intended use", "Out of scope", "Limits", "Calibration and prevalence", "Not a diagnosis"):
        assert part in card
    metrics = read_metrics(runs / "gap")
    description = read_bundle(exported.bundle).description
    assert description.calibration.scale == metrics["calibration"]["scale"]


def test_refused_files_are_put_aside_with_their_report(runs: Path) -> None:
    # With no drop allowed beyond two films and a gate that no file can pass, int8 stays out, fp32 leaves.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumo_export.gate.DISTINCT_SHARE", 1.5)
        made = export_run(runs / "gap", runs / "strict", calibration_films=16, formats=("onnx",))
    assert made.bundle == runs / "strict"
    assert made.refused == runs / "strict-refused"
    assert (runs / "strict-refused" / "model.int8.onnx").is_file()
    assert json.loads((runs / "strict-refused" / "parity.json").read_text())["verdict"] == "refused"
    assert list(read_bundle(runs / "strict").description.files) == ["model.onnx"]


def test_an_existing_bundle_is_kept_unless_forced(runs: Path, exported: Exported) -> None:
    assert exported.bundle is not None
    before = (exported.bundle / "model.json").read_bytes()
    with pytest.raises(UsageError, match="--force"):
        export_run(runs / "gap", exported.bundle)
    assert (exported.bundle / "model.json").read_bytes() == before


def test_films_that_have_moved(runs: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (runs / "phantoms").rename(moved)
    try:
        with pytest.raises(RunError, match="--data"):
            export_run(runs / "gap", tmp_path / "bundle")
        made = export_run(runs / "gap", tmp_path / "bundle", data=moved, int8=False, formats=("onnx",))
        assert made.bundle == tmp_path / "bundle"
    finally:
        moved.rename(runs / "phantoms")


def test_an_unfinished_run_is_refused(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((runs / "gap" / "config.json").read_bytes())
    with pytest.raises(RunError, match="--resume"):
        export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


# --- the gate on numbers


LABELS = np.repeat([0, 1], [150, 350]).astype(np.int64)
IDENTITY = Calibration(1.0, 0.0, 0.7)
NOVELTY = np.concatenate([np.full(9, 50.0), np.linspace(0.5, 1.5, 2 * len(LABELS) - 9)]).astype(np.float32)
"""Nine films that the float file withholds, at the front."""


def _scores(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    both = np.concatenate([LABELS, LABELS])
    return (4.0 * (both - 0.5) + rng.normal(size=len(both))).astype(np.float32)


def _judge(
    logit: np.ndarray[Any, Any],
    *,
    precision: str = "int8",
    size: int = 20,
    share: float = 0.0,
    novelty: np.ndarray[Any, Any] | None = None,
    films: slice = slice(None),
) -> list[str]:
    both = np.concatenate([np.arange(len(LABELS))[films], len(LABELS) + np.arange(len(LABELS))[films]])
    keras_scores = Judged(_scores()[both], NOVELTY[both])
    logit = logit[both]
    novelty = (NOVELTY if novelty is None else novelty)[both]
    record = judge(
        Candidate(precision, size, share),
        Judged(logit.astype(np.float32), novelty.astype(np.float32)),
        keras_scores.logit,
        keras_scores,
        100,
        LABELS[films],
        IDENTITY,
        0.5,
        "gap",
        0.5,
    )
    json.dumps(record, allow_nan=False)
    failures: list[str] = record["failures"]
    return failures


def test_an_equal_file_passes() -> None:
    assert _judge(_scores()) == []
    assert _judge(_scores() + np.random.default_rng(9).normal(0, 0.01, 1000)) == []


def test_a_constant_file_is_refused_for_every_reason() -> None:
    failures = " ".join(_judge(np.full(1000, 1.0)))
    assert "AUC" in failures
    assert "distinct scores" in failures
    assert "NORMAL films are lost" in failures


def test_a_file_that_answers_no_numbers_is_refused() -> None:
    assert any("numbers" in failure for failure in _judge(np.full(1000, np.nan)))


def test_a_shifted_file_loses_verdicts_though_not_auc() -> None:
    failures = _judge(_scores() + 1.0)
    assert any("NORMAL" in failure for failure in failures)
    assert not any("AUC" in failure for failure in failures)


def test_with_few_films_the_loss_of_auc_must_be_beyond_doubt() -> None:
    # 30 normal and 70 pneumonia films.
    few = slice(120, 220)
    swapped = _scores()
    # The weakest pneumonia film of those falls below the normal ones: one film, 0.014 of AUC.
    swapped[150 + int(np.argmin(swapped[150:220]))] = -9.0
    assert _judge(swapped, films=few) == []
    noisy = _scores() + np.random.default_rng(3).normal(0, 3, 1000)
    assert any("AUC" in failure for failure in _judge(noisy, films=few))


def test_float_weights_and_size_are_refused() -> None:
    assert any("float" in failure for failure in _judge(_scores(), share=0.2))
    assert any("size" in failure for failure in _judge(_scores(), size=31))


def test_a_novelty_that_withholds_other_films_is_refused() -> None:
    assert _judge(_scores(), novelty=NOVELTY * 3) == []
    failures = _judge(_scores(), novelty=NOVELTY[::-1])
    assert len(failures) == 1
    assert "18 films are withheld" in failures[0]


def test_fp32_is_judged_by_the_logit_alone() -> None:
    assert _judge(_scores() + 9e-4, precision="fp32", size=100, share=1.0) == []
    assert len(_judge(_scores() + 2e-3, precision="fp32", size=100, share=1.0)) == 1


@pytest.mark.parametrize(("lost", "won", "p"), [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 0.0625), (10, 2, 0.03857421875)])
def test_mcnemar_exact(lost: int, won: int, p: float) -> None:
    assert mcnemar(lost, won) == mcnemar(won, lost) == pytest.approx(p)


def test_few_films_are_said() -> None:
    assert too_few(LABELS) is None
    assert "only 30 NORMAL" in str(too_few(LABELS[120:]))


def test_float_share_counts_convolution_weights(runs: Path, exported: Exported) -> None:
    assert exported.bundle is not None
    for name in ("model.onnx", "model.tflite"):
        assert float_share((exported.bundle / name).read_bytes(), name) == 1.0
