"""What a training step reads: films in balance, and targets that labels, boxes or teachers give.

Both sides of a comparison are computed on this processor from the same bytes, by a network of a few weights. They
differ by batches and so by the order of sums, 1e-7 of values of about one.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_train.augment import box_coverage, draw_movement
from pneumo_train.films import Box, FilmFile

if TYPE_CHECKING:
    import keras

    from pneumo_train.batches import FitData

pytestmark = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs the train extra")

SIZE = 32
LOCAL_LOGIT = "local_logit"

LOSSES: dict[str, list[float]] = {}
"""Of the runs that nothing interrupted, for those that something did."""


@pytest.fixture(scope="module")
def module() -> Any:
    """The module; it imports Keras."""
    from pneumo_train import batches

    return batches


@pytest.fixture(scope="module")
def data(module: Any) -> FitData:
    """Forty films, a quarter of class 1; 24 to learn from (not the first), of which 6 are of class 1."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4 == 0
    pixels = rng.normal(90, 25, (40, SIZE, SIZE))
    pixels[labels, 8:24] += 90
    films = np.clip(pixels, 0, 255).astype(np.uint8)
    files = [FilmFile(f"{i}.png", int(label), f"p{i}", "train", "here") for i, label in enumerate(labels)]
    made: FitData = module.FitData(
        films, np.arange(16, 40), files, films[:8], films[8:16], labels[:8].astype(np.int64), ["here"] * 8
    )
    return made


def net(size: int = SIZE) -> keras.Model:
    """A little net."""
    from keras import Model, layers

    image = layers.Input((size, size, 1), name="image")
    x = layers.Rescaling(1 / 127, -1.0)(image)
    x = layers.Conv2D(3, 3, strides=2, activation="relu", name="first")(x)
    side = layers.Conv2D(4, 1, name="side")(x)
    x = layers.Conv2D(4, 3, padding="same", name="last")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add()([x, side]))
    x = layers.Dropout(0.2, name="dropout")(x)
    return Model(image, layers.Dense(1, name="logit")(x), name="tiny")


def judged_by_what_it_learns(data: FitData) -> FitData:
    """The same training films, which validate too."""
    own = data.films[16:]
    return replace(
        data, validation=own, perturbed=own, validation_labels=data.labels[16:], validation_sites=["here"] * len(own)
    )


Batch = tuple[npt.NDArray[np.float32], ...]


def batches(
    module: Any, data: FitData, epoch: int = 0, side: int = SIZE, map_side: int | None = None, **options: Any
) -> list[Batch]:
    """The batches of an epoch, of eight films."""
    settings = {"batch_size": 8, "seed": 5, "balance": "weights", "teachers": ()} | options
    return list(module.Batches(data, **settings).of_epoch(epoch, side, map_side))


def places(data: FitData, films: npt.NDArray[np.float32]) -> list[int]:
    """Which films of the set these are."""
    return [int(np.flatnonzero((data.films == film[..., 0]).all(axis=(1, 2)))[0]) for film in films]


def whole(batches: list[Batch]) -> Batch:
    """Inputs, targets and weights of an epoch."""
    inputs, targets, weights = (np.concatenate(p) for p in zip(*batches, strict=True))
    return inputs, targets[:, 0], weights


# ---------------------------------------------------------------------------------------------------------- balance


def test_every_film_is_seen_once_an_epoch_and_both_classes_weigh_the_same(
    module: Any, data: FitData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "augment", lambda film, _: film)
    orders = []
    for epoch in range(2):
        made = batches(module, data, epoch)
        films, targets, weights = whole(made)
        assert len(made) == 3
        place = places(data, films)
        assert sorted(place) == data.train.tolist()
        assert targets == pytest.approx(np.where(data.labels[place] == 1, 0.95, 0.05))
        assert weights[targets > 0.5].sum() == pytest.approx(12)
        assert weights[targets < 0.5].sum() == pytest.approx(12)
        assert {part.dtype for part in (films, targets, weights)} == {np.dtype(np.float32)}
        orders.append(place)
    assert orders[0] != orders[1]
    again = batches(module, data, 1)
    assert np.array_equal(again[0][0], batches(module, data, 1)[0][0])
    assert not np.array_equal(again[0][0], batches(module, data, 1, seed=6)[0][0])


