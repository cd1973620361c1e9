"""Measures whether a heatmap points at the disease, against boxes that radiologists drew around opacities.

numpy alone, so that an export and a benchmark can judge each file by the maps that it gives itself. A map of h x w
cells lies over the whole film; between the cells' centres it is bilinear. For the head `local` a map holds local
logits, and the sigmoid of one is a local probability: only such a map has a region. For the other heads it holds
evidence in logits, which points and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.calibrate.measure import bootstrap_weights, mean_of, weighted_auc
from pneumo_edge.calibrate.platt import Floats, Labels
from pneumo_edge.region import local_logits
from pneumo_train.films import Box

GRID = 96
"""Points along each side of a film at which boxes and regions are compared."""
TOUCHED = 0.25
"""A box counts as found where a region's own bounding box lies in it with this share of its area (IoBB): Wang et al.,
"ChestX-ray8" (CVPR 2017)."""
SIZES = {"small": (0.0, 0.1), "medium": (0.1, 0.2), "large": (0.2, 1.01)}
"""Films by the share of the picture that their boxes cover: from, below."""
THRESHOLDS = np.round(np.arange(0.02, 0.99, 0.02), 2)
"""Local probabilities that are tried as the threshold of a region."""
_FEW = 20
"""Fewer films may have their strongest cell in one place by chance."""
ONE_PLACE = 0.5
"""Share of the films with pneumonia that have their strongest cell in one and the same place, above which a map says
nothing of the single film: a network may gather what it knows of the whole film in a corner (docs/experiments.md)."""
QUIET_SHARE = 0.95
"""Without boxes a threshold is set that no cell of this share of the normal films reaches."""

Boxes = Sequence[Sequence[Box]]
Flags = npt.NDArray[np.bool_]


def enlarge(maps: Floats, side: int = GRID) -> npt.NDArray[np.float64]:
    """Returns maps (N, h, w) at (N, side, side) points: bilinear, and constant beyond the outermost centres."""
    large = np.empty((len(maps), side, side))
    # One map after the other: the steps between would take several times as much memory for all of them.
    for i, each in enumerate(maps):
        large[i] = local_logits(each, side, side)
    return large


def box_masks(boxes: Boxes, side: int = GRID) -> Flags:
    """Returns (N, side, side): whether a point lies in one of its film's boxes."""
    centre = (np.arange(side) + 0.5) / side
    masks = np.zeros((len(boxes), side, side), bool)
    for row, film in enumerate(boxes):
        for box in film:
            masks[row] |= np.outer((box.y0 <= centre) & (centre < box.y1), (box.x0 <= centre) & (centre < box.x1))
    return masks


def choose_region_threshold(maps: Floats, boxes: Boxes, labels: Labels) -> float:
    """Chooses the local probability from which on a place belongs to the region.

    Args:
        maps: (N, h, w), local logits of validation films, as one file gives them.
        boxes: N, empty where a film has none.
        labels: (N,), 0 or 1.

    Returns:
        The one of `THRESHOLDS` whose region overlaps best with the boxes, by mean IoU over the films with boxes. Where
        no film has any, the one that nothing in `QUIET_SHARE` of the normal films reaches.
    """
    boxed = [i for i, film in enumerate(boxes) if film]
    if not boxed:
        strongest = sigmoid(maps[labels == 0].max(axis=(1, 2)))
        quiet = float(np.quantile(strongest, QUIET_SHARE))
        return float(THRESHOLDS[min(int(np.searchsorted(THRESHOLDS, quiet, side="right")), len(THRESHOLDS) - 1)])
    return _best_threshold(sigmoid(enlarge(maps[boxed])), box_masks([boxes[i] for i in boxed]))[0]


def _best_threshold(p: Floats, masks: Flags) -> tuple[float, npt.NDArray[np.float64]]:
    """Returns the threshold on values (N, side, side) of the best mean IoU with masks, and the IoU of each film."""
    overlaps = np.array([overlap(p >= threshold, masks) for threshold in THRESHOLDS])
    best = int(overlaps.mean(axis=1).argmax())
    return float(THRESHOLDS[best]), overlaps[best]


