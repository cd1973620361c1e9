"""Times one engine with one model, in a process of its own.

Each engine has its own process, since the threads of onnxruntime go on spinning for a while and slow others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_bench.machine import peak_rss
from pneumo_bench.process import answer
from pneumo_edge.backends import open_backend
from pneumo_edge.bundle import ENGINE_OF_SUFFIX, read_bundle
from pneumo_edge.classifier import Classifier, Failure
from pneumo_edge.preprocess import Pixels, read_film

DISTINCT_FILMS = 8
"""Films that take turns, so that no engine sees a single input."""

WARM_UP = 20

Infer = Callable[[Pixels], float]
"""Takes one film, uint8 (1, S, S, 1), and returns its logit when all outputs have been computed."""


def time_engine(
    engine: str, folder: str, file: str, size: int, threads: int, queries: int, films: list[str]
) -> dict[str, Any]:
    """Loads a model, then asks it one film at a time (MLPerf's single-stream scenario).

    Args:
        engine: A key of `ENGINES`.
        folder: Bundle, or the run of a Keras model.
        file: Model file in that folder.
        size: S, side of the model's input in pixels.
        threads: Threads for one film.
        queries: Films that are timed after the warm-up.
        films: Paths. The first few are decoded once for the queries; all of them are the folder run.

    Returns:
        load_ms without the import of the engine, first_ms, latencies_ms of the queries, peak_rss in bytes after them,
        films_per_second of the folder run (None for engines other than our own), and the logit of the first film.
    """
    pixels = [read_film(film, size).pixels[np.newaxis] for film in films[:DISTINCT_FILMS]]
    load = ENGINES[engine](Path(folder), file, size, threads)
    start = time.perf_counter()
    infer = load()
    load_ms = (time.perf_counter() - start) * 1e3
    logit, first_ms = _timed(infer, pixels[0])
    for i in range(WARM_UP):
        infer(pixels[i % len(pixels)])
    latencies = [_timed(infer, pixels[i % len(pixels)])[1] for i in range(queries)]
    rss = peak_rss()
    # The engine's idle threads must not disturb the folder run.
    del infer, load
    return {
        "load_ms": load_ms,
        "first_ms": first_ms,
        "latencies_ms": latencies,
        "peak_rss": rss,
        "films_per_second": _folder_run(Path(folder), file, threads, films) if engine == "pneumo" else None,
        "logit": logit,
    }


def _timed(infer: Infer, film: Pixels) -> tuple[float, float]:
    start = time.perf_counter()
    logit = infer(film)
    return logit, (time.perf_counter() - start) * 1e3


def _folder_run(bundle: Path, file: str, threads: int, films: list[str]) -> float:
    """From files to verdicts, films per second; the model is loaded already."""
    with Classifier(read_bundle(bundle), file, threads=threads) as classifier:
        start = time.perf_counter()
        answers = list(classifier.predict_batch(films))
        seconds = time.perf_counter() - start
    for verdict in answers:
        if isinstance(verdict, Failure):
            raise ValueError(verdict.error)
    return len(answers) / seconds


def _pneumo(folder: Path, file: str, size: int, threads: int) -> Callable[[], Infer]:
    engine = ENGINE_OF_SUFFIX[Path(file).suffix]
    if engine == "onnx":
        import onnxruntime  # noqa: F401
    else:
        import ai_edge_litert.interpreter  # noqa: F401

    def load() -> Infer:
        data = read_bundle(folder).read_file(file)
        backend = open_backend(engine, data, size, threads, file)
        return lambda film: float(backend.run(film).logit[0])

    return load


def _onnxruntime(folder: Path, file: str, size: int, threads: int) -> Callable[[], Infer]:  # noqa: ARG001
    import onnxruntime

    def load() -> Infer:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(folder / file), options)
        place = [output.name for output in session.get_outputs()].index("logit")
        return lambda film: float(session.run(None, {"image": film})[place][0])

    return load


def _litert(folder: Path, file: str, size: int, threads: int) -> Callable[[], Infer]:  # noqa: ARG001
    from ai_edge_litert.interpreter import Interpreter

    def load() -> Infer:
        interpreter = Interpreter(model_path=str(folder / file), num_threads=threads)
        interpreter.allocate_tensors()
        image = interpreter.get_input_details()[0]["index"]
        outputs = [detail["index"] for detail in interpreter.get_output_details()]
        logit = outputs.index(interpreter.get_signature_runner().get_output_details()["logit"]["index"])

        def infer(film: Pixels) -> float:
            interpreter.set_tensor(image, film)
            interpreter.invoke()
            return float([interpreter.get_tensor(output) for output in outputs][logit][0])

        return infer

    return load


def _openvino(folder: Path, file: str, size: int, threads: int) -> Callable[[], Infer]:  # noqa: ARG001
    import openvino

    def load() -> Infer:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # Or it would calculate in bfloat16 where the processor can: another precision than the file's.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        model = openvino.Core().compile_model(folder / file, "CPU", settings)
        return lambda film: float(model({"image": film})["logit"][0])

    return load


def _keras_predict(folder: Path, file: str, size: int, threads: int) -> Callable[[], Infer]:  # noqa: ARG001
    load_model = _keras(threads)

    def load() -> Infer:
        model = load_model(folder / file)
        return lambda film: float(model.predict(film.astype(np.float32), verbose=0)[0, 0])

    return load


def _tf_function(folder: Path, file: str, size: int, threads: int) -> Callable[[], Infer]:
    load_model = _keras(threads)
    import tensorflow as tf

    def load() -> Infer:
        model = load_model(folder / file)
        signature = [tf.TensorSpec((1, size, size, 1), tf.float32)]
        function = tf.function(lambda film: model(film, training=False), input_signature=signature)
        return lambda film: float(function(tf.constant(film, tf.float32)).numpy()[0, 0])

    return load


def _keras(threads: int) -> Callable[[Path], Any]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras

    return lambda path: keras.saving.load_model(path, compile=False)


ENGINES: dict[str, Callable[[Path, str, int, int], Callable[[], Infer]]] = {
    "pneumo": _pneumo,
    "onnxruntime": _onnxruntime,
    "litert": _litert,
    "openvino": _openvino,
    "keras": _keras_predict,
    "tf.function": _tf_function,
}
"""Engine -> function that imports it and returns one that loads a model, so that the time to load has no import in
it."""


if __name__ == "__main__":
    answer(time_engine)