def test_sampling_shows_the_rarer_class_more_often_and_weighs_all_the_same(
    module: Any, data: FitData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "augment", lambda film, _: film)
    films, targets, weights = whole(batches(module, data, balance="sampling"))
    assert set(weights) == {1.0}
    shown = np.array(places(data, films))
    common, rare = shown[targets < 0.5], shown[targets > 0.5]
    assert len(common) == len(rare) == 12
    assert len(set(common)) == 12  # none twice while there are others
    assert np.unique(rare, return_counts=True)[1].tolist() == [2] * 6


Cells = st.dictionaries(
    st.tuples(st.sampled_from(["here", "there", "elsewhere"]), st.integers(0, 1)), st.integers(1, 60), min_size=1
)


def films_of(cells: dict[tuple[str, int], int]) -> list[FilmFile]:
    """So many films of each site and class."""
    return [
        FilmFile(f"{site}{label}{i}.png", label, f"{site}{label}{i}", "train", site)
        for (site, label), count in cells.items()
        for i in range(count)
    ]


@settings(deadline=None, max_examples=60)
@given(cells=Cells)
def test_the_site_says_nothing_about_the_class_and_weighs_as_the_root_of_its_films(
    module: Any, cells: dict[tuple[str, int], int]
) -> None:
    files = films_of(cells)
    weights = module.film_weights(files)
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert weights.mean() == pytest.approx(1, rel=1e-4)
    sums = dict.fromkeys(cells, 0.0)
    for film, weight in zip(files, weights, strict=True):
        sums[film.site, film.label] += float(weight)
    roots = {site: np.sqrt(sum(n for (s, _), n in cells.items() if s == site)) for site, _ in cells}
    unit = {(site, label): total / roots[site] for (site, label), total in sums.items()}
    # Each class of each site has the same share of the root of the site's films: half of it.
    assert list(unit.values()) == pytest.approx([next(iter(unit.values()))] * len(unit), rel=1e-4)


def test_sampling_shows_each_site_and_class_as_often_as_it_should_weigh(module: Any) -> None:
    cells = {("here", 0): 60, ("here", 1): 40, ("there", 0): 5, ("there", 1): 20}
    files = films_of(cells)
    data = module.FitData(np.zeros((len(files), 8, 8), np.uint8), np.arange(len(files)), files, None, None, None, [])
    drawn = module.Batches(data, batch_size=8, seed=5, balance="sampling", teachers=()).order(0)
    shown = Counter((files[i].site, files[i].label) for i in drawn)
    # 100 films and 25: their roots are as 2 to 1, and 125 films are to be shown in all.
    assert shown == {("here", 0): 42, ("here", 1): 42, ("there", 0): 21, ("there", 1): 21}
    assert max(Counter(int(i) for i in drawn).values()) == 5  # 21 of 5 films: each comes round four times or five