def overlap(regions: Flags, masks: Flags) -> npt.NDArray[np.float64]:
    """Returns (N,) intersection over union of regions and masks (N, side, side); 0 where both are empty."""
    both = (regions & masks).sum(axis=(1, 2))
    either = (regions | masks).sum(axis=(1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 0.0)


def points_into_a_box(maps: Floats, boxes: Boxes) -> Flags:
    """Returns (N,): whether the strongest cell's centre lies in a box, the pointing game (Zhang et al., ECCV 2016)."""
    _, height, width = maps.shape
    strongest = maps.reshape(len(maps), -1).argmax(axis=1)
    ys, xs = (strongest // width + 0.5) / height, (strongest % width + 0.5) / width
    return np.array(
        [
            any(box.x0 <= x < box.x1 and box.y0 <= y < box.y1 for box in film)
            for x, y, film in zip(xs, ys, boxes, strict=True)
        ],
        bool,
    )


def share_at_one_place(maps: Floats) -> float:
    """Returns the share of maps (N, h, w), N >= 1, whose strongest cell is the one that is so most often."""
    strongest = maps.reshape(len(maps), -1).argmax(axis=1)
    return float(np.bincount(strongest).max() / len(maps))


def regions_of(mask: Flags) -> npt.NDArray[np.int64]:
    """Numbers the connected regions of one mask (side, side) from 1 on, 0 outside; corners alone do not connect."""
    labels = np.zeros(mask.shape, np.int64)
    count = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        count += 1
        labels[start] = count
        ahead = [start]
        while ahead:
            y, x = ahead.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1] and mask[near] and not labels[near]:
                    labels[near] = count
                    ahead.append(near)
    return labels


def boxes_touched(mask: Flags, film: Sequence[Box]) -> list[bool]:
    """Returns for each box of a film whether some region of a mask (side, side) finds it: IoBB >= `TOUCHED`."""
    labels, side = regions_of(mask), len(mask)
    found = []
    for number in range(1, int(labels.max()) + 1):
        rows, columns = np.nonzero(labels == number)
        found.append(Box(columns.min() / side, rows.min() / side, (columns.max() + 1) / side, (rows.max() + 1) / side))
    return [any(_shared_area(region, box) >= TOUCHED * _area(region) for region in found) for box in film]


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def _shared_area(one: Box, other: Box) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)


def sigmoid(x: Floats) -> npt.NDArray[np.float64]:
    """Returns 1 / (1 + exp(-x)), whatever the size of x."""
    half: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * x.astype(np.float64)))
    return half


def measure_pointing(
    maps: Floats,
    boxes: Boxes,
    labels: Labels,
    called: Flags,
    patients: Sequence[str],
    sites: Sequence[str],
    region_threshold: float | None,
) -> dict[str, Any]:
    """Judges maps against boxes, and what stands out in films of normals.

    Args:
        maps: (N, h, w), in logits.
        boxes: N, empty where a film has none.
        labels: (N,), 0 or 1.
        called: (N,): the film is called PNEUMONIA at the operating point.
        patients: N names; their films are resampled together.
        sites: N names.
        region_threshold: On the local probability; None for a map that is not one of local logits.

    Returns:
        region_threshold; `one_place`: see `share_at_one_place`, of the films labelled 1, None for few; `boxed`: for all
        films with boxes, `sites`: for those of each site, each with `all` and by size what `_each_film` gives;
        `normals`: site -> share of the normal films that get a region, regions in such a film, and the share that would
        get one whatever they are called.
    """
    boxed = np.array([bool(film) and label == 1 for film, label in zip(boxes, labels, strict=True)], bool)
    place = np.array(sites)

    def judged(chosen: Flags) -> dict[str, Any]:
        rows = np.flatnonzero(chosen).tolist()
        return _by_size(maps[rows], [boxes[i] for i in rows], [patients[i] for i in rows], region_threshold)

    found: dict[str, Any] = {
        "region_threshold": region_threshold,
        "one_place": share_at_one_place(maps[labels == 1]) if np.count_nonzero(labels == 1) >= _FEW else None,
        "boxed": judged(boxed) if boxed.any() else None,
        "sites": {
            site: judged(boxed & (place == site)) for site in dict.fromkeys(sites) if (boxed & (place == site)).any()
        },
        "normals": {},
    }
    if region_threshold is None:
        return found
    for site in dict.fromkeys(sites):
        rows = np.flatnonzero((place == site) & (labels == 0)).tolist()
        if rows:
            weights = bootstrap_weights([patients[i] for i in rows])
            counts = np.array([int(regions_of(sigmoid(enlarge(maps[[i]])[0]) >= region_threshold).max()) for i in rows])
            anywhere = counts > 0
            shown = called[rows] & anywhere
            found["normals"][site] = {
                "films": len(rows),
                "with_region": mean_of(shown.astype(float), weights),
                "regions_per_film": float(np.mean(counts * shown)),
                "with_region_if_all_were_shown": mean_of(anywhere.astype(float), weights),
            }
    return found


