"""What a device compares its films with, and when it says that they have changed."""

from __future__ import annotations

import numpy as np

from pneumo_edge.reference import make_reference


def test_each_site_weighs_the_same_in_the_reference() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(-2, 1, 40).astype(np.float32), rng.normal(2, 1, 400).astype(np.float32)
    novelty = np.ones(440, np.float32)
    found = make_reference(np.concatenate([small, large]), novelty, novelty, ["small"] * 40 + ["large"] * 400)
    repeated = make_reference(np.concatenate([small] * 10 + [large]), *[np.ones(800, np.float32)] * 2, ["one"] * 800)
    assert found is not None
    assert repeated is not None
    assert found.logit == repeated.logit
    assert found.films == 440
    assert (found.logit[0], found.logit[100]) == (small.min(), large.max())
    alone = make_reference(large, novelty[:400], novelty[:400], ["large"] * 400)
    assert alone is not None
    assert alone.logit[50] > found.logit[50] + 1


def test_answers_that_are_no_numbers_give_no_reference() -> None:
    assert make_reference(np.array([0.5, np.nan], np.float32), *[np.ones(2, np.float32)] * 2, ["a", "a"]) is None
    assert make_reference(np.ones(2, np.float32), np.array([0.5, np.inf], np.float32), np.ones(2), ["a", "a"]) is None
