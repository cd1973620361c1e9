"""Whether the region carries the verdict: without it, the logit must fall much further than without another piece.

This needs no boxes, so sites without boxes are measured too. A hidden piece is filled from its surroundings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_bench.accuracy import Decoded, Flags, Split, decode
from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.output import Table, header, percent_text
from pneumo_edge.backends import open_backend
from pneumo_edge.bundle import ENGINE_OF_SUFFIX, Bundle
from pneumo_edge.calibrate.measure import bootstrap_weights, mean_interval, mean_of
from pneumo_edge.calibrate.platt import probabilities
from pneumo_edge.classifier import usable_cores
from pneumo_edge.errors import BundleError, DataError, MissingExtraError
from pneumo_edge.preprocess import Pixels
from pneumo_export.gate import run_backend
from pneumo_train.pointing import enlarge, regions_of, sigmoid

WANTED = 3.0
"""Times that the logit should fall further without the region than without another piece."""
BODY = 0.12
"""Brightness of the much blurred film, as a share of its range, from which a place belongs to the body."""
SIMILAR = 0.9
"""Smallest size of the other piece, as a share of the size of the piece of the region."""
PARTS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)
"""Shares of a region that are tried, with its strongest places. A region in both lungs leaves no room beside it."""
NOTHING = 1e6
"""Stands for a division by next to nothing, since JSON has no infinity."""

Floats = npt.NDArray[np.float64]


def hide(film: Pixels, mask: Flags) -> Pixels:
    """Fills a piece of a film smoothly from what surrounds it (harmonic: each place is the mean of its neighbours).

    Args:
        film: uint8 (S, S).
        mask: (S, S), the piece to hide, which is not the whole film.

    Returns:
        uint8 (S, S), the same outside the mask.
    """
    filled = _harmonic(film.astype(np.float64), mask)
    return np.where(mask, np.rint(filled).clip(0, 255), film).astype(np.uint8)


def _harmonic(grey: Floats, mask: Flags) -> Floats:
    side = len(grey)
    if side > 8:
        # From coarse to fine: a few steps at each resolution carry the grey of the edge across the largest hole.
        half = (side + 1) // 2
        rows = np.minimum(np.arange(2 * half), side - 1)
        known = ~mask[rows][:, rows]
        weight = known.reshape(half, 2, half, 2).sum(axis=(1, 3))
        total = (grey[rows][:, rows] * known).reshape(half, 2, half, 2).sum(axis=(1, 3))
        small = _harmonic(np.where(weight > 0, total / np.maximum(weight, 1), 0.0), weight == 0)
        start = np.asarray(Image.fromarray(small.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))
    else:
        start = np.full(grey.shape, grey[~mask].mean() if (~mask).any() else 0.0)
    filled = np.where(mask, start, grey)
    for _ in range(20):
        padded = np.pad(filled, 1, mode="edge")
        mean = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
        filled = np.where(mask, mean, filled)
    return filled


def body(film: Pixels) -> Flags:
    """Returns where a film shows the body, (S, S): the places that are not dark when it is blurred.

    Lungs are dark too, but narrow. There is no mask of the lungs.
    """
    small = Image.fromarray(film).resize((12, 12), Image.Resampling.BOX)
    blurred = np.asarray(small.resize((film.shape[1], film.shape[0]), Image.Resampling.BILINEAR), np.float64)
    low, high = np.percentile(film, [1, 99])
    inside: Flags = blurred >= low + BODY * (high - low)
    return inside


def elsewhere(mask: Flags, where: Flags, rng: np.random.Generator) -> Flags | None:
    """Moves a region sideways to another place within the body, with the same shape and height in the film.

    Each connected part moves by itself, as it is or mirrored. Its place is drawn from those where most of it lies in
    the body and outside the region; the rest of it is left out.

    Args:
        mask: (S, S), the region.
        where: (S, S), the body.
        rng: Draws from equally good places.

    Returns:
        (S, S); None where less than `SIMILAR` of the region's size can be found.
    """
    parts, side = regions_of(mask), len(mask)
    found = np.zeros_like(mask)
    free = where & ~mask
    for number in range(1, int(parts.max()) + 1):
        rows, columns = np.nonzero(parts == number)
        wide = int(columns.max() - columns.min()) + 1
        offset = columns - columns.min()
        best: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
        most = 0
        for shape in (offset, wide - 1 - offset):
            for left in range(side - wide + 1):
                room = free[rows, shape + left] & ~found[rows, shape + left]
                count = int(room.sum())
                if count > most:
                    best, most = [], count
                if count == most and count:
                    best.append((rows[room], (shape + left)[room]))
        if best:
            chosen = best[int(rng.integers(len(best)))]
            found[chosen] = True
    return found if found.sum() >= SIMILAR * mask.sum() else None


def strongest_part(mask: Flags, large: Floats, share: float) -> Flags:
    """Returns the part of a region (S, S) where a map (S, S) is strongest; `share` is its share of the region."""
    cut = np.quantile(large[mask], 1 - share)
    part: Flags = mask & (large >= cut)
    return part


def pieces(mask: Flags, large: Floats, where: Flags, rng: np.random.Generator) -> tuple[Flags, Flags] | None:
    """Returns the largest part of a region for which there is another piece, and that piece; None if there is none.

    Args:
        mask: (S, S), the region.
        large: (S, S), the map of which it is the region.
        where: (S, S), the body.
        rng: Draws from equally good places.
    """
    for share in PARTS:
        part = strongest_part(mask, large, share)
        other = elsewhere(part, where & ~mask, rng)
        if other is not None:
            return part, other
    return None


def region_mask(heatmap: Floats, threshold: float | None, side: int) -> Flags:
    """Returns the region of a map (h, w) at (side, side) points.

    In a map of local logits it is where the local probability reaches the threshold. In another map (threshold None) it
    is where the map reaches half of its peak, if the peak speaks for pneumonia.
    """
    large = enlarge(heatmap[np.newaxis], side)[0]
    region: Flags = (large >= large.max() / 2) & (large.max() > 0)
    if threshold is not None:
        region = sigmoid(large) >= threshold
    return region


def hide_all(bundles: Mapping[str, Bundle], split: Split, *, films: int, seed: int = 0) -> dict[str, Any]:
    """Hides the region and another piece in films labelled PNEUMONIA; returns the content of `faithful-SPLIT.json`.

    Args:
        bundles: Name -> bundle; each of their files is measured.
        split: The films.
        films: Most films of each site.
        seed: Seed that draws films and places.

    Raises:
        DataError: There is no film labelled PNEUMONIA.
    """
    watch = Watch()
    rng = np.random.default_rng(seed)
    chosen = []
    for site in dict.fromkeys(film.site for film in split.files):
        ill = [film for film in split.files if film.site == site and film.label == 1]
        chosen += [ill[i] for i in np.sort(rng.permutation(len(ill))[:films])]
    if not chosen:
        raise DataError("no film is labelled PNEUMONIA: there is no region to hide")
    sizes = sorted({bundle.description.input.size for bundle in bundles.values()})
    decoded = decode(Split(split.name, split.roots, tuple(chosen)), sizes)
    results: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    for bundle_name, bundle in bundles.items():
        for file in bundle.description.files:
            name = f"{bundle_name}/{file}"
            try:
                results += _hide(name, bundle, file, decoded, seed)
            except (BundleError, MissingExtraError) as error:
                missing.append({"name": name, "reason": str(error)})
    return header("faithful", describe_machine(), watch.finish()) | {
        "settings": {
            "split": split.name,
            "films": len(decoded.files),
            "unreadable": list(decoded.errors),
            "seed": seed,
        },
        "results": results,
        "missing": missing,
    }


def _hide(name: str, bundle: Bundle, file: str, films: Decoded, seed: int) -> list[dict[str, Any]]:
    """Returns one record for each site."""
    description = bundle.description
    size, stated = description.input.size, description.files[file]
    backend = open_backend(ENGINE_OF_SUFFIX[Path(file).suffix], bundle.read_file(file), size, usable_cores(), name)
    pixels = films.pixels[size]
    outputs = run_backend(backend, pixels, name)
    point = description.operating_points[description.default_operating_point]
    called = probabilities(outputs.logit, description.calibration) >= point.threshold
    rows, covered, moved, shares = [], [], [], []
    no_region, no_room = np.zeros(len(pixels), bool), np.zeros(len(pixels), bool)
    for i, film in enumerate(pixels):
        mask = region_mask(outputs.heatmap[i], stated.region_threshold, size)
        if not mask.any():
            no_region[i] = True
            continue
        # The seed has the number of the film, so that all files hide the same other piece where their regions agree.
        large = enlarge(outputs.heatmap[[i]], size)[0]
        found = pieces(mask, large, body(film), np.random.default_rng([seed, i]))
        if found is None:
            no_room[i] = True
            continue
        part, other = found
        rows.append(i)
        shares.append(part.sum() / mask.sum())
        covered.append(hide(film, part))
        moved.append(hide(film, other))
    drop, other_drop, share = (np.full(len(pixels), np.nan) for _ in range(3))
    if rows:
        share[rows] = shares
        drop[rows] = outputs.logit[rows] - run_backend(backend, np.stack(covered), f"{name}, regions hidden").logit
        other_drop[rows] = outputs.logit[rows] - run_backend(backend, np.stack(moved), f"{name}, others hidden").logit
    places = np.array([film.site for film in films.files])
    records = []
    for site in dict.fromkeys(places.tolist()):
        here = places == site
        patients = [films.files[i].patient for i in np.flatnonzero(here)]
        counts = {"films": here, "called": called & here, "no_region": no_region & here, "no_room": no_room & here}
        record = {"name": name, "site": site} | {key: int(value.sum()) for key, value in counts.items()}
        hidden = {"share_hidden": float(np.nanmean(share[here])) if not np.isnan(share[here]).all() else None}
        records.append(record | hidden | _compare(drop[here], other_drop[here], patients))
    return records


def _compare(drop: Floats, other: Floats, patients: list[str]) -> dict[str, Any]:
    """Returns the mean fall of the logit without either piece, and how often it is larger without the region.

    `other_share` is the mean fall without the other piece as a share of that without the region, with its interval by
    patient; None where the logit does not fall without the region.
    """
    known = ~np.isnan(drop)
    if not known.any():
        return {"measured": 0, "region": None, "other": None, "other_share": None, "region_costs_more": None}
    weights = bootstrap_weights([name for name, one in zip(patients, known, strict=True) if one])
    a, b = drop[known], other[known]

    def quotient(w: npt.NDArray[np.floating[Any]]) -> Floats:
        top, bottom = w @ b, w @ a
        share: Floats = np.divide(top, bottom, out=np.full(len(w), NOTHING), where=bottom > 0)
        return share

    return {
        "measured": int(known.sum()),
        "region": mean_of(a, weights),
        "other": mean_of(b, weights),
        "other_share": mean_interval([quotient], [weights]) if a.mean() > 0 else None,
        "region_costs_more": mean_of((a > b).astype(np.float64), weights),
    }


def faithful_table(record: Mapping[str, Any]) -> Table:
    """Returns the table of a record of `hide_all`."""
    rows: list[tuple[str, ...]] = []
    for result in record["results"]:
        counts = (str(result[key]) for key in ("films", "measured", "no_region", "no_room"))
        if not result["measured"]:
            rows.append((result["name"], result["site"], *counts, "–", "–", "–", "–", "–", "–"))
            continue
        more, share = result["region_costs_more"], result["other_share"]
        rows.append(
            (
                result["name"],
                result["site"],
                *counts,
                f"{result['share_hidden']:.0%}",
                *(_logits(result[key]) for key in ("region", "other")),
                "–" if share is None else f"{share['value']:.0%} ({share['low']:.0%} to {share['high']:.0%})",
                _times(share),
                percent_text(more),
            )
        )
    notes = (
        "films labelled PNEUMONIA; the region, and a piece of its size at its height in the film, are filled from what "
        "is around them: how far the logit falls in the mean, with the 95 % interval by patient",
        "hidden: how much of the region, its strongest places first, since one in both lungs leaves no room beside it; "
        f"times: the region against the other piece, {WANTED:g} or more is wanted",
        "no region: nothing reaches the threshold; no room: too little of the body beside even a part of it",
        *(f"not judged: {gap['name']}: {gap['reason']}" for gap in record["missing"]),
        *(f"not read: {error}" for error in record["settings"]["unreadable"]),
    )
    columns = (
        "model", "site", "films", "measured", "no region", "no room", "hidden", "region", "other piece",
        "other / region", "times", "region costs more",
    )  # fmt: skip
    return Table(f"What the region carries, on {record['settings']['split']} films", columns, rows, notes)


def _logits(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _times(share: Mapping[str, float] | None) -> str:
    """Writes how many times further the logit falls without the region."""
    if share is None:
        return "0"
    return f"{1 / share['value']:.1f}" if share["value"] > 1 / NOTHING else "endless"
