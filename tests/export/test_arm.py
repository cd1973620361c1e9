"""`make test-arm` itself takes minutes and root; that its comparison can fail is checked here."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from places import ROOT

_spec = importlib.util.spec_from_file_location("arm", ROOT / "tests" / "arm.py")
assert _spec is not None and _spec.loader is not None
arm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(arm)


def _record(**changes: Any) -> dict[str, Any]:
    return {"label": "NORMAL", "probability": 0.5, "logit": 0.0, "in_distribution": True} | changes


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"probability": 0.491, "logit": -0.3}, True),
        ({"probability": 0.511}, False),
        ({"probability": 0.489}, False),
        ({"label": "PNEUMONIA"}, False),
        ({"in_distribution": False}, False),
    ],
)
def test_one_film_judged_otherwise_on_arm_fails(changes: dict[str, Any], passed: bool) -> None:
    found = arm.compare([_record()] * 3, [_record(), _record(**changes), _record()])

    assert found["passed"] is passed
    assert found["same_verdicts"] == (2 if {"label", "in_distribution"} & changes.keys() else 3)
    assert found["max_logit_difference"] == abs(changes.get("logit", 0.0))


def test_a_film_that_is_missing_on_arm_fails() -> None:
    with pytest.raises(ValueError, match="shorter"):
        arm.compare([_record()] * 3, [_record()] * 2)
