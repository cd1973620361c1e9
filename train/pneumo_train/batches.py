"""What a training step reads: augmented films, or what the frozen layers make of them, with target and weight."""

from __future__ import annotations

import math
import shutil
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_edge.atomic import replacing_file
from pneumo_edge.calibrate.platt import Labels
from pneumo_edge.command_line import say, tracked
from pneumo_edge.preprocess import Pixels
from pneumo_train.augment import augment, box_coverage, draw_movement
from pneumo_train.backbones import LOCAL_LOGIT
from pneumo_train.films import FilmFile, labels_of

LABEL_SMOOTHING = 0.1
PREDICT_BATCH = 64

_WORKERS, _AHEAD = 2, 4
"""Threads that make batches, and how many batches wait."""

VIEWS = 4
"""Augmented views of each film for which the output of the frozen layers is kept: epoch 5 sees those of epoch 1 again.
Training on the views of one film alone would overfit; each further one costs a pass through the frozen layers."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FitData:
    """What the loop learns from and is chosen by. Films are uint8 (N, S, S), labels int64 (N,)."""

    films: Pixels
    """All films of the data sets, a memory map; training films are taken from it by position."""
    train: npt.NDArray[np.int64]
    """Positions of the training films."""
    files: Sequence[FilmFile]
    """All films: label, site, boxes."""
    validation: Pixels
    perturbed: Pixels
    """The validation films under the site perturbation."""
    validation_labels: Labels
    validation_sites: Sequence[str]

    @property
    def labels(self) -> Labels:
        """Of all films."""
        return labels_of(self.files)

    @property
    def knows_where(self) -> bool:
        """Whether radiologists' boxes teach a local map: some training film has one."""
        return any(self.files[i].boxes for i in self.train)


def film_weights(files: Sequence[FilmFile]) -> Floats:
    """Returns how much each training film weighs, (N,) float32, 1 in the mean.

    Within a site both classes weigh the same, so that where a film comes from says nothing about its class. A site
    weighs as the square root of the number of its films: midway between each film alike, where the largest site speaks
    for all, and each site alike, where a few films of a small one would be learned by heart.

    A site with films of one class alone gives that class half of its weight; it cannot be balanced.
    """
    cells = Counter((film.site, film.label) for film in files)
    sites = Counter(film.site for film in files)
    weights = np.array([math.sqrt(sites[f.site]) / 2 / cells[f.site, f.label] for f in files])
    scaled: Floats = (weights / weights.mean()).astype(np.float32)
    return scaled


def logits(model: keras.Model, films: Pixels) -> Floats:
    """Returns the logits (N,) float32 of films uint8 (N, S, S), in batches."""
    return predict(model, films[..., np.newaxis])[:, 0]


def predict(model: keras.Model, inputs: npt.NDArray[np.generic]) -> Floats:
    """Returns what a model answers, float32, in batches small enough for any memory; of several outputs the logit."""
    return predict_all(model, inputs)["logit"]


def predict_all(model: keras.Model, inputs: npt.NDArray[np.generic]) -> dict[str, Floats]:
    """Returns what a model answers, float32, by output; the only output of a model with one is called "logit"."""
    parts: dict[str, list[Floats]] = defaultdict(list)
    for i in range(0, len(inputs), PREDICT_BATCH):
        answer = model.predict_on_batch(inputs[i : i + PREDICT_BATCH].astype(np.float32))
        for name, value in (answer if isinstance(answer, dict) else {"logit": answer}).items():
            parts[name].append(np.asarray(value, np.float32))
    return {name: np.concatenate(part) for name, part in parts.items()}


def soft_targets(teachers: Sequence[keras.Model], films: Pixels) -> Floats:
    """Returns the mean probability that teachers give to films uint8 (N, S, S); (N,) float32 in [0, 1].

    Teacher and student look at the same augmented view, each at its own size: Beyer et al., "Knowledge distillation: a
    good teacher is patient and consistent" (CVPR 2022).
    """
    said = [1 / (1 + np.exp(-logits(teacher, resized(films, teacher.input.shape[1])))) for teacher in teachers]
    mean: Floats = np.mean(said, axis=0, dtype=np.float32)
    return mean


def resized(films: Pixels, side: int) -> Pixels:
    """Returns films uint8 (N, S, S) at another side."""
    if films.shape[1] == side:
        return films
    pictures = (Image.fromarray(film).resize((side, side), Image.Resampling.BICUBIC) for film in films)
    return np.stack([np.asarray(picture) for picture in pictures])


