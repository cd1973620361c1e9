"""Predictions of a Keras model for films, in batches small enough for any memory."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext

import keras
import numpy as np
import numpy.typing as npt

from pneumo_edge.command_line import progress
from pneumo_edge.preprocess import Pixels

PREDICT_BATCH = 64

Floats = npt.NDArray[np.float32]


def outputs_of(model: keras.Model, films: Pixels, what: str | None = None) -> dict[str, Floats]:
    """Returns the outputs of a model for films, float32, by name.

    Args:
        model: Has one output, which is called "logit" here, or several with names.
        films: uint8 (N, S, S).
        what: Title of a progress bar; None for no bar.
    """
    parts: dict[str, list[Floats]] = defaultdict(list)
    with progress(what, len(films)) if what else nullcontext(lambda _: None) as show:
        for start in range(0, len(films), PREDICT_BATCH):
            # The last batch is as large as the others, with films that were answered before: for one of another size
            # Keras would trace the network once more, which takes longer than to answer them.
            first = max(0, min(start, len(films) - PREDICT_BATCH))
            batch = films[first : first + PREDICT_BATCH]
            found = model.predict_on_batch(batch[..., np.newaxis].astype(np.float32))
            for name, value in (found if isinstance(found, dict) else {"logit": found}).items():
                parts[name].append(np.asarray(value, np.float32)[start - first :])
            show(first + len(batch))
    return {name: np.concatenate(part) for name, part in parts.items()}


def logits(model: keras.Model, films: Pixels) -> Floats:
    """Returns the logits (N,), float32, of films uint8 (N, S, S)."""
    return outputs_of(model, films)["logit"][:, 0]
