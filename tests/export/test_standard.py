"""ONNX files as the standard wants them: nodes in order, accepted by its checker, run by its reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra export")
pytest.importorskip("hypothesis", reason="needs the extra dev")

import onnxruntime  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from pneumo_edge.bundle import DEFAULT_BUNDLE  # noqa: E402
from pneumo_export.standard import sort_nodes, standard_failures  # noqa: E402

FILM = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)


def in_order(graph: Any) -> bool:
    known = {value.name for value in [*graph.input, *graph.initializer]}
    for node in graph.node:
        if not known.issuperset(node.input):
            return False
        known.update(node.output)
    return True


@given(data=st.data())
def test_nodes_in_any_order_are_put_in_order_and_none_is_lost(model_bytes: bytes, data: st.DataObject) -> None:
    plain, shuffled = (onnx.load_from_string(model_bytes) for _ in range(2))
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(data.draw(st.permutations(list(plain.graph.node))))
    sort_nodes(shuffled.graph)
    assert in_order(shuffled.graph)
    before, after = (sorted(n.SerializeToString() for n in m.graph.node) for m in (plain, shuffled))
    assert after == before
    assert standard_failures(shuffled.SerializeToString(), FILM) == []


def test_what_the_checker_refuses_is_named(new_model: Any) -> None:
    first = new_model.graph.node[0]
    new_model.graph.node.remove(first)
    new_model.graph.node.append(first)
    [failure] = standard_failures(new_model.SerializeToString(), FILM)
    assert failure.startswith("the checker of ONNX refuses it: Nodes in a graph must be topologically sorted")
    assert "\n" not in failure


def test_a_wrong_shape_is_found_by_the_checker(new_model: Any) -> None:
    new_model.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 5
    [failure] = standard_failures(new_model.SerializeToString(), FILM)
    assert "checker of ONNX" in failure


def test_what_the_evaluator_cannot_run_is_said(new_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    new_model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    for node in new_model.graph.node:
        if node.op_type == "Abs":
            node.op_type, node.domain = "Gelu", "com.microsoft"
    assert standard_failures(new_model.SerializeToString(), FILM) == []
    assert capsys.readouterr().err.startswith("warning: only the checker judged the ONNX file: the evaluator of onnx ")


def test_an_answer_that_is_no_number_is_named(new_model: Any) -> None:
    for tensor in new_model.graph.initializer:
        if tensor.name == "four":
            tensor.CopyFrom(onnx.helper.make_tensor("four", onnx.TensorProto.FLOAT, (), [float("nan")]))
    assert standard_failures(new_model.SerializeToString(), FILM) == [
        "the reference evaluator of ONNX finds no number for novelty"
    ]


def test_the_default_model_is_what_the_standard_wants(capsys: pytest.CaptureFixture[str]) -> None:
    content = (DEFAULT_BUNDLE / "model.int8.onnx").read_bytes()
    side = onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    assert in_order(onnx.load_from_string(content).graph)
    assert standard_failures(content, np.resize(FILM, (side, side))) == []
    assert capsys.readouterr().err == ""  # the evaluator too has run it
    onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
