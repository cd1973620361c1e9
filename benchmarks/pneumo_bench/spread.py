"""Percentiles of one round, and the spread over several rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the smallest value that `share` of the values do not exceed; None if there are too few values.

    It is the nearest rank without interpolation, as in MLPerf's load generator.

    Args:
        values: Values in any order.
        share: Share in (0, 1), such as 0.99, which needs 100 values.
    """
    # 1 / (1 - 0.99) is a little more than 100 in floating point.
    if len(values) < round(1 / (1 - share)):
        return None
    return sorted(values)[math.ceil(round(share * len(values), 6)) - 1]


def spread(rounds: Sequence[float | None]) -> dict[str, float] | None:
    """Returns median, low and high over the rounds; None if a round has no value."""
    known = sorted(value for value in rounds if value is not None)
    if not known or len(known) < len(rounds):
        return None
    middle = len(known) // 2
    median = known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2
    return {name: round(value, 6) for name, value in (("median", median), ("low", known[0]), ("high", known[-1]))}


def ratios(rounds: Sequence[float | None], baseline: Sequence[float | None]) -> dict[str, float] | None:
    """Returns the spread of the ratios, each within one round: what slows a whole round cancels out."""
    pairs = zip(rounds, baseline, strict=True)
    return spread([None if own is None or other is None else own / other for own, other in pairs])


def ratio_text(ratio: dict[str, float] | None) -> str:
    """Writes a ratio for people: 1.05, or 1/15.2 where it is below a half."""
    if ratio is None:
        return "–"
    median = ratio["median"]
    return f"1/{1 / median:.1f}" if median < 0.5 else f"{median:.2f}"
