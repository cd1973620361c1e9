"""Where the time for one film goes: the operations of an ONNX file, by kind, as ONNX Runtime's profiler times them.

LiteRT has no profiler that Python reaches, and hands the whole graph to XNNPACK as one operation.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes
from pneumo_edge.bundle import Bundle
from pneumo_edge.errors import BundleError, MissingExtraError, UsageError, one_line

KINDS = {
    "int8 convolutions and sums": ("QLinear",),
    "float convolutions": ("Conv", "FusedConv", "NchwcConv"),
    "between formats of numbers and of memory": ("Quantize", "Dequantize", "Reorder", "Transpose", "Cast"),
}
"""Kind of operation -> how the names of its operators begin. The others are input, head, heatmap and novelty."""
OTHERS = "input, head, heatmap, novelty"
WARM_UP = 10


def profile_all(bundles: Mapping[str, Bundle], *, films: int) -> dict[str, Any]:
    """Profiles every ONNX file of the bundles with one thread, and returns the content of `layers.json`.

    Args:
        bundles: Name -> bundle.
        films: How often a film of noise is judged, one at a time.

    Raises:
        UsageError: No bundle has an ONNX file.
        BundleError: ONNX Runtime does not accept a file.
        MissingExtraError: ONNX Runtime is not installed.
    """
    watch = Watch()
    results = [
        {"name": f"{name}/{file}", "precision": stated.precision, "sha256": stated.sha256}
        | _profile(bundle.read_file(file), bundle.description.input.size, films, f"{name}/{file}")
        for name, bundle in bundles.items()
        for file, stated in bundle.description.files.items()
        if Path(file).suffix == ".onnx"
    ]
    if not results:
        raise UsageError("no model has an ONNX file to profile: give one that was exported with --formats onnx")
    return header("layers", describe_machine(), watch.finish()) | {"settings": {"films": films}, "results": results}


def _profile(model: bytes, size: int, films: int, name: str) -> dict[str, Any]:
    """Returns the microseconds that one film takes, by operator and by kind."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "onnx", f"{name}: an ONNX model") from None

    film = np.random.default_rng(0).integers(0, 256, (1, size, size, 1), np.uint8)
    with tempfile.TemporaryDirectory(prefix="pneumo-bench-") as scratch:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            for _ in range(WARM_UP + films):
                session.run(None, {"image": film})
        except Exception as error:
            raise BundleError(f"{name} is no model that ONNX Runtime accepts ({one_line(error)})") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    timed: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            timed[event["args"]["op_name"], event["name"]].append(event["dur"])
    operators: dict[str, dict[str, float]] = defaultdict(lambda: {"number": 0, "microseconds": 0.0})
    for (operator, _), durations in timed.items():
        operators[operator]["number"] += 1
        operators[operator]["microseconds"] += float(np.median(durations[WARM_UP:]))
    total = sum(found["microseconds"] for found in operators.values())
    kinds = {kind: {"number": 0, "microseconds": 0.0} for kind in (*KINDS, OTHERS)}
    for operator, found in operators.items():
        kind = kinds[_kind(operator)]
        kind["number"] += found["number"]
        kind["microseconds"] += found["microseconds"]
    return {
        "microseconds": total,
        "kinds": {kind: found | {"share": found["microseconds"] / total} for kind, found in kinds.items()},
        "operators": dict(sorted(operators.items(), key=lambda item: -item[1]["microseconds"])),
    }


def _kind(operator: str) -> str:
    return next((kind for kind, beginnings in KINDS.items() if operator.startswith(beginnings)), OTHERS)


def layers_table(record: Mapping[str, Any]) -> Table:
    """Returns the table of a record of `profile_all`."""
    rows: list[tuple[str, ...]] = [
        (result["name"], kind, str(found["number"]), f"{found['microseconds']:.0f}", f"{found['share']:.1%}")
        for result in record["results"]
        for kind, found in result["kinds"].items()
    ]
    notes = (
        f"{record['settings']['films']} times one film of noise with one thread; medians of each operation, whose sum "
        "is more than the film takes without the profiler",
        *machine_notes(record["machine"], record["load"]),
    )
    return Table("Where the time for one film goes", ("model", "operations", "number", "µs", "share"), rows, notes)
