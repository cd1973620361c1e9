"""What a training step reads: augmented films with their targets and weights."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_edge.calibrate.platt import Labels
from pneumo_edge.preprocess import Pixels
from pneumo_train.augment import augment, box_coverage, draw_movement
from pneumo_train.backbones import LOCAL_LOGIT
from pneumo_train.films import FilmFile, labels_of
from pneumo_train.inference import logits

LABEL_SMOOTHING = 0.1

_WORKERS, _AHEAD = 2, 4
"""Threads that make batches, and how many batches wait."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FitData:
    """Films to train on and films to validate on. Films are uint8 (N, S, S), labels int64 (N,)."""

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
        """Labels of all films."""
        return labels_of(self.files)

    @property
    def knows_where(self) -> bool:
        """Whether some training film has a box, so that boxes can teach a map of local evidence."""
        return any(self.files[i].boxes for i in self.train)


def film_weights(files: Sequence[FilmFile]) -> Floats:
    """Returns the weight of each training film, (N,) float32, 1 in the mean.

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

    A step on small films is faster, and what they teach holds for large ones: Tan and Le, "EfficientNetV2" (ICML 2021).
    A flattened feature map fits one size only.
    """
    side = model.input.shape[1]
    small = 32 * max(1, round(0.8 * side / 32))
    if any(isinstance(layer, keras.layers.Flatten) for layer in model.layers):
        small = side
    return [small] * (epochs // 2) + [side] * (epochs - epochs // 2)


def augmented(data: FitData, chosen: npt.NDArray[np.int64], seed: int, epoch: int) -> Pixels:
    """Returns films uint8 (N, S, S) as an epoch shows them: each depends on itself, the seed and the epoch alone."""
    return np.stack([augment(data.films[i], _rng(seed, epoch, i)) for i in chosen])


def local_targets(
    data: FitData, chosen: npt.NDArray[np.int64], seed: int, epoch: int, side: int
) -> tuple[Floats, Floats]:
    """Returns the targets of a map of local evidence for the same films in the same epoch.

    Args:
        data: The films and their boxes.
        chosen: Positions of films.
        seed, epoch: The same as for `augmented`.
        side: Cells along each side of the map.

    Returns:
        Share of each cell that lies in a box, (N, side, side, 1) in [0, 1], and (N,) whether it is known: 1 for films
        with boxes and for normal films, which have nowhere anything; 0 for pneumonias without boxes.
    """
    targets = np.zeros((len(chosen), side, side, 1), np.float32)
    known = np.ones(len(chosen), np.float32)
    for row, i in enumerate(chosen):
        film = data.files[i]
        if film.boxes:
            targets[row, ..., 0] = box_coverage(film.boxes, draw_movement(_rng(seed, epoch, i)), side)
        elif film.label == 1:
            known[row] = 0
    return targets, known


def _rng(seed: int, epoch: int, film: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, int(film)])


Answers = Floats | dict[str, Floats]
"""Targets or weights of a batch: those of the logit, or, for several outputs, by output."""

Batch = tuple[Floats, Answers, Answers]
"""Films float32 (N, S, S, 1), targets, and weights."""


class Batches:
    """Makes the batches of an epoch.

    Each batch depends on the seed, the epoch and the step alone, so that a resumed run sees what the run would have
    seen. Targets are smoothed labels or, with teachers, what these predict for the same view of the film. For a model
    with a map of local evidence, targets also say where the boxes lie.
    """

    def __init__(
        self,
        data: FitData,
        *,
        batch_size: int,
        seed: int,
        balance: str,
        teachers: Sequence[keras.Model],
    ) -> None:
        """Prepares the weights of the films.

        Args:
            data: The films.
            batch_size: Films in one step.
            seed: Seed of the order and the augmentation.
            balance: One of `pneumo_train.train.BALANCES`.
            teachers: Models whose predictions replace the labels.
        """
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self._balance, self._teachers = balance, teachers
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

    def of_epoch(self, epoch: int, side: int, map_side: int | None = None) -> Iterator[Batch]:
        """Yields the batches of an epoch; threads make a few of them ahead.

        Args:
            epoch: Counted from 0.
            side: S, side of the films that the model is shown.
            map_side: Side of the model's map of local evidence; None where there is none, or no boxes teach it.
        """
        order = self.order(epoch)
        with ThreadPoolExecutor(_WORKERS) as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                for start in range(0, len(order), self._batch_size):
                    chosen = order[start : start + self._batch_size]
                    ahead.append(pool.submit(self.make, epoch, chosen, side, map_side))
                    if len(ahead) > _AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def make(self, epoch: int, chosen: npt.NDArray[np.int64], side: int, map_side: int | None) -> Batch:
        """Returns films by position as they are in an epoch, with targets (N, 1) and weights (N,).

        With a map, targets and weights are dictionaries by output; for the map they are (N, map_side, map_side, 1) and
        (N, 1, 1).
        """
        films = augmented(self._data, chosen, self._seed, epoch)
        inputs = resized(films, side)[..., np.newaxis].astype(np.float32)
        labels = self._labels[chosen]
        smoothed = labels * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / 2
        targets = soft_targets(self._teachers, films) if self._teachers else smoothed
        targets, weights = targets[:, np.newaxis].astype(np.float32), self._weights[chosen]
        if map_side is None:
            return inputs, targets, weights
        local, known = local_targets(self._data, chosen, self._seed, epoch, map_side)
        return (
            inputs,
            {"logit": targets, LOCAL_LOGIT: local},
            {"logit": weights, LOCAL_LOGIT: (weights * known)[:, np.newaxis, np.newaxis]},
        )
