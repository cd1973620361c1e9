"""The export on a tiny network, with the real converters and the real engines.

What is allowed to differ holds on every processor. Float engines add in orders of their own, which moves these short
networks' answers, of about ten, in the sixth digit; a hundred times that is allowed. Of int8 files only what is many
steps wide is asserted: their seven-bit weights saturate no kernel, with VNNI or without, so processors differ by single
roundings. The tiny network is trained here, so its weights are this processor's; no margin below is close to them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the export needs pneumo[export]")
pytest.importorskip("tf2onnx", reason="the export needs pneumo[export]")

import keras

from pneumo_edge import Classifier
from pneumo_edge.backends import Outputs, open_backend
from pneumo_edge.bundle import LABELS as BUNDLE_LABELS
from pneumo_edge.bundle import Calibration, read_bundle
from pneumo_edge.errors import RunError, UsageError
from pneumo_export.cli import main
from pneumo_export.convert import OPSET, _pool_before_relu
from pneumo_export.export import Exported, check_apart, export_run
from pneumo_export.gate import SIZE_SHARE, Candidate, Gate, Judged, mcnemar, too_few
from pneumo_export.graph import deployed, feature_model, fit_novelty, fold, quantisable_blocks
from pneumo_export.quantise import Block, float_share, onnx_quantiser, tflite_quantiser
from pneumo_export.repair import JudgedFile, layers_of, repair
from pneumo_train.backbones import BACKBONES, Backbone, build_model
from pneumo_train.films import Box, FilmFile
from pneumo_train.inference import outputs_of
from pneumo_train.run import Films, Run, read_rows, write_rows
from pneumo_train.split import VALIDATION
from pneumo_train.train import start_run

SIZE = 64
FILES = ("model.onnx", "model.int8.onnx", "model.tflite", "model.int8.tflite")


def _tiny(image: Any) -> Any:
    x = image
    for i, filters in enumerate((16, 24, 32), start=1):
        x = keras.layers.Conv2D(filters, 3, 2, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm{i}")(x)
        # Without a ceiling, so that a channel can be scaled here and back again behind it.
        x = keras.layers.ReLU(None if i == 1 else 6.0, name=f"relu{i}")(x)
        x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depth{i}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"depthnorm{i}")(x)
        x = keras.layers.ReLU(6.0, name=f"depthrelu{i}")(x)
    return x


TINY = Backbone(
    name="tiny",
    build=_tiny,
    application=None,
    scale=1 / 128,
    offset=(-127 / 128,) * 3,
    default_size=SIZE,
    default_epochs=8,
    learning_rate=3e-3,
    frozen_layers="",
    fine_layer="depthrelu2",
    novelty_layers=("relu2", "depthrelu3"),
    float_layers="",
    licence="none.",
)


@pytest.fixture(scope="module", autouse=True)
def _tiny_backbone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield


def _draw_films(folder: Path, patients: int, per_patient: int = 2) -> None:
    """Draws films that a tiny network learns in seconds: PNEUMONIA is a bright disc on noise, more or less bright."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    for part, share in (("train", 1.0), ("test", 0.1)):
        for label, name in enumerate(BUNDLE_LABELS):
            (folder / part / name).mkdir(parents=True)
            for patient in range(int(share * patients)):
                for film in range(per_patient):
                    grey = rng.normal(rng.uniform(60, 120), 12, (SIZE, SIZE))
                    centre = rng.uniform(20, 44, 2)
                    disc = np.hypot(x - centre[0], y - centre[1]) < rng.uniform(8, 14)
                    grey[disc] += rng.uniform(25, 90) if label else rng.uniform(0, 35)
                    path = folder / part / name / f"person{1 + (part == 'test')}{label}{patient:03d}_{film}.png"
                    Image.fromarray(np.asarray(grey.clip(0, 255), np.uint8)).save(path)


