"""What several test files share. The tiny bundle is a real one: its graph keeps the contract and its answer can be
worked out by hand from the mean grey level."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

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

# How long an example takes is the machine's affair.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


SLOW = (
    "train/test_train_cli.py", "serve/test_orthanc.py", "export/test_export.py", "archive/test_archive_cli.py",
    "train/test_fit.py", "bench/test_bench.py", "train/test_keras_backends.py", "serve/test_page.py",
    "train/test_backbones.py", "serve/test_node.py", "serve/test_web.py", "web/test_web.py", "bench/test_sites.py",
    "project/test_docs.py", "bench/test_archive.py",
)  # fmt: skip
"""Files that take half a minute or more each, the slowest first: at the end, processes that share the tests would wait
for one of them. What waits for other programs stands beside what computes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts canaries first, since they say why much of the rest is red, and then what is slow."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        slow = next((i for i, name in enumerate(SLOW) if path.endswith(f"tests/{name}")), None)
        if slow is not None:
            item.add_marker("slow")
        return -1 if "canary" in item.keywords else len(SLOW) if slow is None else slow

    items.sort(key=place)


Infer: TypeAlias = Callable[..., "subprocess.CompletedProcess[Any]"]
WriteBundle: TypeAlias = Callable[..., Path]

SIZE = 32
NOVELTY_LIMIT = 1.8


