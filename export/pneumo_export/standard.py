"""Checks of an ONNX file against the standard: other programs are less forgiving than ONNX Runtime."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.backends import OUTPUTS
from pneumo_edge.command_line import say

_EVALUATED_OPSET = 19
"""onnx's reference evaluator has no QuantizeLinear of an older one. For what these files hold, both mean the same."""


def sort_nodes(graph: Any) -> None:
    """Puts the nodes of an ONNX graph into an order in which each comes after those whose output it takes.

    The standard asks for it ("Graphs", onnx/docs/IR.md). ONNX Runtime sorts by itself when it loads, and its quantiser
    appends what it adds at the end.
    """
    made = {output: i for i, node in enumerate(graph.node) for output in node.output}
    needs = {i: [made[name] for name in node.input if name in made] for i, node in enumerate(graph.node)}
    nodes = [graph.node[i] for i in TopologicalSorter(needs).static_order()]
    del graph.node[:]
    graph.node.extend(nodes)


def standard_failures(content: bytes, film: npt.NDArray[np.uint8]) -> list[str]:
    """Returns what is wrong with an ONNX file by the standard's own checker and its reference evaluator.

    The evaluators of some versions have gaps (that of onnx 1.17 fails on our graphs): what one cannot run is said, and
    nothing against the file.

    Args:
        content: The file.
        film: uint8 (S, S).
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_from_string(content)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"the checker of ONNX refuses it: {' '.join(str(error).split())}"]
    try:
        if max(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}) < _EVALUATED_OPSET:
            model = onnx.version_converter.convert_version(model, _EVALUATED_OPSET)
        evaluator = ReferenceEvaluator(model)
        found = dict(zip(evaluator.output_names, evaluator.run(None, {"image": film[None, ..., None]}), strict=True))
    except Exception as error:
        # It has no errors of its own.
        reason = " ".join(str(error).split())
        say(
            f"warning: only the checker judged the ONNX file: the evaluator of onnx {onnx.__version__} fails ({reason})"
        )
        return []
    return [
        f"the reference evaluator of ONNX finds no number for {name}"
        for name in OUTPUTS
        if name not in found or not np.isfinite(found[name]).all()
    ]
