"""When an int8 file fails the gate: the blocks of layers that hurt most go back to float, a few at a time.

What a block adds to the error is measured by quantising it alone, in the real file format and on the real engine: the
float network goes before it and behind it, so that nothing is inherited and nothing hidden. (Taking one block out of a
file that is int8 throughout shows little where two neighbours each spoil the same activations.) The errors of single
blocks add up as squares, nearly, so the largest ones are the ones to mend.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pneumo_edge.backends import Backend, Outputs
from pneumo_edge.command_line import say, tracked
from pneumo_edge.preprocess import Pixels
from pneumo_export.gate import FLOAT_SHARE, accuracy_failures
from pneumo_export.quantise import HIDDEN, Block, Quantise

PROBE_FILMS = 16
"""Calibration films that the error of a block is measured on."""

FIRST_STEP = 2
"""Blocks that go back to float in the first attempt; each attempt moves twice as many as the one before it."""

_FLOAT_BYTES = 3
"""Further bytes of a weight that is float and not int8."""


@dataclass(frozen=True)
class JudgedFile:
    """A file and what the gate says of it."""

    content: bytes
    record: dict[str, Any]
    """Result of `pneumo_export.gate.Gate.judge`."""


def repair(
    name: str,
    broken: JudgedFile,
    blocks: Sequence[Block],
    films: Pixels,
    float_backend: Backend,
    quantise: Quantise,
    open_file: Callable[[bytes], Backend],
    judge_file: Callable[[bytes], dict[str, Any]],
    *,
    max_drop: float,
    max_bytes: float,
) -> tuple[JudgedFile, dict[str, Any]]:
    """Moves blocks back to float until the file is accurate, or a tenth of the weights is float, or it grows too large.

    Args:
        name: Name of the file, for the progress bar.
        broken: The file with every block in int8; the gate has refused it for its accuracy.
        blocks: All that can be int8.
        films: Calibration films, uint8 (N, S, S), of training patients.
        float_backend: The float file of the same format.
        quantise: Makes the file in which the named layers are int8.
        open_file: Loads a file into its engine.
        judge_file: Judges a file by the gate.
        max_drop: Allowed loss of right verdicts, as in `pneumo_export.gate.Gate`.
        max_bytes: Largest allowed size of the file.

    Returns:
        The last file tried, and for `parity.json` the error of each block that may move and what each attempt gave.
    """
    # The large matrix of the `flatten` head is no convolution: what may be float is a share of the others.
    convolution_weights = sum(block.weights for block in blocks if HIDDEN not in block.layers)
    weights_left = (FLOAT_SHARE - broken.record["float_share_of_convolution_weights"]) * convolution_weights
    bytes_left = max_bytes - len(broken.content)
    # A block too large to move need not be measured.
    movable = [b for b in blocks if b.weights <= weights_left and _FLOAT_BYTES * b.weights <= bytes_left]
    probes = films[:: max(1, len(films) // PROBE_FILMS)]
    errors = block_errors(name, movable, probes, float_backend, lambda layers: open_file(quantise(layers)))
    waiting = sorted(movable, key=lambda block: errors[block.layers[0]], reverse=True)
    moved: list[Block] = []
    attempts: list[dict[str, Any]] = []
    tried, step = broken, FIRST_STEP
    while accuracy_failures(tried.record, max_drop):
        chosen: list[Block] = []
        for block in waiting:
            if block.weights <= weights_left and _FLOAT_BYTES * block.weights <= bytes_left and len(chosen) < step:
                chosen.append(block)
                weights_left -= block.weights
                bytes_left -= _FLOAT_BYTES * block.weights
        if not chosen:
            break
        moved += chosen
        waiting = [block for block in waiting if block not in chosen]
        content = quantise(layers_of(block for block in blocks if block not in moved))
        tried, step = JudgedFile(content, judge_file(content)), 2 * step
        attempts.append(
            {
                "moved": [block.layers[0] for block in chosen],
                "float_share_of_convolution_weights": tried.record["float_share_of_convolution_weights"],
                "bytes": len(content),
                "failures": tried.record["failures"],
            }
        )
        outcome = "; ".join(tried.record["failures"]) or "it passes"
        say(f"{name} with {len(moved)} blocks of {len(blocks)} in float: {outcome}")
    return tried, {"errors": errors, "failures_before": broken.record["failures"], "attempts": attempts}


def block_errors(
    name: str,
    blocks: Sequence[Block],
    probes: Pixels,
    float_backend: Backend,
    open_quantised: Callable[[Collection[str]], Backend],
) -> dict[str, float]:
    """Returns, for the first layer of each block, the error that the block causes when it alone is quantised.

    The error is the root mean square change of the logit in standard deviations of the logit over the films, plus the
    same of novelty.
    """
    expected = _run(float_backend, probes)
    errors = {}
    for block in tracked(blocks, f"measuring the layers of {name}", len(blocks)):
        found = _run(open_quantised(block.layers), probes)
        errors[block.layers[0]] = sum(
            float(np.sqrt(np.mean((after - before) ** 2)) / max(float(before.std()), 1e-6))
            for before, after in ((expected.logit, found.logit), (expected.novelty, found.novelty))
        )
    return errors


def layers_of(blocks: Iterable[Block]) -> list[str]:
    """Returns the names of all layers of some blocks."""
    return [layer for block in blocks for layer in block.layers]


def _run(backend: Backend, films: Pixels) -> Outputs:
    answers = [backend.run(film[np.newaxis, ..., np.newaxis]) for film in films]
    return Outputs(*(np.concatenate(parts) for parts in zip(*answers, strict=True)))
