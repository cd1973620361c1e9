"""Canary: what pneumo uses of ai-edge-quantizer without a promise is still there, and means what it meant."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer", reason="needs the extra export")

pytestmark = pytest.mark.canary

WHY = (
    "this ai-edge-quantizer has changed what pneumo_export/ai_edge.py uses: mend that module, the one place that "
    "imports it, or int8 TFLite files cannot be made"
)


def test_ai_edge_quantizer_still_has_what_is_used() -> None:
    try:
        from ai_edge_quantizer.calibrator import Calibrator
        from ai_edge_quantizer.qtyping import TFLOperationName
        from ai_edge_quantizer.recipe_manager import RecipeManager

        from pneumo_export import ai_edge
    except ImportError as error:
        pytest.fail(f"{WHY} ({error})")
    assert "qsv_update_func" in inspect.signature(Calibrator.__init__).parameters, WHY
    assert {"calibrate", "get_model_qsvs"} <= set(dir(Calibrator)), WHY
    assert {"add_static_config", "add_weight_only_config"} <= set(dir(RecipeManager)), WHY
    assert {operation.value for operation in TFLOperationName} >= set(ai_edge.OPERATIONS) - {"PADV2"}, WHY


def test_ranges_are_those_of_all_films_and_no_average() -> None:
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    first, second = ({"min": np.array(low), "max": np.array(high)} for low, high in ((-1.0, 2.0), (-3.0, 1.0)))
    merged = min_max_update(first, second)
    assert (float(merged["min"]), float(merged["max"])) == (-3.0, 2.0), WHY
