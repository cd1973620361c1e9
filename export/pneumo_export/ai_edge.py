"""ai-edge-quantizer, used beyond the interface that it documents: ranges over all films, tensors chosen by name.

This is the one place that imports it; `tests/export/test_ai_edge.py` fails first, and says why, if a version of it
changes what is used here.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ai_edge_quantizer import Quantizer
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.qtyping import TFLOperationName
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update

from pneumo_edge.command_line import progress
from pneumo_edge.preprocess import Pixels
from pneumo_export.quiet import quiet

OPERATIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MAX_POOL_2D", "PAD", "PADV2")
"""Become int8, where the recipe takes them."""

Ranges = dict[str, Any]
"""Tensor -> its smallest and largest value, as ai-edge-quantizer keeps them."""


def find_ranges(model: bytes, films: Pixels) -> Ranges:
    """Returns the smallest and largest value of each tensor of a float TFLite model over all films.

    ai-edge-quantizer by itself averages the ranges of the last films, and so cuts off what half of all films have: for
    VGG16, which has no batch-norm, that made the error seven times as large.

    Args:
        model: TFLite model from `to_tflite`.
        films: Calibration films, uint8 (N, S, S).
    """
    with quiet():
        calibrator = Calibrator(model, qsv_update_func=min_max_update)
    every = _recipe(".*")
    with progress("calibrating tflite", len(films)) as show:
        for done, film in enumerate(films, start=1):
            with quiet():
                calibrator.calibrate({"serving_default": [{"image": film[None, ..., None]}]}, every)
            show(done)
    ranges: Ranges = calibrator.get_model_qsvs()
    return ranges


def quantised(model: bytes, ranges: Ranges, pattern: str) -> bytes:
    """Returns a float TFLite model with some of its operations in int8, weights per channel.

    Args:
        model: TFLite model from `to_tflite`.
        ranges: Ranges of the same model.
        pattern: Regular expression that is found in the names of the tensors to quantise.
    """
    engine = Quantizer(bytearray(model), _recipe(pattern).get_quantization_recipe())
    with quiet():
        made = engine.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(made.quantized_model)


def _recipe(pattern: str) -> RecipeManager:
    made = RecipeManager()
    for operation in OPERATIONS:
        with contextlib.suppress(ValueError):
            made.add_static_config(
                regex=pattern,
                operation_name=TFLOperationName(operation),
                activation_num_bits=8,
                weight_num_bits=8,
            )
    # The matrix of the `flatten` head is stored in int8 and used in float: LiteRT's int8 kernel for it answers the same
    # value for every film.
    made.add_weight_only_config(regex=pattern, operation_name=TFLOperationName.BATCH_MATMUL, num_bits=8)
    return made