def _by_size(maps: Floats, boxes: Boxes, patients: Sequence[str], region_threshold: float | None) -> dict[str, Any]:
    masks = box_masks(boxes)
    coverage = masks.mean(axis=(1, 2))
    values = _each_film(maps, masks, boxes, region_threshold) | {"boxes_cover": coverage}
    # One fixed map, the same for every film: opacities like the lower lungs, and that alone points quite well.
    mean_map = maps.mean(axis=0, keepdims=True)
    fixed = enlarge(mean_map)
    scaled = (fixed - fixed.min()) / max(float(np.ptp(fixed)), 1e-12)
    baseline = _each_film(np.broadcast_to(mean_map, maps.shape), masks, boxes, None)
    baseline["iou"] = _best_threshold(scaled, masks)[1]
    values |= {f"mean_map_{name}": value for name, value in baseline.items()}

    def summary(rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        weights = bootstrap_weights([patients[i] for i in rows])
        return {"films": len(rows), "patients": len({patients[i] for i in rows})} | {
            name: mean_of(value[rows], weights) for name, value in values.items() if not np.isnan(value[rows]).all()
        }

    sizes = {name: np.flatnonzero((low <= coverage) & (coverage < high)) for name, (low, high) in SIZES.items()}
    return {"all": summary(np.arange(len(maps)))} | {name: summary(rows) for name, rows in sizes.items() if len(rows)}


def _each_film(
    maps: Floats, masks: Flags, boxes: Boxes, region_threshold: float | None
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns what is known of each film, name -> (N,), in [0, 1]; NaN where it has no meaning.

    points: the strongest place lies in a box. pixel_auc: chance that a place in a box has more evidence than one
    outside. evidence_outside: share of the positive part of the map that lies outside the boxes. iou: of the region and
    all boxes together. touched: share of the film's boxes that a region finds. with_region: some place passes.
    """
    values: dict[str, list[float]] = {}
    everyone = np.ones((1, masks[0].size))
    for each, mask, film in zip(maps, masks, boxes, strict=True):
        # One by one: all films of a site at this resolution would take gigabytes.
        large = enlarge(each[np.newaxis])[0]
        positive = np.maximum(large, 0)
        total = float(positive.sum())
        found = {
            "pixel_auc": float(weighted_auc(mask.ravel().astype(np.int64), large.ravel(), everyone)[0]),
            "evidence_outside": float(positive[~mask].sum()) / total if total else np.nan,
        }
        if region_threshold is not None:
            region = sigmoid(large) >= region_threshold
            found["iou"] = float(overlap(region[np.newaxis], mask[np.newaxis])[0])
            found["touched"] = float(np.mean(boxes_touched(region, film)))
            found["with_region"] = float(region.any())
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    points = points_into_a_box(maps, boxes).astype(np.float64)
    return {"points": points} | {name: np.array(value) for name, value in values.items()}
