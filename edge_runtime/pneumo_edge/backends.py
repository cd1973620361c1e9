"""The two engines. Both take the same uint8 films and give the same three outputs."""

from __future__ import annotations

import os
import threading
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pneumo_edge.errors import BundleError, MissingExtraError
from pneumo_edge.preprocess import Pixels

OUTPUTS = ("logit", "heatmap", "novelty")


class Outputs(NamedTuple):
    """What the graph puts out for N films, all float32."""

    logit: npt.NDArray[np.float32]
    """(N,), any real number; positive speaks for pneumonia."""
    heatmap: npt.NDArray[np.float32]
    """(N, h, w), class activation map; positive is evidence for pneumonia."""
    novelty: npt.NDArray[np.float32]
    """(N,), >= 0, distance from the training films."""


class Backend(Protocol):
    """An engine with a model loaded."""

    def run(self, films: Pixels) -> Outputs:
        """Takes uint8 (N, S, S, 1), gives `Outputs`. May be called from several threads."""


def open_backend(engine: str, model: bytes, size: int, threads: int, name: str) -> Backend:
    """Loads a model into an engine and checks that it keeps the graph contract.

    Args:
        engine: "onnx" or "tflite".
        model: The bytes of the file.
        size: S, the side of the input in pixels.
        threads: Of one inference.
        name: What errors call the file.

    Raises:
        BundleError: The engine does not accept the file, or its inputs and outputs are not those of the contract.
        MissingExtraError: The engine is not installed.
    """
    backend = _Onnx(model, threads, name) if engine == "onnx" else _LiteRT(model, threads, name)
    try:
        outputs = backend.run(np.zeros((1, size, size, 1), np.uint8))
    except Exception as error:
        raise BundleError(f"{name} does not take films of {size} x {size} pixels ({_line(error)})") from error
    if outputs.logit.shape != (1,) or outputs.novelty.shape != (1,) or outputs.heatmap.ndim != 3:
        raise BundleError(f"{name} puts out other shapes than a pneumo model: export it again")
    return backend


def engine_versions() -> dict[str, str | None]:
    """Returns engine -> version of its package, None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for engine, package in (("onnx", "onnxruntime"), ("tflite", "ai-edge-litert")):
        try:
            found[engine] = version(package)
        except PackageNotFoundError:
            found[engine] = None
    return found


class _Onnx:
    def __init__(self, model: bytes, threads: int, name: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # A graph may want its weights from files beside it, which for a model from bytes is the working directory:
        # a place where nothing can be is where they are looked for instead (onnxruntime 1.21 and later; from 1.24 on
        # absolute paths are refused as well).
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"{name} is no model that ONNX Runtime accepts ({_line(error)})") from error
        inputs = {i.name for i in self._session.get_inputs()}
        outputs = {o.name for o in self._session.get_outputs()}
        _check_names(inputs, outputs, name)

    def run(self, films: Pixels) -> Outputs:
        return Outputs(*self._session.run(OUTPUTS, {"image": films}))


class _LiteRT:
    def __init__(self, model: bytes, threads: int, name: str) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise MissingExtraError("ai-edge-litert", "tflite", f"{name}: a TFLite model") from None
        try:
            self._interpreter = Interpreter(model_content=model, num_threads=threads)
            self._interpreter.allocate_tensors()
            self._runner: Any = self._interpreter.get_signature_runner()
        except Exception as error:
            raise BundleError(f"{name} is no model that LiteRT accepts ({_line(error)})") from error
        _check_names(set(self._runner.get_input_details()), set(self._runner.get_output_details()), name)
        # One interpreter owns one set of tensors.
        self._lock = threading.Lock()

    def run(self, films: Pixels) -> Outputs:
        with self._lock:
            answers = [self._runner(image=film[np.newaxis]) for film in films]
        return Outputs(*(np.concatenate([a[o] for a in answers]) for o in OUTPUTS))


def _check_names(inputs: set[str], outputs: set[str], name: str) -> None:
    if inputs != {"image"} or outputs != set(OUTPUTS):
        raise BundleError(f"{name} has other inputs or outputs than a pneumo model: export it again")


def _line(error: Exception) -> str:
    """The first line of an engine's message: the rest is a dump that helps nobody at a terminal."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
