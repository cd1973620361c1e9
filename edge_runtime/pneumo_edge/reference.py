"""How a model's answers are distributed where all is well, which a device that watches itself compares with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.bundle import Reference

Floats = npt.NDArray[np.floating[Any]]


def make_reference(logit: Floats, novelty: Floats, contrast: Floats, sites: Sequence[str]) -> Reference | None:
    """Returns the reference of a model file, None where an answer is no number.

    Args:
        logit: (N,), of films as they are.
        novelty: (N,), of the same.
        contrast: (N,), of the same, from `plausibility.contrast`.
        sites: N names: each site weighs the same, however many films it has.
    """
    if not (np.isfinite(logit).all() and np.isfinite(novelty).all()):
        return None
    _, site, films = np.unique(np.asarray(sites), return_inverse=True, return_counts=True)
    weights = 1 / films[site]

    def quantiles(values: Floats) -> tuple[float, ...]:
        # The smallest value that at least this share of the weight does not exceed: a value that did occur.
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(weights[order])
        places = np.searchsorted(reached, np.linspace(0, 1, 101) * reached[-1] * (1 - 1e-12))
        return tuple(float(value) for value in values[order][places])

    return Reference(len(logit), quantiles(logit), quantiles(novelty), quantiles(contrast))
