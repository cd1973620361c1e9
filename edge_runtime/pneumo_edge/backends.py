"""The two engines, ONNX Runtime and LiteRT. Both take the same uint8 films and give the same three outputs."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pneumo_edge.errors import BundleError, MissingExtraError, one_line

if TYPE_CHECKING:
    from pneumo_edge.preprocess import Pixels

OUTPUTS = ("logit", "heatmap", "novelty")

PACKAGES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
"""Engine -> the package that brings it."""


class Outputs(NamedTuple):
    """Outputs of the graph for N films, all float32."""

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
    """Loads a model into an engine and checks that it states the graph contract.

    Args:
        engine: "onnx" or "tflite".
        model: The bytes of the file.
        size: S, the side of the input in pixels.
        threads: Threads for one film.
        name: Name of the file in errors.

    Raises:
        BundleError: The engine does not accept the file, or its inputs and outputs are not those of the contract. `run`
            raises it for a graph that states the contract and breaks it.
        MissingExtraError: The engine is not installed.
    """
    return _Onnx(model, size, threads, name) if engine == "onnx" else _LiteRT(model, size, threads, name)


class _Onnx:
    def __init__(self, model: bytes, size: int, threads: int, name: str) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("onnxruntime", "onnx", f"{name}: an ONNX model") from None

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # A graph may name files with its weights, and of a model from bytes they would be read from the working folder.
        # So they are searched in a place where nothing can be (onnxruntime 1.21 and later; 1.24 refuses absolute
        # paths).
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        # Or the threads would spin between two films, on the cores that decode the next ones.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"{name} is no model that ONNX Runtime accepts ({one_line(error)})") from error
        inputs = {i.name: i for i in self._session.get_inputs()}
        outputs = {o.name: o for o in self._session.get_outputs()}
        _check_names(set(inputs), set(outputs), name)
        _check_input(inputs["image"].type == "tensor(uint8)", inputs["image"].shape, size, name)
        _check_ranks([len(outputs[o].shape) for o in OUTPUTS], name)
        self._name = name

    def run(self, films: Pixels) -> Outputs:
        try:
            outputs = Outputs(*self._session.run(OUTPUTS, {"image": films}))
        except Exception as error:
            raise _did_not_run(self._name, error) from error
        return _checked(outputs, len(films), self._name)


class _LiteRT:
    def __init__(self, model: bytes, size: int, threads: int, name: str) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise MissingExtraError("ai-edge-litert", "tflite", f"{name}: a TFLite model") from None
        self._new_interpreter = partial(Interpreter, model_content=model, num_threads=threads)
        self._name = name
        runner = self._new_runner()
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        _check_names(set(inputs), set(outputs), name)
        _check_input(inputs["image"]["dtype"] is np.uint8, inputs["image"]["shape"].tolist(), size, name)
        _check_ranks([len(outputs[o]["shape"]) for o in OUTPUTS], name)
        # An interpreter has one set of tensors, so each call takes an interpreter for itself.
        self._idle = [runner]

    def _new_runner(self) -> Any:
        try:
            interpreter = self._new_interpreter()
            interpreter.allocate_tensors()
            return interpreter.get_signature_runner()
        except Exception as error:
            raise BundleError(f"{self._name} is no model that LiteRT accepts ({one_line(error)})") from error

    def run(self, films: Pixels) -> Outputs:
        try:
            runner = self._idle.pop()
        except IndexError:
            # Other threads use all of them.
            runner = self._new_runner()
        try:
            answers = [runner(image=film[np.newaxis]) for film in films]
        except Exception as error:
            raise _did_not_run(self._name, error) from error
        finally:
            self._idle.append(runner)
        outputs = Outputs(*(np.concatenate([a[o] for a in answers]) for o in OUTPUTS))
        return _checked(outputs, len(films), self._name)


def _check_names(inputs: set[str], outputs: set[str], name: str) -> None:
    if inputs != {"image"} or outputs != set(OUTPUTS):
        raise BundleError(f"{name} has other inputs or outputs than a pneumo model: export it again")


def _check_input(uint8: bool, shape: list[int | str | None], size: int, name: str) -> None:
    # A side of any length, such as the number of films, is a name or None.
    fits = len(shape) == 4 and all(
        stated == wanted or not isinstance(stated, int)
        for stated, wanted in zip(shape, (1, size, size, 1), strict=True)
    )
    if not uint8 or not fits:
        raise BundleError(f"{name} does not take films of {size} x {size} pixels: export it again")


def _check_ranks(ranks: list[int], name: str) -> None:
    if ranks != [1, 3, 1]:
        raise BundleError(f"{name} puts out other shapes than a pneumo model: export it again")


def _checked(outputs: Outputs, films: int, name: str) -> Outputs:
    """Returns the outputs if they keep the contract, which a graph may state and break."""
    _check_ranks([output.ndim for output in outputs], name)
    if any(len(output) != films or not output.size or output.dtype != np.float32 for output in outputs):
        raise BundleError(f"{name} puts out other shapes than a pneumo model: export it again")
    return outputs


def _did_not_run(name: str, error: Exception) -> BundleError:
    return BundleError(f"{name} does not run ({one_line(error)}): export it again")