def tiny_model() -> Any:
    """Returns an ONNX model: with m = mean grey / 255, logit = 8 (m - 0.5), novelty = 4 |m - 0.5|, heatmap (N, 4, 4)
    = mean grey / 255 - 0.5 of sixteen tiles."""
    pytest.importorskip("onnx", reason="the tiny model is built with the package onnx")
    from onnx import TensorProto, helper

    def constant(name: str, value: float) -> Any:
        return helper.make_tensor(name, TensorProto.FLOAT, (), [value])

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "unit"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "half"], ["centred"]),
        helper.make_node("ReduceMean", ["centred"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "eight"], ["logit"]),
        helper.make_node("Abs", ["mean"], ["away"]),
        helper.make_node("Mul", ["away", "four"], ["novelty"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["tiles"], kernel_shape=[SIZE // 4] * 2, strides=[SIZE // 4] * 2),
        helper.make_node("ReduceMean", ["tiles"], ["heatmap"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 1])],
        [
            helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["N", 4, 4]),
            helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["N"]),
        ],
        [constant("unit", 1 / 255), constant("half", 0.5), constant("four", 4.0), constant("eight", 8.0)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_bundle_to(
    folder: Path, files: dict[str, bytes], *, region_threshold: float | None = None, **changes: Any
) -> Path:
    """Writes model files and a `model.json` that vouches for them; `changes` replace fields of the description.

    With a threshold for regions the tiny model poses as one of the head `local`, its heatmap as the map of logits.
    """
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    sure = Interval(0.9, 0.8, 1.0)
    description = Description(
        format_version=FORMAT_VERSION,
        name="tiny",
        backbone="none",
        head="gap" if region_threshold is None else "local",
        input=InputContract("image", "uint8", SIZE, 1),
        labels=LABELS,
        calibration=Calibration(scale=0.5, offset=0.25, prevalence=0.75),
        operating_points={"balanced": OperatingPoint(0.5, sure, sure), "screening": OperatingPoint(0.2, sure, sure)},
        default_operating_point="balanced",
        provenance=Provenance("none", {}, "none", "2025-01-01", {}),
        files={
            name: ModelFile("fp32", len(data), hashlib.sha256(data).hexdigest(), NOVELTY_LIMIT, region_threshold)
            for name, data in files.items()
        },
    )
    write_description(folder, replace(description, **changes))
    return folder


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    """The tiny model, serialised."""
    data: bytes = tiny_model().SerializeToString()
    return data


@pytest.fixture(scope="session")
def bundle(model_bytes: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the tiny model as model.onnx; not to be changed."""
    return write_bundle_to(tmp_path_factory.mktemp("tiny") / "bundle", {"model.onnx": model_bytes})


@pytest.fixture(scope="session")
def local_bundle(model_bytes: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a local map: a region is where the mean grey of a quarter's side is 127.5 or more."""
    folder = tmp_path_factory.mktemp("local") / "bundle"
    return write_bundle_to(folder, {"model.onnx": model_bytes}, region_threshold=0.5)


@pytest.fixture
def write_bundle(tmp_path: Path, model_bytes: bytes) -> WriteBundle:
    """Writes a bundle of the test's own; `files` is {"model.onnx": the tiny model} unless given."""

    def write(files: dict[str, bytes] | None = None, **changes: Any) -> Path:
        return write_bundle_to(tmp_path / "bundle", files or {"model.onnx": model_bytes}, **changes)

    return write


@pytest.fixture
def new_model() -> Any:
    """The tiny model as an ONNX ModelProto that the test may change."""
    return tiny_model()


def film_pixels(height: int = 120, width: int = 160) -> npt.NDArray[np.uint8]:
    """A smooth grey picture, dark at the upper left, light at the lower right: every turn and mirror image differs."""
    y, x = np.mgrid[0:height, 0:width]
    grey = 30 + 150 * x / (width - 1) + 50 * y / (height - 1) + 12 * np.sin(9 * x / width) * np.cos(7 * y / height)
    return np.asarray(np.rint(grey).clip(0, 255), np.uint8)


@pytest.fixture
def pixels() -> npt.NDArray[np.uint8]:
    """`film_pixels` at its default size, (120, 160)."""
    return film_pixels()


Command: TypeAlias = Callable[..., list[str | Path]]


@pytest.fixture(scope="session")
def installed_command(bundle: Path) -> Callable[[str], Command]:
    """Makes the command line of an installed command by its name, on the tiny bundle unless `--model` is given."""

    def find(name: str) -> Command:
        command = shutil.which(name, path=sysconfig.get_path("scripts"))
        if command is None:
            pytest.skip("pneumo is not installed here: pip install -e '.[all]'")

        def line(*arguments: str | Path) -> list[str | Path]:
            model: list[str | Path] = [] if "--model" in arguments else ["--model", bundle]
            return [command, *arguments, *model]

        return line

    return find


@pytest.fixture(scope="session")
def infer_command(installed_command: Callable[[str], Command]) -> Command:
    """Makes the command line of the installed `pneumo-infer`, on the tiny bundle unless `--model` is given."""
    return installed_command("pneumo-infer")


@pytest.fixture(scope="session")
def infer(infer_command: Callable[..., list[str | Path]]) -> Infer:
    """Runs `pneumo-infer` and returns what came of it; Python's warnings are errors in there too."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None, **options: Any) -> Any:
        options = {"capture_output": True, "text": True, "timeout": 600} | options
        environment = os.environ | {"PYTHONWARNINGS": "error"} | (env or {})
        return subprocess.run(infer_command(*arguments), env=environment, check=False, **options)

    return run


Serve: TypeAlias = Callable[..., Any]


@contextmanager
def _serving(spool: Path, *options: str | Path, dicom: bool = False, cwd: Path | None = None) -> Iterator[Any]:
    from pneumo_bench.serve import Service

    with Service(spool, *options, dicom=dicom, cwd=cwd) as service:
        yield service
        if service.pid:
            assert service.stop() == 0, service.log


@pytest.fixture(scope="session")
def serve_command(installed_command: Callable[[str], Command]) -> Command:
    """Makes the command line of the installed `pneumo-serve`, on the tiny bundle unless `--model` is given."""
    return installed_command("pneumo-serve")


@pytest.fixture(scope="session")
def serving(serve_command: Command) -> Callable[..., AbstractContextManager[Any]]:
    """Runs `pneumo-serve` on a spool with some options, without a DICOM node, while a block lasts: it must then end by
    itself at SIGTERM, with exit code 0, unless it was stopped before. Gives a `pneumo_bench.serve.Service`."""
    pytest.importorskip("fastapi", reason="pneumo-serve needs the extra serve")
    return _serving


@pytest.fixture
def serve(serving: Callable[..., AbstractContextManager[Any]], bundle: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts `pneumo-serve` until the end of the test, with a spool of its own, on the tiny bundle unless `--model` is
    given."""
    with ExitStack() as stack:

        def start(*options: str | Path, **how: Any) -> Any:
            model: list[str | Path] = [] if "--model" in options else ["--model", bundle]
            return stack.enter_context(serving(tmp_path / "spool", *options, *model, **how))

        yield start


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port of this machine where nobody listens, and nobody will but who is told of it."""
    from pneumo_bench.serve import reserved_port

    with reserved_port() as port:
        yield port


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Lets what a test starts heed Ctrl-C, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def collected() -> Iterator[None]:
    """Calls the garbage collector at the end of a test, while its own filters of warnings still hold."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def runtime() -> dict[str, bytes]:
    """What the page in the browser has from the npm registry: without a network, and outside CI, the tests that need it
    are left out."""
    from pneumo_edge.errors import PassingError
    from pneumo_export.npm import PACKAGES, fetch

    files: dict[str, bytes] = {}
    try:
        for package in PACKAGES:
            files |= fetch(package)
    except PassingError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the browser's runtime is not here: {error}")
    return files
