"""What a training step reads: films in balance, teachers' targets, and the output of frozen layers kept on disk.

Both sides of a comparison are computed on this processor from the same bytes, by a network of a few weights. They
differ by batches and so by the order of sums, 1e-7 of values of about one; where features are kept in half precision,
by its last bit, 2^-11.
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


def net(size: int = SIZE, *, learns: str = "all") -> keras.Model:
    """A little net; `learns` says whether "all", "last" (convolution and head) or "head" does."""
    from keras import Model, layers

    image = layers.Input((size, size, 1), name="image")
    x = layers.Rescaling(1 / 127, -1.0)(image)
    x = layers.Conv2D(3, 3, strides=2, activation="relu", name="first", trainable=learns == "all")(x)
    side = layers.Conv2D(4, 1, name="side", trainable=learns != "head")(x)
    x = layers.Conv2D(4, 3, padding="same", name="last", trainable=learns != "head")(x)
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


def batches(module: Any, data: FitData, epoch: int = 0, **options: Any) -> list[Batch]:
    """The batches of an epoch, of eight films."""
    settings = {
        "batch_size": 8,
        "seed": 5,
        "balance": "weights",
        "side": SIZE,
        "map_side": None,
        "teachers": (),
        "features": None,
    } | options
    return list(module.Batches(data, **settings).stream([epoch]))


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
    settings = {
        "batch_size": 8, "seed": 5, "side": 8, "map_side": None, "teachers": (), "features": None,
    }  # fmt: skip
    drawn = module.Batches(data, balance="sampling", **settings).order(0)
    shown = Counter((files[i].site, files[i].label) for i in drawn)
    # 100 films and 25: their roots are as 2 to 1, and 125 films are to be shown in all.
    assert shown == {("here", 0): 42, ("here", 1): 42, ("there", 0): 21, ("there", 1): 21}
    assert max(Counter(int(i) for i in drawn).values()) == 5  # 21 of 5 films: each comes round four times or five


def test_batches_are_a_function_of_seed_and_epoch_however_many_were_made(module: Any, data: FitData) -> None:
    settings = {"batch_size": 8, "seed": 5, "balance": "weights", "side": SIZE, "map_side": None, "teachers": (),
        "features": None,
    }  # fmt: skip
    made = module.Batches(data, **settings)
    several = list(made.stream(range(4)))
    assert len(several) == 4 * made.steps
    for epoch in (1, 3):
        alone = batches(module, data, epoch)
        for ours, theirs in zip(several[3 * epoch : 3 * epoch + 3], alone, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    stream = made.stream(range(100))
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
    made = module.Batches(
        boxed, batch_size=24, seed=5, balance="weights", side=SIZE, map_side=SIDE, teachers=(), features=None
    )
    [(inputs, targets, weights)] = made.stream([3])
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


def test_logits_do_not_depend_on_batches(module: Any) -> None:
    model = net()
    pixels = np.random.default_rng(1).integers(0, 256, (module.PREDICT_BATCH + 3, SIZE, SIZE)).astype(np.uint8)
    expected = model.predict_on_batch(pixels[..., None].astype(np.float32))[:, 0]
    assert module.logits(model, pixels) == pytest.approx(expected, abs=1e-5)


def test_targets_are_what_the_teachers_say_of_the_same_view(module: Any, data: FitData) -> None:
    from PIL import Image

    same_size, smaller = net(), net(16)
    inputs, targets, weights = batches(module, data, teachers=(same_size, smaller), batch_size=24)[0]
    films = inputs[..., 0].astype(np.uint8)
    shrunk = np.stack([np.asarray(Image.fromarray(f).resize((16, 16), Image.Resampling.BICUBIC)) for f in films])
    said = [1 / (1 + np.exp(-module.logits(t, f))) for t, f in ((same_size, films), (smaller, shrunk))]
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
    real_make, real_end = module.Batches.make, fit._EachEpoch.on_epoch_end

    def make(*arguments: Any) -> Any:
        found = real_make(*arguments)
        sides.append(found[0].shape[1])
        return found

    def end(self: Any, epoch: int, logs: Any = None) -> None:
        if epoch == interrupted:
            raise KeyboardInterrupt
        real_end(self, epoch, logs)

    monkeypatch.setattr(module.Batches, "make", make)

    def build() -> keras.Model:
        keras.utils.set_random_seed(3)
        return net()

    if interrupted:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(fit._EachEpoch, "on_epoch_end", end)
            fit.fit(tmp_path, settings, data, build, resume=False)
    history = fit.fit(tmp_path, settings, data, build, resume=bool(interrupted))
    assert set(sides) == {16, SIZE}
    assert sides == sorted(sides)
    assert keras.saving.load_model(tmp_path / "model.keras").input.shape == (None, SIZE, SIZE, 1)
    losses = [record["loss"] for record in history]
    assert losses == pytest.approx(LOSSES.setdefault("progressive", losses), abs=1e-4)  # interrupted or not


# ---------------------------------------------------------------------------------------------------- frozen layers


@pytest.mark.parametrize(("learns", "cut"), [("last", (15, 15, 3)), ("head", (4,))])
def test_a_model_is_cut_in_front_of_what_learns(module: Any, data: FitData, learns: str, cut: tuple[int, ...]) -> None:
    model = net(learns=learns)
    front, tail = module.split_at_learning(model)
    assert front.output.shape[1:] == cut
    assert not front.trainable_weights
    assert any(layer.name == "dropout" for layer in tail.layers)
    features = module.predict(front, data.films[..., None])
    assert module.predict(tail, features)[:, 0] == pytest.approx(module.logits(model, data.films), abs=1e-6)


def test_what_cannot_be_cut_off_stays_whole(module: Any) -> None:
    from keras import Model, layers

    assert module.split_at_learning(net()) is None  # only the normalisation stands in front
    image = layers.Input((SIZE, SIZE, 1))
    x = layers.Conv2D(2, 3, trainable=False)(image)
    around = layers.GlobalMaxPooling2D()(x)
    x = layers.GlobalMaxPooling2D()(layers.Conv2D(2, 1)(layers.Conv2D(3, 1, trainable=False)(x)))
    assert module.split_at_learning(Model(image, layers.Dense(1)(layers.Add()([around, x])))) is None


def test_views_are_computed_once_and_hold_what_the_frozen_layers_say(
    module: Any, data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VIEWS", 2)
    model = net(learns="last")
    teacher = net()
    front, _ = module.split_at_learning(model)
    views = module.FeatureViews(tmp_path / "features", front, data, 5, (teacher,))
    views.prepare()
    plain = batches(module, data, 1, teachers=(teacher,))
    for epoch in (1, 3):  # the order of films is the epoch's own, the view comes round again
        inputs, targets, weights = batches(module, data, epoch, teachers=(teacher,), features=views)[0]
        chosen = np.random.default_rng([5, epoch]).permutation(data.train)[:8]
        films = module.augmented(data, chosen, 5, 1)
        assert np.abs(inputs - module.predict(front, films[..., None])).max() < 2e-3  # half precision
        assert targets[:, 0] == pytest.approx(module.soft_targets((teacher,), films), abs=1e-6)
        if epoch == 1:
            assert targets == pytest.approx(plain[0][1])
            assert np.array_equal(weights, plain[0][2])

    # Killed while a view was written: what is there is read, what is missing is computed, alike.
    stored = (tmp_path / "features" / "features-1.npy").read_bytes()
    (tmp_path / "features" / "features-1.npy").unlink()
    (tmp_path / "features" / "features-0.npy").write_bytes(b"not computed again")
    with pytest.raises(ValueError, match="pickle"):
        module.FeatureViews(tmp_path / "features", front, data, 5, (teacher,)).prepare()
    (tmp_path / "features" / "features-0.npy").unlink()
    module.FeatureViews(tmp_path / "features", front, data, 5, (teacher,)).prepare()
    assert (tmp_path / "features" / "features-1.npy").read_bytes() == stored


def test_features_beyond_half_precision_are_clipped_not_infinite(module: Any) -> None:
    assert np.isfinite(module._half(np.array([1e9, -1e9, 1.5], np.float32))).all()


def test_a_full_disk_is_found_out_before_anything_is_computed(
    module: Any, data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    front, _ = module.split_at_learning(net(learns="last"))
    views = module.FeatureViews(tmp_path / "features", front, data, 5, ())
    assert views.fits_on_disk()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert not views.fits_on_disk()
    assert "computed anew in each epoch" in capsys.readouterr().err


@pytest.mark.parametrize("interrupted", [False, True])
def test_training_on_kept_features_leaves_the_whole_model(
    module: Any, data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    import keras

    from pneumo_train import fit

    monkeypatch.setattr(module, "VIEWS", 2)
    monkeypatch.setattr(fit, "VIEWS", 2)
    settings = fit.FitSettings(epochs=6, batch_size=8, learning_rate=0.05, seed=5, patience=99)
    data = judged_by_what_it_learns(data)

    def build() -> keras.Model:
        keras.utils.set_random_seed(3)
        return net(learns="last")

    started = build()
    if interrupted:
        real = fit._EachEpoch.on_epoch_end

        def stop(self: Any, epoch: int, logs: Any = None) -> None:
            if epoch == 3:
                raise KeyboardInterrupt
            real(self, epoch, logs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(fit._EachEpoch, "on_epoch_end", stop)
            fit.fit(tmp_path, settings, data, build, resume=False)
        assert (tmp_path / "features" / "features-1.npy").is_file()
    history = fit.fit(tmp_path, settings, data, build, resume=interrupted)
    assert not (tmp_path / "features").exists()
    kept = keras.saving.load_model(tmp_path / "model.keras")
    assert kept.input.shape == started.input.shape
    for name, same in (("first", True), ("last", False), ("logit", False)):
        pairs = zip(started.get_layer(name).get_weights(), kept.get_layer(name).get_weights(), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == same, name
    best = max(history, key=lambda record: record["perturbed_auc"])
    scores = module.logits(kept, data.validation)
    assert best["val_loss"] == pytest.approx(
        np.mean(np.logaddexp(0, np.where(data.validation_labels == 1, -scores, scores))), abs=2e-3
    )
    assert history[-1]["val_auc"] > 0.9
    # The same films, features, dropout and schedule, interrupted or not.
    losses = [record["loss"] for record in history]
    assert losses == pytest.approx(LOSSES.setdefault("frozen", losses), abs=1e-4)