def _quick_fit(run: Path, settings: Any, data: Any, build: Callable[[], keras.Model], **_: Any) -> None:
    """Trains without augmentation: what comes out of it matters here, not how."""
    keras.utils.set_random_seed(settings.seed)
    model = build()
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1)
    model.compile(keras.optimizers.Adam(settings.learning_rate), loss)
    films = data.films[data.train][..., np.newaxis].astype(np.float32)
    labels = data.labels[data.train][:, np.newaxis].astype(np.float32)
    model.fit(films, labels, batch_size=settings.batch_size, epochs=settings.epochs, verbose=0)
    model.save(run / "model.keras")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the runs "gap" and "flatten" of the tiny network, and their films in "films"."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("pneumo_train.fit.fit", _quick_fit)
        patch.setattr("pneumo_train.report.write_report", lambda _: None)
        _draw_films(folder / "films", patients=130)
        for head in ("gap", "flatten"):
            start_run(
                folder / head,
                data=[str(folder / "films")],
                backbone="tiny",
                head=head,
                weights="none",
                size=SIZE,
                epochs=8,
                batch_size=16,
                learning_rate=None,
                seed=0,
                limit=None,
            )
        yield folder


@pytest.fixture(scope="module")
def exported(runs: Path) -> Exported:
    return export_run(runs / "gap", runs / "gap-bundle", calibration_films=64)


@pytest.fixture(scope="module")
def flat(runs: Path) -> Exported:
    return export_run(runs / "flatten", runs / "flatten-bundle", calibration_films=64)


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
    return np.asarray(model(films[..., np.newaxis].astype(np.float32), training=False))[:, 0]


@pytest.mark.parametrize("backbone", ["tiny", "efficientnet_lite0", "mobilenetv2", "resnet50", "vgg16"])
def test_folding_changes_nothing(backbone: str) -> None:
    model = _random_model(backbone, "gap")
    plain = fold(model, backbone)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in plain.layers)
    films = _films(4)
    expected = _logits(model, films)
    np.testing.assert_allclose(_logits(plain, films), expected, atol=1e-3 * max(1.0, np.abs(expected).max()))
    # What is quantised as one begins with a convolution; pooling behind float layers stays float.
    blocks = quantisable_blocks(plain, backbone)
    for first, *others in (block.layers for block in blocks):
        assert isinstance(plain.get_layer(first), keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
        assert not any(plain.get_layer(other).weights for other in others)
    names = layers_of(blocks)
    assert len(set(names)) == len(names)
    assert "pool1_pool" not in names


def _maps_by_gradient(model: keras.Model, films: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """HiResCAM, from Keras alone: features times the gradient of the logit, summed over channels; and the logits."""
    import tensorflow as tf

    both = keras.Model(model.input, [model.get_layer("features").output, model.output])
    with tf.GradientTape() as tape:
        maps, logit = both(films[..., np.newaxis].astype(np.float32), training=False)
        gradient = tape.gradient(logit, maps)
    expected = np.sum(maps * gradient, axis=-1)
    # The gap head averages over h x w places, so its gradient is the CAM weight over their number.
    places = 1 if "hidden" in [layer.name for layer in model.layers] else maps.shape[1] * maps.shape[2]
    return expected * places, np.asarray(logit)[:, 0]


def test_pooling_pads_by_itself_and_goes_before_relu() -> None:
    onnx = pytest.importorskip("onnx")
    image = keras.Input((16, 16, 3))
    x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, padding="same")(image))
    pooled = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))
    kept = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(keras.layers.Conv2D(4, 1)(image)))
    model = keras.Model(image, keras.layers.Concatenate()([pooled, kept]))

    import onnxruntime
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((None, 16, 16, 3), tf.float32, name="image")]
    function = tf.function(model.call, input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, signature, opset=OPSET)
    _pool_before_relu(proto.graph)
    onnx.checker.check_model(proto)
    # Behind a convolution there may be less than zero: that border stays.
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("Pad") == 1
    assert "Relu" in kinds[kinds.index("MaxPool") :]
    films = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"image": films})[0], model(films), atol=1e-5)


