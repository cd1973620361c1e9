"""`model.json` and the files it vouches for: read strictly, refused with one sentence."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_edge.backends import Backend, open_backend
from pneumo_edge.bundle import (
    DEFAULT_BUNDLE,
    Ages,
    Calibration,
    Description,
    Interval,
    LocalSite,
    OperatingPoint,
    Reference,
    Site,
    from_json,
    read_bundle,
    write_description,
)
from pneumo_edge.classifier import Classifier
from pneumo_edge.errors import BundleError

WriteBundle = Callable[..., Path]


def refusal(folder: Path) -> str:
    """Returns the sentence with which the bundle is refused; it names the folder and is one line."""
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    sentence = str(caught.value)
    assert str(folder) in sentence
    assert "\n" not in sentence
    return sentence


def set_to(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(description: Any) -> None:
        *parents, last = path
        for key in parents:
            description = description[key]
        description[last] = value

    return change


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(description: dict[str, Any]) -> None:
        *parents, last = path
        for key in parents:
            description = description[key]
        del description[last]

    return change


QUANTILES = tuple(i / 10 for i in range(101))
SURE = Interval(0.9, 0.8, 1.0)
SITES = (
    Site("north", "films of the north", "CC BY 4.0", {"train/NORMAL": 9, "test/NORMAL": 2}, 10,
         Ages(1.0, 3.5, 80.25, 8), {"PA": 6, "AP": 2}, {"F": 5, "M": 6}),
    Site("south", "", "", {}, 0, None, {}, {}),
)  # fmt: skip
LOCAL = LocalSite("here", {"NORMAL": 40, "PNEUMONIA": 20}, 55, 0.3, "2026-05-31", Calibration(1.5, -0.5, 0.75),
                  {"balanced": OperatingPoint(0.5, SURE, SURE)}, SURE)  # fmt: skip


def full(folder: Path) -> Description:
    """Returns the description of the bundle in `folder` with a value in every place."""
    description = read_bundle(folder).description
    file = replace(
        description.files["model.onnx"], region_threshold=0.4, reference=Reference(522, QUANTILES, QUANTILES)
    )
    return replace(
        description,
        head="local",
        files={"model.onnx": file},
        provenance=replace(description.provenance, sites=SITES, licence="research and education"),
        site=LOCAL,
    )


def rename_file(name: str) -> Callable[[dict[str, Any]], None]:
    def change(description: dict[str, Any]) -> None:
        description["files"][name] = description["files"].pop("model.onnx")

    return change


BROKEN: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (set_to("colour", value=1), "unknown key colour"),
    (set_to("input", "mean", value=[0.5]), "unknown key input.mean"),
    (set_to("files", "model.onnx", "path", value="x"), "unknown key files.model.onnx.path"),
    (without("head"), "missing key head"),
    (without("calibration", "offset"), "missing key calibration.offset"),
    (without("files", "model.onnx", "sha256"), "missing key files.model.onnx.sha256"),
    (set_to("name", value=7), "name must be str"),
    (set_to("input", "size", value="224"), "input.size must be int"),
    (set_to("input", "size", value=224.0), "input.size must be int"),
    (set_to("input", "size", value=True), "input.size must be int"),
    (set_to("calibration", "scale", value=True), "calibration.scale must be float"),
    (set_to("calibration", "scale", value="1"), "calibration.scale must be float"),
    (set_to("calibration", "scale", value=None), "calibration.scale must be float"),
    (set_to("calibration", value=[1, 2, 3]), "calibration must be an object"),
    (set_to("files", value=["model.onnx"]), "files must be an object"),
    (set_to("labels", value="NORMAL"), "labels must be a list of 2"),
    (set_to("labels", value=["NORMAL"]), "labels must be a list of 2"),
    (set_to("calibration", "offset", value=float("nan")), "calibration.offset must be finite"),
    (set_to("calibration", "offset", value=float("inf")), "calibration.offset must be finite"),
    (set_to("calibration", "offset", value=10**400), "calibration.offset must be finite"),
    (set_to("format_version", value=2.0), "format_version must be int"),
    (set_to("operating_points", "balanced", "threshold", value=0), "thresholds must lie between 0 and 1"),
    (set_to("operating_points", "balanced", "threshold", value=1), "thresholds must lie between 0 and 1"),
    (set_to("operating_points", "screening", "threshold", value=-0.2), "thresholds must lie between 0 and 1"),
    (set_to("operating_points", "screening", "threshold", value=20), "thresholds must lie between 0 and 1"),
    (set_to("calibration", "prevalence", value=1.0), "prevalence and thresholds must lie between 0 and 1"),
    (set_to("calibration", "scale", value=0), "calibration.scale must be positive"),
    (set_to("calibration", "scale", value=-2), "calibration.scale must be positive"),
    (set_to("default_operating_point", value="best"), "default_operating_point is none of the operating_points"),
    (set_to("operating_points", value={}), "default_operating_point is none of the operating_points"),
    (set_to("labels", value=["PNEUMONIA", "NORMAL"]), "labels must be ('NORMAL', 'PNEUMONIA')"),
    (set_to("input", "dtype", value="float32"), "input must be uint8"),
    (set_to("input", "channels", value=3), "input must be uint8"),
    (set_to("input", "size", value=16), "32 to 1024 pixels"),
    (set_to("input", "size", value=100_000), "32 to 1024 pixels"),
    (set_to("files", value={}), "files is empty"),
    (set_to("files", "model.onnx", "bytes", value=0), "size and novelty_limit must be positive"),
    (set_to("files", "model.onnx", "novelty_limit", value=0), "size and novelty_limit must be positive"),
    (rename_file("../model.onnx"), "'../model.onnx' is no file that a bundle can have"),
    (rename_file("/etc/passwd"), "'/etc/passwd' is no file that a bundle can have"),
    (rename_file("model.pkl"), "'model.pkl' is no file that a bundle can have"),
    (rename_file("model.json"), "'model.json' is no file that a bundle can have"),
]

FILE = ("files", "model.onnx")
DESCENDING = [*QUANTILES[:50], 4.8, *QUANTILES[51:]]
AGES = {"low": 1.0, "median": 3.0, "high": 5.0, "known": 7}
BROKEN_IN_FORMAT_2: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (without("site"), "missing key site"),
    (without("provenance", "sites"), "missing key provenance.sites"),
    (without("provenance", "licence"), "missing key provenance.licence"),
    (without(*FILE, "region_threshold"), "missing key files.model.onnx.region_threshold"),
    (without(*FILE, "reference"), "missing key files.model.onnx.reference"),
    (set_to("provenance", "licence", value=None), "provenance.licence must be str"),
    (set_to("provenance", "sites", value={}), "provenance.sites must be a list"),
    (set_to("provenance", "sites", 0, "ages", "oldest", value=90), "unknown key provenance.sites[0].ages.oldest"),
    (set_to("provenance", "sites", 0, "ages", value=[1, 2, 3]), "provenance.sites[0].ages must be an object"),
    (set_to("provenance", "sites", 0, "ages", value=AGES | {"low": 4}), "north must have ages in ascending order"),
    (set_to("provenance", "sites", 0, "ages", value=AGES | {"high": 2}), "north must have ages in ascending order"),
    (set_to("provenance", "sites", 0, "ages", value=AGES | {"low": -1}), "north must have ages in ascending order"),
    (set_to("provenance", "sites", 0, "ages", value=AGES | {"known": 0}), "with a median if films tell them"),
    (set_to("provenance", "sites", 0, "name", value="south"), "provenance.sites must have names, each its own"),
    (set_to("provenance", "sites", 1, "name", value=""), "provenance.sites must have names, each its own"),
    (set_to("provenance", "sites", 0, "patients", value=-1), "north counts less than nothing"),
    (set_to("provenance", "sites", 0, "films", "train/NORMAL", value=-1), "north counts less than nothing"),
    (set_to("provenance", "sites", 0, "views", "PA", value=-1), "north counts less than nothing"),
    (set_to("provenance", "sites", 0, "sexes", "F", value=0.5), "provenance.sites[0].sexes.F must be int"),
    (set_to(*FILE, "region_threshold", value=0), "region_threshold is for the head local alone, between 0 and 1"),
    (set_to(*FILE, "region_threshold", value=1), "region_threshold is for the head local alone, between 0 and 1"),
    (set_to("head", value="gap"), "region_threshold is for the head local alone"),
    (set_to(*FILE, "reference", "films", value=0), "model.onnx: reference needs films"),
    (set_to(*FILE, "reference", "logit", value=QUANTILES[:100]), "101 quantiles in ascending order"),
    (set_to(*FILE, "reference", "novelty", value=[]), "101 quantiles in ascending order"),
    (set_to(*FILE, "reference", "novelty", value=DESCENDING), "101 quantiles in ascending order"),
    (set_to(*FILE, "reference", "logit", 3, value="low"), "files.model.onnx.reference.logit[3] must be float"),
    (set_to("site", "name", value=""), "site must have a name"),
    (set_to("site", "calibrated", value="yesterday"), "site.calibrated must be a day"),
    (set_to("site", "films", "NORMAL", value=-1), "site counts less than nothing"),
    (set_to("site", "prevalence", value=0), "site.prevalence and site.auc must lie between 0 and 1"),
    (set_to("site", "auc", "low", value=0.95), "the interval around its value"),
    (set_to("site", "auc", "high", value=1.5), "site.auc must lie between 0 and 1"),
    (set_to("site", "was", "scale", value=0), "site.was: calibration.scale must be positive"),
    (set_to("site", "was_operating_points", "balanced", "threshold", value=1), "site.was: prevalence and thresholds"),
]


@pytest.mark.parametrize(("change", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_a_description_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], None], reason: str, write_bundle: WriteBundle
) -> None:
    folder = write_bundle()
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))
    sentence = refusal(folder)
    assert f"is broken ({reason}" in sentence or reason in sentence
    assert sentence.endswith("export the bundle again")


@pytest.mark.parametrize(
    ("change", "reason"), BROKEN_IN_FORMAT_2, ids=[f"{i}: {reason}" for i, (_, reason) in enumerate(BROKEN_IN_FORMAT_2)]
)
def test_a_full_description_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], None], reason: str, write_bundle: WriteBundle
) -> None:
    folder = write_bundle()
    description = json.loads(json.dumps(asdict(full(folder))))
    change(description)
    (folder / "model.json").write_text(json.dumps(description))
    sentence = refusal(folder)
    assert reason in sentence
    assert sentence.endswith("export the bundle again")


# ------------------------------------------------------------------------------------------------- format 1


def as_format_1(folder: Path) -> dict[str, Any]:
    """Returns `model.json` of a bundle as format 1 had it."""
    description: dict[str, Any] = json.loads((folder / "model.json").read_text()) | {"format_version": 1}
    del description["site"], description["provenance"]["sites"], description["provenance"]["licence"]
    for file in description["files"].values():
        del file["region_threshold"], file["reference"]
    return description


def test_a_bundle_of_format_1_becomes_the_same_with_unknowns(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    today = read_bundle(folder).description
    (folder / "model.json").write_text(json.dumps(as_format_1(folder)))
    assert read_bundle(folder).description == today
    assert today.format_version == 2
    assert today.site is None
    assert today.provenance.sites == ()
    assert today.provenance.licence == ""
    assert today.files["model.onnx"].region_threshold is None
    assert today.files["model.onnx"].reference is None


def test_the_model_that_ships_is_read_and_can_be_written_anew(tmp_path: Path) -> None:
    shipped = read_bundle(DEFAULT_BUNDLE)
    for name in shipped.description.files:
        (tmp_path / name).write_bytes(shipped.read_file(name))
    write_description(tmp_path, shipped.description)
    assert read_bundle(tmp_path).description == shipped.description
    assert json.loads((tmp_path / "model.json").read_text())["format_version"] == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_to("site", value=None), "unknown key site"),
        (set_to("provenance", "sites", value=[]), "unknown key provenance.sites"),
        (set_to("files", "model.onnx", "reference", value=None), "unknown key files.model.onnx.reference"),
        (set_to("provenance", "place", value=""), "unknown key provenance.place"),
        (set_to("provenance", value=[]), "provenance must be an object"),
        (set_to("files", value=[1]), "files must be an object"),
        (set_to("files", "model.onnx", value=None), "files.model.onnx must be an object"),
        (without("provenance"), "missing key provenance"),
        (without("files", "model.onnx", "bytes"), "missing key files.model.onnx.bytes"),
        (set_to("format_version", value=True), "format_version must be int"),
        (set_to("format_version", value=1.0), "format_version must be int"),
    ],
)
def test_format_1_is_read_as_strictly(
    change: Callable[[dict[str, Any]], None], reason: str, write_bundle: WriteBundle
) -> None:
    folder = write_bundle()
    description = as_format_1(folder)
    change(description)
    (folder / "model.json").write_text(json.dumps(description))
    assert f"is broken ({reason})" in refusal(folder)


@pytest.mark.parametrize("version", [0, 3, "1", "2", None])
def test_another_format_version_names_both(version: object, write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    description = json.loads((folder / "model.json").read_text()) | {"format_version": version}
    (folder / "model.json").write_text(json.dumps(description))
    assert f"has format version {version!r}, this pneumo reads 1 and 2:" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [b"", b"no json", b"\xff\xfe\x00", b"{", b'{"format_version": 1,}', b"[" * 200_000, b'{"a":' * 150_000],
    ids=["empty", "text", "binary", "cut off", "trailing comma", "deep lists", "deep objects"],
)
def test_what_is_not_json_is_refused(text: bytes, write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    (folder / "model.json").write_bytes(text)
    assert refusal(folder).endswith("is not JSON: export the bundle again")


@pytest.mark.parametrize("text", ["[]", "null", "1", '"model"'])
def test_json_that_is_no_object_is_refused(text: str, write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    (folder / "model.json").write_text(text)
    assert "has format version None" in refusal(folder)


def test_a_huge_description_is_refused_unread(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    with (folder / "model.json").open("wb") as file:
        file.truncate(2_000_000_000)
    tracemalloc.start()
    try:
        assert "is larger than any model.json" in refusal(folder)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_is_no_bundle_is_refused(tmp_path: Path, write_bundle: WriteBundle) -> None:
    assert "is not a folder: give the bundle that pneumo-export wrote" in refusal(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    assert "holds no model.json" in refusal(tmp_path / "folder")
    (tmp_path / "folder" / "model.json").mkdir()
    assert "holds no model.json" in refusal(tmp_path / "folder")


def test_a_file_that_is_missing_or_changed_is_refused(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    file = folder / "model.onnx"
    whole = file.read_bytes()
    good = read_bundle(folder)

    file.write_bytes(whole[:-1])
    assert "model.onnx has another size than model.json states: copy the bundle again" in refusal(folder)

    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 0x10
    file.write_bytes(flipped)
    with pytest.raises(BundleError, match=r"is not the file that was exported \(its SHA-256 differs\)"):
        read_bundle(folder).read_file("model.onnx")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        Classifier.load(folder)

    file.unlink()
    assert "model.onnx is missing though model.json lists it: copy the bundle again" in refusal(folder)
    with pytest.raises(BundleError, match=r"cannot be read \(No such file or directory\): copy the bundle again"):
        good.read_file("model.onnx")


@pytest.mark.parametrize("name", ["model.tflite", "../bundle/model.onnx", "model.json", ""])
def test_only_listed_files_are_read(name: str, bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"has no file .*: it has model.onnx"):
        read_bundle(bundle).read_file(name)


def test_int8_comes_before_fp32(write_bundle: WriteBundle) -> None:
    names = ("model.tflite", "model.onnx", "model.int8.onnx", "model.int8.tflite")
    read = read_bundle(write_bundle({name: name.encode() for name in names}))
    assert read.files_of_engine("onnx") == ["model.int8.onnx", "model.onnx"]
    assert read.files_of_engine("tflite") == ["model.int8.tflite", "model.tflite"]


def test_what_was_written_is_read_again(bundle: Path, tmp_path: Path) -> None:
    description = read_bundle(bundle).description
    (tmp_path / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes())
    write_description(tmp_path, description)
    assert read_bundle(tmp_path).description == description
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_every_field_is_read_as_it_was_written(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    description = full(folder)
    write_description(folder, description)
    assert read_bundle(folder).description == description


def test_nothing_is_written_that_could_not_be_read(bundle: Path, tmp_path: Path) -> None:
    description = read_bundle(bundle).description
    with pytest.raises(ValueError, match=r"calibration\.scale must be positive"):
        write_description(tmp_path, replace(description, calibration=Calibration(-1.0, 0.0, 0.5)))
    with pytest.raises(ValueError, match="format_version must be 2"):
        write_description(tmp_path, replace(description, format_version=1))
    assert list(tmp_path.iterdir()) == []


# Anything that JSON can hold; integers beyond the range of floats are among it.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_value_in_any_place_is_read_or_refused(data: st.DataObject, bundle: Path) -> None:
    parsed = json.loads(json.dumps(asdict(full(bundle))))
    place: Any = parsed
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    try:
        description = from_json(Description, parsed)
    except ValueError as error:
        assert str(error)
    else:
        assert json.loads(json.dumps(asdict(description))) == parsed


# --------------------------------------------------------------------------------------------------- the graphs


def open_onnx(model: Any) -> Backend:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return open_backend("onnx", data, 32, 1, "model.onnx")


def test_a_graph_that_keeps_the_contract_is_opened(new_model: Any) -> None:
    films = np.stack([np.full((32, 32, 1), grey, np.uint8) for grey in (0, 255)])
    assert open_onnx(new_model).run(films).logit.tolist() == [-4.0, 4.0]


@pytest.mark.parametrize("data", [b"", b"no model", b"\x08\x08" * 500, bytes(1000)])
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(BundleError, match=r"^model.onnx is no model that ONNX Runtime accepts \([^\n]*\)$"):
        open_onnx(data)


@pytest.mark.parametrize("data", [b"", b"no model", b"\x1c\x00\x00\x00TFL3" + b"\x08\x00" * 300, bytes(1000)])
def test_bytes_that_are_no_tflite_model_are_refused(data: bytes) -> None:
    pytest.importorskip("ai_edge_litert", reason="the extra `tflite` is not installed")
    with pytest.raises(BundleError, match=r"^model.tflite is no model that LiteRT accepts"):
        open_backend("tflite", data, 32, 1, "model.tflite")


@pytest.mark.parametrize(("kind", "old"), [("input", "image"), ("output", "novelty"), ("output", "logit")])
def test_other_inputs_or_outputs_are_refused(kind: str, old: str, new_model: Any) -> None:
    for node in new_model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = "other" if name == old else name
    for value in (*new_model.graph.input, *new_model.graph.output):
        value.name = "other" if value.name == old else value.name
    with pytest.raises(BundleError, match=r"model.onnx has other inputs or outputs than a pneumo model"):
        open_onnx(new_model)


def test_a_missing_output_is_refused(new_model: Any) -> None:
    del new_model.graph.output[-1]
    with pytest.raises(BundleError, match="other inputs or outputs"):
        open_onnx(new_model)


def test_an_input_of_another_type_or_size_is_refused(new_model: Any) -> None:
    image = new_model.graph.input[0].type.tensor_type
    uint8, image.elem_type = image.elem_type, 1  # float32
    with pytest.raises(BundleError, match="does not take films of 32 x 32 pixels"):
        open_onnx(new_model)
    image.elem_type = uint8
    with pytest.raises(BundleError, match="does not take films of 64 x 64 pixels"):
        open_backend("onnx", new_model.SerializeToString(), 64, 1, "model.onnx")


def test_outputs_of_another_shape_are_refused(new_model: Any) -> None:
    reduce = next(node for node in new_model.graph.node if node.output[0] == "mean")
    next(a for a in reduce.attribute if a.name == "keepdims").i = 1
    for value in new_model.graph.output:
        if value.name != "heatmap":
            del value.type.tensor_type.shape.dim[:]
            for _ in range(4):
                value.type.tensor_type.shape.dim.add()
    with pytest.raises(BundleError, match="puts out other shapes than a pneumo model"):
        open_onnx(new_model)


def lies(model: Any, how: str) -> Any:
    """Makes a graph whose lengths cannot be known before it runs: they hang on the grey level of a pixel."""
    from onnx import helper

    nodes = [
        helper.make_node("Slice", ["image", "zeros", "ones", "axes"], ["pixel"]),
        helper.make_node("Reshape", ["pixel", "one"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["count"], to=7),
        helper.make_node("Add", ["count", "two"], ["length"]),
    ]
    values = {"zeros": [0, 0, 0], "ones": [1, 1, 1], "axes": [0, 1, 2], "one": [1], "two": [2]}
    for name, value in values.items():
        model.graph.initializer.append(helper.make_tensor(name, 7, [len(value)], value))
    last = next(node for node in model.graph.node if node.output[0] == "novelty")
    last.output[0] = "honest"
    kind = {"longer": "Expand", "none": "Reshape"}[how]
    nodes.append(helper.make_node(kind, ["honest", "length"], ["novelty"]))
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("longer", r"^model.onnx puts out other shapes than a pneumo model: export it again$"),
        ("none", r"^model.onnx does not run \([^\n]*\): export it again$"),
    ],
)
def test_a_graph_that_does_not_do_what_it_states_is_found_out_when_it_runs(
    how: str, sentence: str, new_model: Any
) -> None:
    data = lies(new_model, how).SerializeToString()
    backend = open_backend("onnx", data, 32, 1, "model.onnx")
    with pytest.raises(BundleError, match=sentence):
        backend.run(np.zeros((1, 32, 32, 1), np.uint8))


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "absolute"])
def test_a_graph_that_wants_a_file_beside_it_is_refused(
    location: str, new_model: Any, write_bundle: WriteBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    weights = onnx.TensorProto(
        name="weights", data_type=1, dims=[1, 1, 8, 8], data_location=onnx.TensorProto.DataLocation.Value("EXTERNAL")
    )
    where = str(tmp_path / "weights.bin") if location == "absolute" else location
    weights.external_data.add(key="location", value=where)
    new_model.graph.initializer.append(weights)
    pool = next(node for node in new_model.graph.node if node.op_type == "AveragePool")
    pool.op_type = "Conv"
    pool.input.append("weights")
    folder = write_bundle({"model.onnx": new_model.SerializeToString()})
    # The file lies wherever it could be looked for: beside the model, in the working directory, one above it.
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    for place in (folder, working, tmp_path):
        np.ones(64, np.float32).tofile(place / "weights.bin")
    with pytest.raises(BundleError, match=r"model.onnx is no model that ONNX Runtime accepts \([^\n]*\)$"):
        Classifier.load(folder)