def progressive_sizes(model: keras.Model, epochs: int) -> list[int]:
    """Returns the side of the films in each epoch: about four fifths of the model's in the first half, then its own.

    Small films are learned from sooner, and what they teach holds for large ones: Tan and Le, "EfficientNetV2" (ICML
    2021). A flattened feature map fits one size only.
    """
    side = model.input.shape[1]
    small = 32 * max(1, round(0.8 * side / 32))
    if any(isinstance(layer, keras.layers.Flatten) for layer in model.layers):
        small = side
    return [small] * (epochs // 2) + [side] * (epochs - epochs // 2)


def augmented(data: FitData, chosen: npt.NDArray[np.int64], seed: int, view: int) -> Pixels:
    """Returns films uint8 (N, S, S) as their view of that number shows them, whatever stands beside them."""
    return np.stack([augment(data.films[i], _rng(seed, view, i)) for i in chosen])


def local_targets(
    data: FitData, chosen: npt.NDArray[np.int64], seed: int, view: int, side: int
) -> tuple[Floats, Floats]:
    """Returns what a map of local evidence should say of the same films in the same view.

    Args:
        data: What is learned from.
        chosen: Positions of films.
        seed, view: As for `augmented`.
        side: Cells of the map.

    Returns:
        Share of each cell that lies in a box, (N, side, side, 1) in [0, 1], and (N,) whether it is known: 1 for films
        with boxes and for normal films, which have nowhere anything; 0 for pneumonias without boxes.
    """
    targets = np.zeros((len(chosen), side, side, 1), np.float32)
    known = np.ones(len(chosen), np.float32)
    for row, i in enumerate(chosen):
        film = data.files[i]
        if film.boxes:
            targets[row, ..., 0] = box_coverage(film.boxes, draw_movement(_rng(seed, view, i)), side)
        elif film.label == 1:
            known[row] = 0
    return targets, known


def _rng(seed: int, view: int, film: int) -> np.random.Generator:
    return np.random.default_rng([seed, view, int(film)])


def split_at_learning(model: keras.Model) -> tuple[keras.Model, keras.Model] | None:
    """Cuts a model in front of its first layer that learns or acts otherwise in training.

    Returns:
        Front and tail, made of the model's own layers, such that model(x) = tail(front(x)). None where nothing with
        weights stands in front, or where the frozen layers cannot be cut off at one place.
    """
    learning = next(x for x in model.layers if x.trainable_weights or isinstance(x, keras.layers.Dropout))
    cut = learning.input
    if isinstance(cut, list):
        return None
    front = keras.Model(model.input, cut)
    if not front.weights:
        return None
    try:
        tail = keras.Model(cut, model.output, name=model.name)
    except ValueError:
        return None
    # One optimiser serves both, and knows its variables by their order.
    pairs = zip(model.trainable_variables, tail.trainable_variables, strict=True)
    return (front, tail) if all(one is other for one, other in pairs) else None


class FeatureViews:
    """What frozen layers make of `VIEWS` augmented views of each training film, computed once and kept on disk."""

    def __init__(
        self, folder: Path, front: keras.Model, data: FitData, seed: int, teachers: Sequence[keras.Model]
    ) -> None:
        self._folder, self._front, self._data, self._seed, self._teachers = folder, front, data, seed, teachers
        self._row = np.full(len(data.labels), -1)
        self._row[data.train] = np.arange(len(data.train))
        self._shape = (len(data.train), *front.output.shape[1:])
        self._views: list[tuple[npt.NDArray[np.float16], Floats | None]] = []

    def fits_on_disk(self) -> bool:
        """Whether there is room for the views, which half precision halves."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        needed = VIEWS * math.prod(self._shape) * 2
        free = shutil.disk_usage(self._folder.parent).free
        if needed < 0.8 * free:
            return True
        say(f"the output of the frozen layers would take {needed / 1e9:.1f} GB: it is computed anew in each epoch")
        return False

    def prepare(self) -> None:
        """Computes the views that are not there yet."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for view in range(VIEWS):
            features, targets = self._folder / f"features-{view}.npy", self._folder / f"targets-{view}.npy"
            if not features.is_file():
                self._compute(view, features, targets)
            soft = np.load(targets) if self._teachers else None
            self._views.append((np.load(features, mmap_mode="r"), soft))

    def _compute(self, view: int, features: Path, targets: Path) -> None:
        soft = np.zeros(len(self._data.train), np.float32)
        with replacing_file(features) as temporary:
            stored = np.lib.format.open_memmap(temporary, "w+", np.float16, self._shape)
            starts = range(0, len(soft), PREDICT_BATCH)
            for i in tracked(starts, f"frozen layers, view {view + 1} of {VIEWS}", len(starts)):
                films = augmented(self._data, self._data.train[i : i + PREDICT_BATCH], self._seed, view)
                stored[i : i + len(films)] = _half(predict(self._front, films[..., np.newaxis]))
                if self._teachers:
                    soft[i : i + len(films)] = soft_targets(self._teachers, films)
            stored.flush()
            if self._teachers:
                # Before the features get their name: with that the view is there.
                np.save(targets, soft)

    def of(self, films: Pixels) -> npt.NDArray[np.float16]:
        """Returns what the frozen layers make of films uint8 (N, S, S), as it is kept for training."""
        return _half(predict(self._front, films[..., np.newaxis]))

    def read(self, view: int, chosen: npt.NDArray[np.int64]) -> tuple[Floats, Floats | None]:
        """Returns the features, float32, and the teachers' targets of films by position, in a view."""
        features, soft = self._views[view]
        rows = self._row[chosen]
        return features[rows].astype(np.float32), None if soft is None else soft[rows]


def _half(features: Floats) -> npt.NDArray[np.float16]:
    limit = np.finfo(np.float16).max
    return np.clip(features, -limit, limit).astype(np.float16)


Answers = Floats | dict[str, Floats]
"""Of a batch: the logits', or by output of the model."""


class Batches:
    """Inputs, targets and weights, each batch a function of seed, epoch and step alone: a resumed run sees the same.

    Targets are smoothed labels or, with teachers, what these say of the very same view; and, for a model with a map of
    local evidence, where the boxes lie.
    """

    def __init__(
        self,
        data: FitData,
        *,
        batch_size: int,
        seed: int,
        balance: str,
        side: int,
        map_side: int | None,
        teachers: Sequence[keras.Model],
        features: FeatureViews | None,
    ) -> None:
        """Takes what `fit` has; `side` is that of the films that the model is shown, `map_side` that of its map.

        `map_side` is None where the model has no map, or no boxes teach it.
        """
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self._balance, self._side, self._teachers, self._features = balance, side, teachers, features
        self._map_side = map_side
        self._labels = data.labels
        self._weights = np.ones(len(data.files), np.float32)
        if balance == "weights":
            self._weights[data.train] = film_weights([data.files[i] for i in data.train])
        self.steps = math.ceil(len(self.order(0)) / batch_size)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Returns the positions of the films of an epoch, in their order."""
        rng = np.random.default_rng([self._seed, epoch])
        train = self._data.train
        if self._balance != "sampling":
            return rng.permutation(train)
        # As many films of each site and class as `film_weights` lets them weigh; where there are fewer, they come round
        # again, each as often as the others.
        files = [self._data.files[i] for i in train]
        weights = film_weights(files)
        cells: dict[tuple[str, int], list[int]] = defaultdict(list)
        for row, film in enumerate(files):
            cells[film.site, film.label].append(row)
        drawn = []
        for _, rows in sorted(cells.items()):
            wanted = max(1, round(float(weights[rows].sum())))
            rounds = [rng.permutation(train[rows]) for _ in range(math.ceil(wanted / len(rows)))]
            drawn.append(np.concatenate(rounds)[:wanted])
        return rng.permutation(np.concatenate(drawn))

    def stream(self, epochs: Iterable[int]) -> Iterator[tuple[Floats, Answers, Answers]]:
        """Yields the batches of some epochs, a few made ahead by threads.

        Not a `keras.utils.PyDataset`: where one epoch of that ends and the next begins differs between backends.
        """
        with ThreadPoolExecutor(_WORKERS) as pool:
            ahead: deque[Future[tuple[Floats, Answers, Answers]]] = deque()
            try:
                for epoch in epochs:
                    order = self.order(epoch)
                    for step in range(self.steps):
                        chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
                        ahead.append(pool.submit(self.make, epoch, chosen))
                        if len(ahead) > _AHEAD:
                            yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def make(self, epoch: int, chosen: npt.NDArray[np.int64]) -> tuple[Floats, Answers, Answers]:
        """Returns inputs, targets (N, 1) and weights (N,) of films by position, as they are in an epoch.

        With a map, targets and weights are dictionaries by output: of the map (N, side, side, 1) and (N, 1, 1).
        """
        labels = self._labels[chosen]
        view = epoch
        if self._features is None:
            films = augmented(self._data, chosen, self._seed, view)
            inputs = resized(films, self._side)[..., np.newaxis].astype(np.float32)
            soft = soft_targets(self._teachers, films) if self._teachers else None
        else:
            view = epoch % VIEWS
            inputs, soft = self._features.read(view, chosen)
        targets = labels * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / 2 if soft is None else soft
        targets, weights = targets[:, np.newaxis].astype(np.float32), self._weights[chosen]
        if self._map_side is None:
            return inputs, targets, weights
        local, known = local_targets(self._data, chosen, self._seed, view, self._map_side)
        return (
            inputs,
            {"logit": targets, LOCAL_LOGIT: local},
            {"logit": weights, LOCAL_LOGIT: (weights * known)[:, np.newaxis, np.newaxis]},
        )