@pytest.mark.parametrize("head", ["gap", "flatten"])
def test_heatmap_is_features_times_gradient(head: str) -> None:
    model = _random_model("tiny", head)
    plain = fold(model, "tiny")
    features = outputs_of(feature_model(plain, "tiny"), _films(64))["features"]
    films = _films(8)
    found = outputs_of(deployed(plain, "tiny", [fit_novelty(features)]), films)
    expected, logit = _maps_by_gradient(model, films)
    np.testing.assert_allclose(found["logit"], logit, atol=1e-4)
    np.testing.assert_allclose(found["heatmap"], expected, atol=1e-4)


@pytest.mark.parametrize("head", ["gap", "flatten"])
def test_heatmaps_of_the_files_follow_the_gradient(head: str, runs: Path, exported: Exported, flat: Exported) -> None:
    films = Run(runs / head).films.part(VALIDATION).pixels[:50]
    expected, _ = _maps_by_gradient(keras.saving.load_model(runs / head / "model.keras", compile=False), films)
    bundle = read_bundle((exported if head == "gap" else flat).bundle or runs)
    assert len(films) == 50
    for name in ("model.onnx", "model.tflite"):
        backend = open_backend(Path(name).suffix[1:], bundle.read_file(name), SIZE, 1, name)
        found = backend.run(films[..., np.newaxis]).heatmap
        for one, other in zip(found, expected, strict=True):
            assert np.corrcoef(one.ravel(), other.ravel())[0, 1] >= 0.999


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


def test_novelty_is_the_distance_from_the_nearest_kind_of_training_films() -> None:
    plain = fold(_random_model("tiny", "gap"), "tiny")
    dark, light = _films(128)[:64] // 3, _films(128)[64:] // 3 + 150
    kinds = [fit_novelty(outputs_of(feature_model(plain, "tiny"), films)["features"]) for films in (dark, light)]
    both = outputs_of(deployed(plain, "tiny", kinds), np.concatenate([dark, light]))["novelty"]
    alone = [outputs_of(deployed(plain, "tiny", [kind]), np.concatenate([dark, light]))["novelty"] for kind in kinds]
    np.testing.assert_allclose(both, np.minimum(*alone), rtol=1e-4)
    assert both[:64].mean() < alone[1][:64].mean() and both[64:].mean() < alone[0][64:].mean()