def test_batches_are_a_function_of_seed_and_epoch_however_many_were_made(module: Any, data: FitData) -> None:
    made = module.Batches(data, batch_size=8, seed=5, balance="weights", teachers=())
    several = [list(made.of_epoch(epoch, SIZE)) for epoch in range(4)]
    for epoch in (1, 3):
        alone = batches(module, data, epoch)
        assert len(several[epoch]) == len(alone) == made.steps
        for ours, theirs in zip(several[epoch], alone, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    stream = made.of_epoch(0, SIZE)
    next(stream)
    stream.close()  # as when training stops early: no thread is left behind


def test_what_goes_wrong_in_a_thread_is_not_lost(module: Any, data: FitData, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no such film")

    monkeypatch.setattr(module, "augment", broken)
    with pytest.raises(OSError, match="no such film"):
        batches(module, data)


def test_a_film_is_augmented_anew_at_each_epoch_and_each_time_it_is_sampled(module: Any, data: FitData) -> None:
    first, second = (batches(module, data, epoch, batch_size=24)[0][0] for epoch in (0, 1))
    assert not {film.tobytes() for film in first} & {film.tobytes() for film in second}


# ------------------------------------------------------------------------------------------------------------ boxes


@pytest.fixture(scope="module")
def boxed(data: FitData) -> FitData:
    """The same films: every pneumonia but the last has a box, where its light band is."""
    ill = [i for i, film in enumerate(data.files) if film.label]
    files = [replace(f, boxes=(BAND,)) if i in ill[:-1] else f for i, f in enumerate(data.files)]
    return replace(data, files=files)


BAND = Box(0.0, 0.25, 1.0, 0.75)
SIDE = 4


def test_the_map_is_taught_by_boxes_and_by_normal_films(module: Any, boxed: FitData) -> None:
    ill = np.array([i for i, film in enumerate(boxed.files) if film.label])
    targets, known = module.local_targets(boxed, ill, 5, 0, SIDE)
    assert targets.shape == (len(ill), SIDE, SIDE, 1)
    assert targets.dtype == known.dtype == np.float32
    # Where nobody drew a box around a pneumonia, nobody knows where it is.
    assert known.tolist() == [1.0] * (len(ill) - 1) + [0.0]
    assert not targets[-1].any()
    for target, i in zip(targets[:-1], ill, strict=False):
        movement = draw_movement(np.random.default_rng([5, 0, i]))
        assert np.array_equal(target[..., 0], box_coverage([BAND], movement, SIDE))
        assert 0.2 < target.mean() < 0.8
    targets, known = module.local_targets(boxed, np.setdiff1d(np.arange(40), ill), 5, 0, SIDE)
    assert not targets.any()
    assert known.all()


def test_what_the_map_is_taught_is_where_the_films_of_the_batch_show_it(module: Any, boxed: FitData) -> None:
    made = module.Batches(boxed, batch_size=24, seed=5, balance="weights", teachers=())
    [(inputs, targets, weights)] = made.of_epoch(3, SIZE, SIDE)
    chosen = made.order(3)
    plain = batches(module, boxed, 3, batch_size=24)[0]
    assert set(targets) == set(weights) == {"logit", LOCAL_LOGIT}
    assert np.array_equal(inputs, plain[0])
    assert np.array_equal(targets["logit"], plain[1])
    assert np.array_equal(weights["logit"], plain[2])
    expected, known = module.local_targets(boxed, chosen, 5, 3, SIDE)
    assert np.array_equal(targets[LOCAL_LOGIT], expected)
    assert np.array_equal(weights[LOCAL_LOGIT], (plain[2] * known)[:, None, None])
    # The light band of each film lies where its target says.
    lit = inputs.reshape(24, SIDE, SIZE // SIDE, SIDE, SIZE // SIDE).mean(axis=(2, 4))
    for film, target in zip(lit, targets[LOCAL_LOGIT][..., 0], strict=True):
        if target.any():
            assert np.corrcoef(film.ravel(), target.ravel())[0, 1] > 0.5


def test_boxes_teach_only_where_a_training_film_has_one(module: Any, boxed: FitData, data: FitData) -> None:
    assert boxed.knows_where
    assert not data.knows_where
    files = [replace(film, boxes=(BAND,)) if i < 16 else film for i, film in enumerate(data.files)]
    assert not replace(data, files=files).knows_where  # these only validate


# --------------------------------------------------------------------------------------------------------- teachers


def test_logits_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumo_train import inference

    model = net()
    answer, sizes = model.predict_on_batch, []

    def recorded(films: npt.NDArray[np.float32]) -> Any:
        sizes.append(len(films))
        return answer(films)

    monkeypatch.setattr(model, "predict_on_batch", recorded)
    pixels = np.random.default_rng(1).integers(0, 256, (inference.PREDICT_BATCH + 3, SIZE, SIZE)).astype(np.uint8)
    expected = answer(pixels[..., None].astype(np.float32))[:, 0]
    assert inference.logits(model, pixels) == pytest.approx(expected, abs=1e-5)
    assert sizes == [inference.PREDICT_BATCH] * 2  # none that is traced for itself


def test_targets_are_what_the_teachers_say_of_the_same_view(module: Any, data: FitData) -> None:
    from PIL import Image

    from pneumo_train import inference

    same_size, smaller = net(), net(16)
    inputs, targets, weights = batches(module, data, teachers=(same_size, smaller), batch_size=24)[0]
    films = inputs[..., 0].astype(np.uint8)
    shrunk = np.stack([np.asarray(Image.fromarray(f).resize((16, 16), Image.Resampling.BICUBIC)) for f in films])
    said = [1 / (1 + np.exp(-inference.logits(t, f))) for t, f in ((same_size, films), (smaller, shrunk))]
    assert np.abs(said[0] - said[1]).max() > 1e-3
    assert targets[:, 0] == pytest.approx((said[0] + said[1]) / 2, abs=1e-5)
    assert len(set(weights)) == 2  # the classes still weigh the same


# ------------------------------------------------------------------------------------------------- progressive size


@pytest.mark.parametrize(
    ("size", "epochs", "expected"),
    [(160, 5, [128, 128, 160, 160, 160]), (224, 2, [192, 224]), (32, 2, [32, 32]), (96, 1, [96])],
)
def test_training_begins_with_smaller_films(module: Any, size: int, epochs: int, expected: list[int]) -> None:
    assert module.progressive_sizes(net(size), epochs) == expected


def test_a_flattened_map_is_of_one_size(module: Any) -> None:
    from keras import Model, layers

    image = layers.Input((96, 96, 1))
    model = Model(image, layers.Dense(1)(layers.Flatten()(image)))
    assert module.progressive_sizes(model, 4) == [96] * 4


def test_films_are_shrunk_after_they_were_augmented(module: Any, data: FitData) -> None:
    plain = batches(module, data, 1)[0][0][..., 0].astype(np.uint8)
    small = batches(module, data, 1, side=16)[0][0][..., 0].astype(np.uint8)
    assert small.shape == (8, 16, 16)
    assert np.array_equal(small, module.resized(plain, 16))


@pytest.mark.parametrize("interrupted", [None, 1])
def test_sizes_change_in_the_middle_of_a_run(
    module: Any, data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: int | None
) -> None:
    import keras

    from pneumo_train import fit

    monkeypatch.setattr(fit, "progressive_sizes", lambda *_: [16, 16, SIZE, SIZE])
    settings = fit.FitSettings(epochs=4, batch_size=8, learning_rate=0.05, seed=5, patience=99)
    data = judged_by_what_it_learns(data)
    sides = []
    real_make, real_judge = module.Batches.make, fit._judge
    judged = []

    def make(*arguments: Any) -> Any:
        found = real_make(*arguments)
        sides.append(found[0].shape[1])
        return found

    def judge(*arguments: Any) -> Any:
        judged.append(1)
        if len(judged) - 1 == interrupted:
            raise KeyboardInterrupt
        return real_judge(*arguments)

    monkeypatch.setattr(module.Batches, "make", make)

    def build() -> keras.Model:
        keras.utils.set_random_seed(3)
        return net()

    if interrupted:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(fit, "_judge", judge)
            fit.fit(tmp_path, settings, data, build, resume=False)
    history = fit.fit(tmp_path, settings, data, build, resume=bool(interrupted))
    assert set(sides) == {16, SIZE}
    assert sides == sorted(sides)
    assert keras.saving.load_model(tmp_path / "model.keras").input.shape == (None, SIZE, SIZE, 1)
    losses = [record["loss"] for record in history]
    assert losses == pytest.approx(LOSSES.setdefault("progressive", losses), abs=1e-4)  # interrupted or not
