"""Whether a file gives the same answers in other engines, and in the same engine with other kernels.

Our own backend judges every film, and so does each other way to run the same bytes. The answers are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_bench.accuracy import Split, decode
from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes
from pneumo_edge.backends import open_backend
from pneumo_edge.bundle import Bundle
from pneumo_edge.calibrate.platt import probabilities
from pneumo_edge.classifier import usable_cores
from pneumo_edge.command_line import tracked
from pneumo_edge.errors import BundleError, MissingExtraError
from pneumo_edge.preprocess import Pixels

NOTABLE = 0.02
"""Largest difference of a probability that gets no remark."""

Logit = Callable[[Pixels], float]
"""Takes one film, uint8 (1, S, S, 1), and returns its logit."""


def compare_all(bundles: Mapping[str, Bundle], split: Split) -> dict[str, Any]:
    """Runs every file of every bundle in every way that is installed here, and returns the content of `agreement.json`.

    Raises:
        DataError: No film could be read.
    """
    watch = Watch()
    films = decode(split, sorted({bundle.description.input.size for bundle in bundles.values()}))
    results: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    for bundle_name, bundle in bundles.items():
        for file in bundle.description.files:
            name = f"{bundle_name}/{file}"
            pixels = films.pixels[bundle.description.input.size]
            try:
                own = _logits(_own(bundle, file, name), pixels, f"{name}, our own engine")
            except (BundleError, MissingExtraError) as error:
                missing.append({"name": name, "reason": str(error)})
                continue
            for way, load in WAYS[Path(file).suffix].items():
                try:
                    other = _logits(load(bundle.read_file(file)), pixels, f"{name}, {way}")
                except MissingExtraError as error:
                    missing.append({"name": f"{name}, {way}", "reason": str(error)})
                    continue
                stated = bundle.description.files[file]
                results.append(
                    {"name": name, "precision": stated.precision, "sha256": stated.sha256, "way": way}
                    | _compare(own, other, bundle)
                )
    return header("agreement", describe_machine(), watch.finish()) | {
        "settings": {"split": split.name, "films": len(films.files), "unreadable": list(films.errors)},
        "results": results,
        "missing": missing,
    }


def _compare(own: npt.NDArray[np.float64], other: npt.NDArray[np.float64], bundle: Bundle) -> dict[str, Any]:
    description = bundle.description
    point = description.default_operating_point
    threshold = description.operating_points[point].threshold
    p, q = probabilities(own, description.calibration), probabilities(other, description.calibration)
    away = np.abs(p - q)
    # JSON has no NaN. An answer that is no number agrees with none.
    away = np.where(np.isfinite(away), away, 1.0)
    return {
        "operating_point": point,
        "probability_difference": {"max": float(away.max()), "mean": float(away.mean())},
        "flips": int(np.sum((p >= threshold) != (q >= threshold))),
    }


def _logits(logit: Logit, pixels: Pixels, what: str) -> npt.NDArray[np.float64]:
    return np.array([logit(film[np.newaxis, ..., np.newaxis]) for film in tracked(pixels, what, len(pixels))])


def _own(bundle: Bundle, file: str, name: str) -> Logit:
    engine = Path(file).suffix[1:]
    backend = open_backend(engine, bundle.read_file(file), bundle.description.input.size, usable_cores(), name)
    return lambda film: float(backend.run(film).logit[0])


def _onnxruntime(level: str) -> Callable[[bytes], Logit]:
    def load(model: bytes) -> Logit:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda film: float(session.run(["logit"], {"image": film})[0][0])

    return load


def _openvino(model: bytes) -> Logit:
    if find_spec("openvino") is None:
        raise MissingExtraError("openvino", "bench", "comparing with OpenVINO")
    import openvino

    # Or it would compute in bfloat16 where the processor can, which is not the precision of the file.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model, b""), "CPU", settings)
    return lambda film: float(compiled({"image": film})["logit"][0])


def litert(resolver: str) -> Callable[[bytes], Logit]:
    """Returns what loads a file for LiteRT with the kernels of that `OpResolverType`."""

    def load(model: bytes) -> Logit:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        interpreter = Interpreter(model_content=model, experimental_op_resolver_type=OpResolverType[resolver])
        runner = interpreter.get_signature_runner()
        return lambda film: float(runner(image=film)["logit"][0])

    return load


WAYS: dict[str, dict[str, Callable[[bytes], Logit]]] = {
    ".onnx": {
        "onnxruntime, all optimisations": _onnxruntime("ORT_ENABLE_ALL"),
        "onnxruntime, no optimisation": _onnxruntime("ORT_DISABLE_ALL"),
        "OpenVINO": _openvino,
    },
    ".tflite": {
        "LiteRT with XNNPACK": litert("BUILTIN"),
        "LiteRT without XNNPACK": litert("BUILTIN_WITHOUT_DEFAULT_DELEGATES"),
    },
}
"""Suffix of a file -> name of another way to run it -> function that loads it for that way."""


def agreement_table(record: Mapping[str, Any]) -> Table:
    """Returns the table of a record of `compare_all`."""
    settings = record["settings"]
    rows: list[tuple[str, ...]] = [
        (
            result["name"],
            result["way"],
            f"{result['probability_difference']['max']:.2g}",
            f"{result['probability_difference']['mean']:.2g}",
            str(result["flips"]),
        )
        for result in record["results"]
    ]
    notes = [
        f"{settings['films']} {settings['split']} films, each against our own engine with the same file; verdicts at "
        "the default operating point",
        machine_notes(record["machine"], record["load"])[0],
    ]
    notes += [
        f"more than {NOTABLE:g}: {result['name']}, {result['way']}"
        for result in record["results"]
        if result["probability_difference"]["max"] > NOTABLE
    ]
    notes += [f"not compared: {gap['name']}: {gap['reason']}" for gap in record["missing"]]
    notes += [f"not read: {error}" for error in settings["unreadable"]]
    columns = ("file", "run by", "largest difference", "mean difference", "flipped verdicts")
    return Table(f"The same answer everywhere, on {settings['split']} films", columns, rows, tuple(notes))