def test_halves_of_a_film_are_told_apart() -> None:
    plain = fold(_random_model("tiny", "gap"), "tiny")
    film = _films(1)
    upper, lower = film.copy(), film.copy()
    upper[:, : SIZE // 2] = 0
    lower[:, SIZE // 2 :] = 0
    features = outputs_of(feature_model(plain, "tiny"), np.concatenate([film, upper, lower]))["features"]
    width = plain.get_layer("relu2").output.shape[-1]
    # Upper half, lower half: far from the cut each sees its own half alone.
    changed = np.abs(features[1:] - features[0])[:, : 2 * width].reshape(2, 2, width).sum(axis=2)
    assert changed[0, 0] > changed[0, 1] and changed[1, 1] > changed[1, 0]


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


def test_normalisation_has_numbers_of_four_axes(exported: Exported) -> None:
    """With plain ones ONNX Runtime takes sixty times as long for it."""
    import onnx

    assert exported.bundle is not None
    graph = onnx.load(exported.bundle / "model.onnx").graph
    stored = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    normalised = [node for node in graph.node if any("normalise" in output for output in node.output)]
    assert {node.op_type for node in normalised} == {"Mul", "Add"}
    assert [stored[name] for node in normalised for name in node.input if name in stored] == [[1, 1, 1, 1]] * 2


@pytest.mark.parametrize("head", ["gap", "flatten"])
def test_int8_files_are_int8_and_close(head: str, exported: Exported, flat: Exported) -> None:
    made = exported if head == "gap" else flat
    for name in ("model.int8.onnx", "model.int8.tflite"):
        record = made.parity["files"][name]
        assert record["precision"] == "int8"
        assert record["float_share_of_convolution_weights"] <= 0.1
        assert record["distinct_scores"] > 0.5 * record["distinct_scores_fp32"]
        assert record["probability_difference"]["mean"] < 0.1
        assert not any("ONNX" in failure for failure in record["failures"])  # its checker and reference evaluator


@pytest.mark.parametrize(("engine", "quantiser"), [("onnx", onnx_quantiser), ("tflite", tflite_quantiser)])
def test_no_calibration_film_is_cut_off(engine: str, quantiser: Any, runs: Path, exported: Exported) -> None:
    model = keras.saving.load_model(runs / "gap" / "model.keras", compile=False)
    layers = layers_of(quantisable_blocks(fold(model, "tiny"), "tiny"))
    content = read_bundle(exported.bundle or runs).read_file(f"model.{engine}")
    rare = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (1, SIZE, SIZE))
    common = np.full((60, SIZE, SIZE), 127, np.uint8)
    quantised = quantiser(content, np.concatenate([rare, common]))(layers)
    expected, found = (
        open_backend(engine, each, SIZE, 1, "it").run(rare[..., np.newaxis]).logit for each in (content, quantised)
    )
    assert float(abs(found - expected)[0]) < 0.05 * float(abs(expected)[0])


def test_the_bundle_judges_films(runs: Path, exported: Exported) -> None:
    film = next((runs / "films" / "test" / "PNEUMONIA").glob("*.png"))
    answers = {}
    for file in ("model.onnx", "model.tflite"):
        with Classifier.load(exported.bundle, file=file) as classifier:
            answers[file] = classifier.predict(film)
    assert answers["model.onnx"].logit == pytest.approx(answers["model.tflite"].logit, abs=1e-3)
    assert answers["model.onnx"].heatmap.shape == (SIZE // 8, SIZE // 8)


@pytest.mark.parametrize("engine", ["onnx", "tflite"])
def test_the_bundle_says_what_its_files_answer_on_validation_films(engine: str, runs: Path, exported: Exported) -> None:
    bundle, name = read_bundle(exported.bundle or runs), f"model.{engine}"
    stated_of = bundle.description.files[name].reference
    films = Run(runs / "gap").films.part(VALIDATION).pixels
    found = open_backend(engine, bundle.read_file(name), SIZE, 1, name)
    answers = [found.run(film[np.newaxis, ..., np.newaxis]) for film in films]
    assert stated_of is not None
    assert stated_of.films == len(films)
    shares = np.linspace(0, 1, 101)
    for stated, values in (
        (stated_of.logit, [float(answer.logit[0]) for answer in answers]),
        (stated_of.novelty, [float(answer.novelty[0]) for answer in answers]),
    ):
        assert stated == pytest.approx(np.quantile(values, shares, method="inverted_cdf").tolist(), abs=1e-4)


def test_the_bundle_says_where_it_comes_from(runs: Path, exported: Exported) -> None:
    assert exported.bundle is not None
    parity = json.loads((exported.bundle / "parity.json").read_text())
    split = {row["path"]: row["split"] for row in read_rows(runs / "gap" / "split.csv")}
    assert len(parity["calibration_films"]) == 64
    assert {split[film] for film in parity["calibration_films"]} == {"train"}
    card = (exported.bundle / "MODEL_CARD.md").read_text()
    for part in ("Intended use", "Out of scope", "Limits", "Calibration and prevalence", "Not a diagnosis"):
        assert part in card
    metrics = Run(runs / "gap").metrics
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


def test_a_file_that_the_standard_does_not_allow_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumo_export.convert.sort_nodes", lambda graph: graph.node.extend([graph.node.pop(0)]))
    made = export_run(runs / "gap", runs / "unsorted", int8=False)
    assert made.bundle is not None
    [failure] = made.parity["files"]["model.onnx"]["failures"]
    assert "must be topologically sorted" in failure
    assert not (made.bundle / "model.onnx").exists()


def test_an_existing_bundle_is_kept_unless_forced(runs: Path, exported: Exported) -> None:
    assert exported.bundle is not None
    before = (exported.bundle / "model.json").read_bytes()
    with pytest.raises(UsageError, match="--force"):
        export_run(runs / "gap", exported.bundle)
    assert (exported.bundle / "model.json").read_bytes() == before


def test_films_that_have_moved(runs: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (runs / "films").rename(moved)
    try:
        with pytest.raises(RunError, match="--data"):
            export_run(runs / "gap", tmp_path / "bundle")
        made = export_run(runs / "gap", tmp_path / "bundle", data=[str(moved)], int8=False, formats=("onnx",))
        assert made.bundle == tmp_path / "bundle"
    finally:
        moved.rename(runs / "films")


def test_an_unfinished_run_is_refused(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((runs / "gap" / "config.json").read_bytes())
    with pytest.raises(RunError, match="--resume"):
        export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_each_file_has_its_intervals_and_its_time(exported: Exported) -> None:
    assert exported.bundle is not None
    card = (exported.bundle / "MODEL_CARD.md").read_text()
    for record in exported.parity["files"].values():
        assert record["milliseconds"] > 0
        for part in ("clean", "perturbed"):
            of_part = record["intervals"][part]
            assert set(of_part) == {"auc", "accuracy", "sensitivity", "specificity"}
            assert of_part["auc"]["value"] == pytest.approx(record[part]["auc"], abs=1e-6)
            for found in of_part.values():
                assert found["low"] <= found["value"] <= found["high"]
    shown = exported.parity["files"]["model.onnx"]["intervals"]["clean"]["specificity"]
    assert f"{shown['value']:.1%} ({shown['low']:.1%} to {shown['high']:.1%})" in card


# --- repair


def _copy_run(run: Path, copy: Path, change: Callable[[keras.Model], None]) -> Path:
    """Copies a finished run with its model changed."""
    shutil.copytree(run, copy)
    model = keras.saving.load_model(copy / "model.keras", compile=False)
    change(model)
    model.save(copy / "model.keras")
    return copy


def _scale_a_channel(model: keras.Model) -> None:
    """One channel is a thousand times as large from relu1 to depth1, which undoes it: the answers stay what they were.

    In int8 the other channels between the two share 256 steps with it, and become zero.
    """
    gamma, beta, *moving = model.get_layer("norm1").get_weights()
    # The channel that is largest anyway cannot be one that never fires.
    channel = int(np.argmax(gamma + beta))
    gamma[channel] *= 1000
    beta[channel] *= 1000
    model.get_layer("norm1").set_weights([gamma, beta, *moving])
    (kernel,) = model.get_layer("depth1").get_weights()
    kernel[:, :, channel] /= 1000
    model.get_layer("depth1").set_weights([kernel])


def test_a_damaged_model_is_repaired(runs: Path, tmp_path: Path) -> None:
    damaged = _copy_run(runs / "gap", tmp_path / "damaged", _scale_a_channel)
    with pytest.MonkeyPatch.context() as patch:
        # In so small a network what is no weight takes most of the room.
        patch.setitem(SIZE_SHARE, "gap", 1.5)
        made = export_run(damaged, tmp_path / "bundle", calibration_films=64)
    for name in ("model.int8.onnx", "model.int8.tflite"):
        record = made.parity["files"][name]
        repaired = record["repair"]
        assert repaired["failures_before"], f"{name} was not damaged enough to fail"
        assert record["failures"] == []
        assert sorted(repaired["attempts"][0]["moved"]) == ["conv1", "depth1"]
        # Half of the weights each: too much to be moved back.
        assert not {"conv2", "conv3"} & set(repaired["errors"])
        harm = sorted(repaired["errors"].values())
        assert harm[-2] > 3 * harm[-3]
        assert 0 < record["float_share_of_convolution_weights"] <= 0.1
        assert repaired["attempts"][-1]["failures"] == []
    written = json.loads((tmp_path / "bundle" / "parity.json").read_text())
    assert written["files"]["model.int8.onnx"]["repair"]["attempts"]
    assert set(read_bundle(tmp_path / "bundle").description.files) == set(FILES)


def test_repair_stops_at_a_tenth_of_the_weights() -> None:
    blocks = [Block((f"conv{i}",), 10) for i in range(30)]
    asked: list[int] = []

    def quantise(layers: Collection[str]) -> bytes:
        return " ".join(sorted(layers)).encode()

    def judge_file(content: bytes) -> dict[str, Any]:
        asked.append(len(blocks) - len(content.split()))
        share = asked[-1] / len(blocks)
        return _record(_scores() + 1.0) | {"float_share_of_convolution_weights": share}

    def open_file(content: bytes) -> Any:
        # The block `conv7` does most harm.
        wrong = 5.0 if content == b"conv7" else 0.1
        noise = np.random.default_rng(len(content)).normal(size=1).astype(np.float32)
        return SimpleNamespace(run=lambda film: Outputs(noise * wrong, film[..., 0], noise * 0))

    broken = JudgedFile(b"x" * 900, judge_file(quantise([f"conv{i}" for i in range(30)])))
    last, report = repair(
        "f", broken, blocks, _films(4), open_file(b""), quantise, open_file, judge_file, max_drop=0.5, max_bytes=1e6
    )
    assert asked == [0, 2, 3]
    assert report["attempts"][0]["moved"][0] == "conv7"
    assert last.record["failures"]


# --- what is refused


def test_a_model_that_answers_one_value_is_refused(runs: Path, tmp_path: Path) -> None:
    def silence(model: keras.Model) -> None:
        kernel, bias = model.get_layer("logit").get_weights()
        model.get_layer("logit").set_weights([0 * kernel, bias])

    constant = _copy_run(runs / "gap", tmp_path / "constant", silence)
    made = export_run(constant, tmp_path / "bundle", calibration_films=16)
    assert made.bundle is None
    assert not (tmp_path / "bundle").exists()
    for record in made.parity["files"].values():
        assert any("distinct scores" in failure for failure in record["failures"])


@pytest.mark.parametrize("what", ["patient", "test"])
def test_calibration_films_that_are_judged_are_refused(what: str, runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "gap", run)
    rows = read_rows(run / "split.csv")
    learned = [row for row in rows if row["split"] == "train"]
    if what == "patient":
        patients = [row["patient"] for row in learned]
        next(row for row in learned if patients.count(row["patient"]) > 1)["split"] = "validation"
    else:
        # The same film a second time, under a split that is only measured.
        rows.append(learned[0] | {"split": "test"})
    write_rows(run / "split.csv", list(rows[0]), rows)
    with pytest.raises(RunError, match=r"must not be judged" if what == "patient" else "not those"):
        export_run(run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [run]


def test_copies_of_a_test_film_do_not_calibrate(runs: Path) -> None:
    films = Run(runs / "gap").films
    check_apart(films, runs / "gap")
    learned, measured = films.positions("train")[0], films.positions("test")[0]
    sha256 = list(films.prepared.sha256)
    sha256[learned] = sha256[measured]
    films = replace(films, prepared=replace(films.prepared, sha256=tuple(sha256)))
    with pytest.raises(RunError, match="its bytes in test"):
        check_apart(films, runs / "gap")


def _other_version(run: Path) -> None:
    config = json.loads((run / "config.json").read_text()) | {"format_version": 99}
    (run / "config.json").write_text(json.dumps(config))


def _other_size(run: Path) -> None:
    _random_model("tiny", "gap", 32).save(run / "model.keras")


def _two_inputs(run: Path) -> None:
    one, two = keras.Input((SIZE, SIZE, 1)), keras.Input((SIZE, SIZE, 1))
    both = keras.layers.Flatten()(keras.layers.Add()([one, two]))
    keras.Model([one, two], keras.layers.Dense(1)(both)).save(run / "model.keras")


def _no_model(run: Path) -> None:
    (run / "model.keras").unlink()


def _garbled_model(run: Path) -> None:
    (run / "model.keras").write_bytes(b"no model")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_other_version, "another version of pneumo"),
        (_other_size, "other inputs"),
        (_two_inputs, "other inputs"),
        (_no_model, "--resume"),
        (_garbled_model, "cannot be loaded"),
    ],
)
def test_a_run_that_cannot_be_exported(
    change: Callable[[Path], None], sentence: str, runs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "gap", run)
    change(run)
    with pytest.raises(RunError, match=sentence):
        export_run(run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [run]


def test_a_disk_that_fills_up_leaves_the_old_bundle(runs: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"formats": ("onnx",), "int8": False}
    export_run(runs / "gap", tmp_path / "bundle", **settings)
    before = {p.name: p.read_bytes() for p in (tmp_path / "bundle").iterdir()}
    write = Path.write_text

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if ".MODEL_CARD" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=r"No space left on device: .*make room.*bundle"):
            export_run(runs / "gap", tmp_path / "bundle", force=True, **settings)
    assert {p.name: p.read_bytes() for p in (tmp_path / "bundle").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("tensorflow", "tensorflow"),
        ("tf2onnx", "tf2onnx"),
        ("ai_edge_litert", "ai-edge-litert"),
        ("ai_edge_quantizer", "ai-edge-quantizer"),
        ("sklearn", "scikit-learn"),
    ],
)
def test_a_missing_package_is_said_before_the_work(
    module: str, package: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pneumo_export.cli.find_spec", lambda name: None if name == module else object())
    monkeypatch.setattr("sys.argv", ["pneumo-export", str(runs / "gap"), "--output", str(tmp_path / "bundle")])
    said: list[str] = []
    monkeypatch.setattr("pneumo_edge.command_line.say", said.append)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said == [f"pneumo-export: exporting needs the package {package}: pip install 'pneumo[export]'"]
    assert not list(tmp_path.iterdir())


def test_the_command_shows_one_table(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["pneumo-export", str(runs / "gap"), "--output", str(tmp_path / "bundle"), "--formats", "onnx"]
    monkeypatch.setattr("sys.argv", [*line, "--no-int8"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    shown = capsys.readouterr()
    for column in ("file", "size", "AUC", "sensitivity", "specificity", "flips", "ms/film", "gate", "passed"):
        assert column in shown.out
    assert all(len(row) <= 120 for row in shown.out.splitlines()[:-1])
    assert shown.out.splitlines()[-1] == str(tmp_path / "bundle")
    assert [p.name for p in (tmp_path / "bundle").glob("model.*")].count("model.onnx") == 1
    assert not (tmp_path / "bundle" / "model.int8.onnx").exists()


def test_the_page_comes_with_the_bundle(
    runs: Path,
    runtime: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["pneumo-export", str(runs / "gap"), "--output", str(tmp_path / "bundle"), "--web", str(tmp_path / "page")]
    monkeypatch.setattr("sys.argv", [*line, "--formats", "onnx"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--web needs the TFLite file" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*line, "--formats", "tflite", "--no-int8"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(tmp_path / "bundle"), str(tmp_path / "page")]
    [version] = (each for each in (tmp_path / "page").iterdir() if each.is_dir())
    for name in ("model.tflite", "model.json"):
        assert (version / name).read_bytes() == (tmp_path / "bundle" / name).read_bytes()


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
    failures: list[str] = _record(logit, precision=precision, size=size, share=share, novelty=novelty, films=films)[
        "failures"
    ]
    return failures


def _record(
    logit: np.ndarray[Any, Any],
    *,
    precision: str = "int8",
    size: int = 20,
    share: float = 0.0,
    novelty: np.ndarray[Any, Any] | None = None,
    films: slice = slice(None),
    head: str = "gap",
    boxes: bool = False,
    maps: np.ndarray[Any, Any] | None = None,
    keras_maps: np.ndarray[Any, Any] | None = None,
) -> dict[str, Any]:
    both = np.concatenate([np.arange(len(LABELS))[films], len(LABELS) + np.arange(len(LABELS))[films]])
    n = len(LABELS[films])
    maps = np.zeros((2 * n, 2, 2), np.float32) if maps is None else maps
    gate = Gate(
        Films(_files(LABELS[films], boxes), np.zeros((n, 32, 32), np.uint8), LABELS[films]),
        np.zeros((n, 32, 32), np.uint8),
        _scores()[both],
        np.zeros_like(maps) if keras_maps is None else keras_maps,
        IDENTITY,
        0.5,
        head,
        32,
        0.5,
    )
    logit = logit[both].astype(np.float32)
    novelty = (NOVELTY if novelty is None else novelty)[both].astype(np.float32)
    record = gate.judge(
        Candidate(precision, size, 100, share),
        Judged(logit, novelty, maps),
        Judged(_scores()[both], NOVELTY[both], maps),
    )
    json.dumps(record, allow_nan=False)
    return record


def _files(labels: np.ndarray[Any, Any], boxes: bool) -> tuple[FilmFile, ...]:
    """Films of which, with boxes, the ill ones have one over the upper left quarter."""
    box = (Box(0.0, 0.0, 0.5, 0.5),) if boxes else ()
    return tuple(
        FilmFile(f"{i}.png", int(label), f"p{i}", "train", boxes=box if label else ()) for i, label in enumerate(labels)
    )


def _maps(strongest: tuple[int, int]) -> np.ndarray[Any, Any]:
    maps = np.full((2 * len(LABELS), 2, 2), -4.0, np.float32)
    maps[:, *strongest] = 3.0
    return maps


def test_a_map_that_points_elsewhere_than_that_of_keras_is_refused() -> None:
    right, wrong = _maps((0, 0)), _maps((1, 1))
    few_wrong = right.copy()
    ill = np.flatnonzero(LABELS == 1)
    few_wrong[ill[:2]] = wrong[ill[:2]]
    for maps, failures in ((right, 0), (few_wrong, 0), (wrong, 1)):
        record = _record(_scores(), head="local", boxes=True, maps=maps, keras_maps=right)
        assert len(record["failures"]) == failures
        assert record["pointing"]["films"] == len(ill) and record["pointing"]["hits_keras"] == len(ill)
    assert "points into a box in 0 of" in record["failures"][0]


def test_a_region_is_cut_at_the_best_overlap_and_needs_no_boxes() -> None:
    maps = _maps((0, 0))
    with_boxes = _record(_scores(), head="local", boxes=True, maps=maps, keras_maps=maps)
    without = _record(_scores(), head="local", boxes=False, maps=maps, keras_maps=maps)
    assert 0 < with_boxes["region_threshold"] < 1 and 0 < without["region_threshold"] < 1
    assert without["pointing"] is None
    assert _record(_scores())["region_threshold"] is None


def test_a_float_map_must_be_that_of_keras() -> None:
    maps = _maps((0, 0))
    settings: dict[str, Any] = {"precision": "fp32", "size": 100, "share": 1.0, "head": "local", "keras_maps": maps}
    assert _record(_scores(), maps=maps + 5e-4, **settings)["failures"] == []
    assert "heatmap differs" in _record(_scores(), maps=maps + 2e-3, **settings)["failures"][0]


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
    assert any("size" in failure for failure in _judge(_scores(), size=36))


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


def test_few_films_are_said_with_the_interval() -> None:
    auc = {"value": 0.99, "low": 0.9, "high": 1.0}
    assert too_few(LABELS, auc) is None
    warning = str(too_few(LABELS[120:], auc))
    assert "only 30 NORMAL" in warning
    assert "0.9000 to 1.0000" in warning


def test_float_share_counts_convolution_weights(runs: Path, exported: Exported) -> None:
    assert exported.bundle is not None
    for name in ("model.onnx", "model.tflite"):
        assert float_share((exported.bundle / name).read_bytes(), name) == 1.0
