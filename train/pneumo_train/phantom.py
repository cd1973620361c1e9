"""A small set of drawn chest films, for trying the whole flow without downloading a single real one.

The films have the folders and file names of the Kaggle set, or stand in a manifest of several sites with boxes around
their opacities, so everything downstream treats them like real ones. Each is a sum of attenuations (as in a digital
radiograph, where grey is about linear in the line integral): soft tissue, minus lungs, plus heart, bones and vessels;
pneumonia fills a part of a lung with haze. The patient has an anatomy, the film a pose and an exposure. No number
measured on them says anything about real patients.
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pneumo_edge.errors import DataError, UsageError

# Raise it with every change of a drawn pixel: a folder drawn by another version is not the same set.
_VERSION = 3
_MARK = "PHANTOM.json"
SOURCE = "phantoms (synthetic drawings, no real films)"
_NOTE = "These are synthetic drawings: no patients, and never a substitute for real films."
_MIN_FILMS = 20

# Unlike Kaggle's, `val/` is large enough to choose by: small sets give the gate of the export too little to see.
_SPLIT_SHARE = {"train": 0.6, "val": 0.2, "test": 0.2}
_BACTERIA_SHARE = 0.65  # of the pneumonias, as there
_FILMS_PER_PATIENT = (0.42, 0.32, 0.16, 0.10)  # probability of 1, 2, 3, 4 films

_Plane = npt.NDArray[np.floating[Any]]  # a picture's worth of values, in float32 wherever speed counts


@dataclass(frozen=True)
class _Site:
    """Look of the films of one place: ranges from which each film draws. The defaults are those of a single folder."""

    pneumonia: tuple[float, float] = (0.74, 0.625)  # share in train and val, and in test: those of the Kaggle set
    width: tuple[int, int] = (300, 501)  # pixels, from and below
    shape: tuple[float, float] = (0.81, 1.49)  # width / height
    gain: tuple[float, float] = (0.85, 1.25)
    gamma: float = 0.0  # log, in the mean
    fog: tuple[float, float] = (0.0, 0.10)
    collimated: float = 0.25  # share of films on which the collimator's edge shows
    grain: tuple[float, float] = (2.5, 9.0)  # grey levels
    blur: tuple[float, float] = (0.4, 0.9)  # pixels
    letters: tuple[str, str] = ("R", "L")
    letter_size: tuple[float, float] = (0.045, 0.09)  # share of the width
    quality: tuple[int, int] = (75, 93)  # of the JPEG
    ages: tuple[float, float] = (1.0, 6.0)
    ap: float = 1.0  # share of AP films


# Other machines and other people: soft grainy films of children, hard fine ones of adults, pale ones of both.
_SITES = {
    "phantom_north": _Site(),
    "phantom_south": _Site(
        pneumonia=(0.5, 0.5), width=(256, 257), shape=(1.0, 1.0), gain=(0.75, 1.0), gamma=0.25, fog=(0.0, 0.02),
        collimated=0.05, grain=(0.5, 2.0), blur=(0.2, 0.4), letters=("PA 12", "AP"), letter_size=(0.06, 0.08),
        quality=(88, 96), ages=(18.0, 90.0), ap=0.4,
    ),
    "phantom_coast": _Site(
        pneumonia=(0.62, 0.55), width=(380, 460), shape=(0.81, 1.0), gain=(1.0, 1.35), gamma=-0.25, fog=(0.12, 0.25),
        collimated=0.9, grain=(6.0, 14.0), blur=(0.7, 1.2), letters=("L", "SUPINE"), letter_size=(0.03, 0.05),
        quality=(60, 76), ages=(5.0, 80.0), ap=0.7,
    ),
}  # fmt: skip
_SITE_SHARE = {"phantom_north": 0.5, "phantom_south": 0.3, "phantom_coast": 0.2}


class _Lot(NamedTuple):
    """Films that are drawn together: their folder below the set, look and number, and the start of their seed."""

    folder: str
    site: _Site
    films: int
    seed: tuple[int, ...]


class _Rectangle(NamedTuple):
    """A box: shares of width and height, origin at the top left."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class _Haze:
    """One opacity. Centre and radii in chest units; strength 0..1 is the share of the air it replaces."""

    x: float
    y: float
    radius_x: float
    radius_y: float
    strength: float
    halo: bool = False  # around another opacity, which has the box


@dataclass(frozen=True)
class _Patient:
    """Anatomy that the films of one patient share.

    Lengths are in chest units: half the width of the rib cage. x is 0 on the midline and grows to the viewer's
    right, y grows downward, the apices of the lungs lie near -0.85 and their bases near 0.75. Attenuations are in
    units of the displayed range.
    """

    tissue: float
    lung_air: float
    bone: float
    wall: float  # soft tissue lateral of the rib cage
    apex: float
    cage: float  # exponent of the cage's outline: higher is boxier
    rib_spacing: float
    rib_phase: float
    heart: float  # scale of the heart's radii
    mediastinum: float
    dome_left: float
    dome_right: float
    arm_left: float  # radians from straight down
    arm_right: float
    bubble: float  # strength of the gastric air bubble
    vessel: float
    vessels: npt.NDArray[np.float32]  # (n, 5): x0, y0, x1, y1, width
    haze: tuple[_Haze, ...]
    interstitial: float  # strength of the net of fine lines that viral pneumonia draws


def draw_phantoms(
    folder: Path,
    *,
    films: int = 600,
    seed: int = 0,
    several_sites: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draws a learnable set of synthetic chest films, in the layout of the Kaggle set or as a manifest of three sites.

    `folder/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`: grey 8-bit JPEGs, 300 to 500 pixels wide, width / height 0.8 to
    1.5, one to four films per patient, no patient in two splits. `folder/PHANTOM.json` says what they are. The same
    arguments give the same bytes (with the same NumPy and Pillow). The set appears under `folder` only when complete.

    With several sites there are three such folders, `folder/SITE/...`, whose films differ in exposure, grain, marker,
    size, prevalence and age, `folder/films.csv`, which names them all with patient, site, split, age, sex and view, and
    `folder/boxes.csv` with a row for each opacity that shows.

    Args:
        folder: Folder to make. A set drawn with the same arguments is returned as it stands.
        films: Total number, at least 20; three fifths go into train.
        seed: Not negative.
        several_sites: Draw three sites, the second and third smaller, with a manifest and boxes.
        progress: Called with (films drawn, films in all) after each film.

    Returns:
        `folder`.

    Raises:
        UsageError: `films` or `seed` is out of range.
        DataError: `folder` holds something else, or cannot be written.
    """
    if films < _MIN_FILMS:
        raise UsageError(f"a phantom set has at least {_MIN_FILMS} films, not {films}: ask for more")
    if seed < 0:
        raise UsageError(f"the seed of a phantom set cannot be {seed}: give 0 or more")
    mark: dict[str, str | int] = {
        "source": SOURCE, "note": _NOTE, "films": films, "seed": seed, "several_sites": several_sites,
        "version": _VERSION,
    }  # fmt: skip
    if folder.exists() or folder.is_symlink():
        return _reuse(folder, mark)

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            # The folder that is renamed lies inside, since a temporary directory is private to its owner.
            drawing = Path(scratch) / folder.name
            rows: list[dict[str, Any]] = []
            boxes: list[dict[str, Any]] = []
            for lot in _lots(films, seed, several_sites=several_sites):
                for row, around in _draw(drawing, lot):
                    rows.append(row)
                    boxes += ({"path": row["path"]} | box._asdict() for box in around)
                    if progress is not None:
                        progress(len(rows), films)
            if several_sites:
                _write_table(drawing / "films.csv", rows)
                _write_table(drawing / "boxes.csv", boxes)
            (drawing / _MARK).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")
            drawing.rename(folder)
    except OSError as error:
        if folder.exists():  # another process drew it meanwhile
            return _reuse(folder, mark)
        raise DataError(f"{folder} cannot be drawn ({error}): name a folder that can be written") from error
    return folder


def _lots(films: int, seed: int, *, several_sites: bool) -> list[_Lot]:
    if not several_sites:
        return [_Lot("", _Site(), films, (seed,))]
    counts = {name: round(films * share) for name, share in _SITE_SHARE.items()}
    counts["phantom_north"] += films - sum(counts.values())
    return [
        _Lot(f"{name}/", site, counts[name], (seed, 100 + number)) for number, (name, site) in enumerate(_SITES.items())
    ]


def _draw(drawing: Path, lot: _Lot) -> Iterator[tuple[dict[str, Any], list[_Rectangle]]]:
    """Draws the films of one lot; yields the row of the manifest for each, and the boxes around its opacities."""
    for kind, patient_seed, paths in _plan(lot):
        patient = _patient(kind, np.random.default_rng([*lot.seed, *patient_seed]))
        # From lots of their own: who a film shows says nothing about how it looks.
        who = np.random.default_rng([*lot.seed, *patient_seed, 0, 0])
        age, sex = round(float(who.uniform(*lot.site.ages)), 1), "FM"[int(who.integers(2))]
        for film, path in enumerate(paths, start=1):
            rng = np.random.default_rng([*lot.seed, *patient_seed, film])
            target = drawing / lot.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels, boxes = _film(patient, lot.site, rng)
            Image.fromarray(pixels).save(target, "JPEG", quality=int(rng.integers(*lot.site.quality)))
            split, label, _ = path.split("/")
            row = {
                "path": f"{lot.folder}{path}", "label": label,
                "patient": f"{lot.folder.rstrip('/')} {patient_seed[0]}-{patient_seed[1]}",
                "site": lot.folder.rstrip("/"), "split": split, "age": age, "sex": sex,
                "view": "AP" if who.random() < lot.site.ap else "PA",
            }  # fmt: skip
            yield row, boxes


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _reuse(folder: Path, mark: dict[str, str | int]) -> Path:
    """Returns the folder if it holds the set that `mark` describes, and refuses it otherwise."""
    try:
        found = json.loads((folder / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == mark:
        return folder
    raise DataError(
        f"{folder} exists and is not the phantom set of {mark['films']} films with seed {mark['seed']} "
        f"(version {mark['version']}): name a new folder, or remove this one"
    )


def _plan(lot: _Lot) -> list[tuple[str, tuple[int, int], list[str]]]:
    """Lists every patient: kind of film, seed, paths of the films."""
    rng = np.random.default_rng([*lot.seed, 0])
    counts = {split: round(lot.films * share) for split, share in _SPLIT_SHARE.items()}
    counts["train"] += lot.films - sum(counts.values())
    plan: list[tuple[str, tuple[int, int], list[str]]] = []
    normals = persons = 0
    images = {"bacteria": 0, "virus": 0}
    for split, count in counts.items():
        ill = round(count * lot.site.pneumonia[split == "test"])
        for own in _films_of_patients(count - ill, rng):
            normals += 1
            names = [f"{split}/NORMAL/IM-{normals:04d}-{film:04d}.jpeg" for film in range(1, own + 1)]
            plan.append(("normal", (1, normals), names))
        for own in _films_of_patients(ill, rng):
            persons += 1
            kind = "bacteria" if rng.random() < _BACTERIA_SHARE else "virus"
            numbers = range(images[kind] + 1, images[kind] + own + 1)
            images[kind] += own
            names = [f"{split}/PNEUMONIA/person{persons}_{kind}_{number}.jpeg" for number in numbers]
            plan.append((kind, (2, persons), names))
    return plan


def _films_of_patients(films: int, rng: np.random.Generator) -> Iterator[int]:
    """Yields how many films each patient has, until all are given out."""
    while films > 0:
        own = min(films, 1 + int(rng.choice(len(_FILMS_PER_PATIENT), p=_FILMS_PER_PATIENT)))
        films -= own
        yield own


# ---------------------------------------------------------------------------------------------------- the patient


def _patient(kind: str, rng: np.random.Generator) -> _Patient:
    """Makes up a patient; kind is "normal", "bacteria" (focal, often one-sided) or "virus" (on both sides)."""
    haze: list[_Haze] = []
    interstitial = 0.0
    # Everything that both classes have is drawn first, in one order: nothing but the disease depends on the class.
    patient_vessels = np.concatenate([_vessel_tree(side, rng) for side in (-1.0, 1.0)])
    big_heart = rng.random() < 0.25
    base = {
        "tissue": rng.uniform(0.62, 0.80),
        "lung_air": rng.uniform(0.34, 0.50),
        "bone": rng.uniform(0.07, 0.125),
        "wall": rng.uniform(0.08, 0.24),
        "apex": rng.uniform(-0.95, -0.82),
        "cage": rng.uniform(2.1, 2.8),
        "rib_spacing": rng.uniform(0.175, 0.215),
        "rib_phase": rng.uniform(0.0, 1.0),
        "heart": rng.uniform(1.1, 1.3) if big_heart else rng.uniform(0.85, 1.08),
        "mediastinum": rng.uniform(0.13, 0.24),
        "dome_left": rng.uniform(0.42, 0.58),
        "dome_right": rng.uniform(0.48, 0.64),
        "arm_left": rng.uniform(0.12, 2.5),
        "arm_right": rng.uniform(0.12, 2.5),
        "bubble": max(0.0, rng.uniform(-0.15, 0.2)),
        "vessel": rng.uniform(0.05, 0.12),
    }
    if kind == "bacteria":
        side = float(rng.choice((-1.0, 1.0)))
        for _ in range(int(rng.choice((1, 2), p=(0.7, 0.3)))):
            x, y = side * rng.uniform(0.40, 0.70), rng.uniform(-0.45, 0.50)
            radius_x, radius_y = rng.uniform(0.24, 0.38), rng.uniform(0.22, 0.40)
            strength = rng.uniform(0.62, 0.97)
            haze.append(_Haze(x, y, radius_x, radius_y, strength))
            haze.append(_Haze(x, y, 1.8 * radius_x, 1.8 * radius_y, 0.35 * strength, halo=True))
            side = -side
    elif kind == "virus":
        interstitial = rng.uniform(0.4, 1.0)
        for side in (-1.0, 1.0):
            x, y = side * rng.uniform(0.28, 0.50), rng.uniform(-0.15, 0.30)
            haze.append(_Haze(x, y, rng.uniform(0.24, 0.40), rng.uniform(0.30, 0.50), rng.uniform(0.30, 0.60)))
    return _Patient(vessels=patient_vessels, haze=tuple(haze), interstitial=interstitial, **base)


def _vessel_tree(side: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Makes up the vessels of one lung, from its hilum: (n, 5) rows x0, y0, x1, y1, width, in chest units."""
    segments: list[tuple[float, float, float, float, float]] = []
    # Angles are measured from straight lateral, downward positive.
    tips = [
        (side * (0.24 - 0.05 * abs(angle)), 0.11 * angle, angle + rng.normal(0.0, 0.15), 0.032)
        for angle in np.linspace(-1.3, 1.4, 8)
    ]
    for _ in range(7):
        grown = []
        for x, y, angle, width in tips:
            bent = angle + rng.normal(0.0, 0.22)
            length = rng.uniform(0.08, 0.15)
            x1, y1 = x + side * math.cos(bent) * length, y + math.sin(bent) * length
            segments.append((x, y, x1, y1, width))
            grown.append((x1, y1, bent, width * 0.8))
            if rng.random() < 0.35:
                grown.append((x1, y1, bent + rng.choice((-1.0, 1.0)) * rng.uniform(0.4, 0.8), width * 0.65))
        tips = grown[:40]
    return np.asarray(segments, dtype=np.float32)


# ------------------------------------------------------------------------------------------------------- the film


def _film(patient: _Patient, site: _Site, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], list[_Rectangle]]:
    """Draws one film of a patient, uint8, shape (h, w), 0 = black = air, and a box around each opacity that shows."""
    width = int(rng.integers(*site.width))
    height = round(width / rng.uniform(*site.shape))
    shape = (height, width)
    unit = min(width * rng.uniform(0.36, 0.43), height * rng.uniform(0.43, 0.50))
    angle = math.radians(rng.normal(0.0, 3.5))
    centre_x = width * (0.5 + rng.normal(0.0, 0.025))
    centre_y = height * 0.5 + unit * rng.normal(0.06, 0.06)
    breath = rng.normal(0.0, 0.03)
    turn = rng.normal(0.0, 0.02)  # of the patient about the long axis: shifts the heart against the spine
    # The anatomy is soft: drawn at every second pixel it is four times faster and looks the same.
    coarse = (-(-height // 2), -(-width // 2))
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    column = (((np.arange(coarse[1]) + 0.5) * (width / coarse[1]) - centre_x) / unit)[None, :].astype(np.float32)
    row = (((np.arange(coarse[0]) + 0.5) * (height / coarse[0]) - centre_y) / unit)[:, None].astype(np.float32)
    x = column * cos + row * sin
    y = row * cos - column * sin
    side = np.abs(x)

    soft = _soft_tissue(patient, x, y, side)
    lung, lateral = _lungs(patient, x, y, side, breath)
    air = lung * (1.0 - 0.92 * _heart(patient, x - turn, y, rng))
    opacity, cores = _consolidation(patient, x, y, rng)
    boxes = [box for core in cores if (box := _box_around(core * air)) is not None]
    air *= 1.0 - opacity
    # Muscle, fat and clothing are uneven, and broadly so: a broad brightness shall say little about the lung.
    uneven = 1.0 + 0.05 * _smooth_noise(rng, coarse, 3) + 0.02 * _smooth_noise(rng, coarse, 9)
    total = patient.tissue * soft * uneven
    total -= patient.lung_air * air
    total += _bones(patient, x, y, side, lateral)
    cuffs = 1.0 + 0.5 * patient.interstitial  # inflamed bronchi thicken the walls along the vessels
    vessels = _vessels(patient.vessels, coarse, unit / 2.0, (centre_x / 2.0, centre_y / 2.0), angle)
    # A vessel shows against air alone: over the heart or in a consolidation it is nearly lost.
    total += patient.vessel * cuffs * rng.uniform(0.8, 1.2) * vessels * (0.2 * lung + 0.8 * air)
    total += 0.010 * _smooth_noise(rng, coarse, 40) * lung
    return _develop(_enlarge(_expose(total, soft, site, rng), shape), site, rng), boxes


def _soft_tissue(patient: _Patient, x: _Plane, y: _Plane, side: _Plane) -> _Plane:
    """Thickness of the body, 0 (air) to about 1: torso, neck, arms and jaw."""
    wall = 1.0 + patient.wall
    knots_y = np.array([-3.0, -1.40, -1.22, -1.08, -0.95, -0.72, -0.40, 0.0, 0.6, 3.0])
    knots_w = np.array([0.34, 0.34, 0.42, 0.74, 1.12, 1.22, 1.10, 1.0, 0.98, 0.96]) * wall
    knots_w[:2] = 0.36
    grid = np.linspace(-3.0, 3.0, 601)
    kernel = np.hanning(17)
    outline = np.convolve(np.pad(np.interp(grid, knots_y, knots_w), 8, mode="edge"), kernel / kernel.sum(), "valid")
    ratio = side / _interpolated(grid, outline, y)
    torso = np.sqrt(np.clip(1.0 - ratio * ratio * ratio, 0.0, 1.0))
    torso *= 0.80 + 0.20 * _smooth_step(y + 0.55, 1.3) - 0.08 * _smooth_step(-0.85 - y, 0.4)
    torso += 0.10 * np.exp(-((x / 0.45) ** 2)) * (torso > 0)

    jaw = 1.0 - (x / 0.52) ** 2 - ((y + 1.88) / 0.52) ** 2
    # Squares are summed so that parts melt into each other where they overlap.
    squares = torso * torso + 0.9 * np.clip(jaw, 0.0, 1.0)
    bones = np.zeros_like(torso)
    for sign, angle in ((-1.0, patient.arm_left), (1.0, patient.arm_right)):
        joint = (0.94 + 0.7 * patient.wall, -0.80)
        away = _distance_to_segment(sign * x, y, joint, angle, 1.6)
        squares += 0.40 * np.clip(1.0 - (away / 0.23) ** 2, 0.0, 1.0)
        ball = np.hypot(sign * x - joint[0], y - joint[1]) - 0.045
        shaft = np.minimum(away, ball)
        bones = np.maximum(bones, _smooth_step(0.058 - shaft, 0.025) * (0.08 + 30.0 * np.clip(shaft, 0.0, 0.06) ** 2))
    return (np.sqrt(squares) + bones).astype(np.float32, copy=False)


def _lungs(patient: _Patient, x: _Plane, y: _Plane, side: _Plane, breath: float) -> tuple[_Plane, _Plane]:
    """Depth of air, 0 to 1, and the distance inward from the lateral wall of the rib cage (chest units)."""
    grid = np.linspace(-3.0, 3.0, 601)
    up = np.clip((0.62 - grid) / (0.62 - patient.apex), 0.0, 1.0)
    edge = 0.95 * (1.0 - up**patient.cage) ** (1.0 / patient.cage) - 0.10 * np.clip(grid - 0.62, 0.0, None)
    lateral = _interpolated(grid, edge, y) - side
    medial = side - patient.mediastinum * 0.75
    inner = _smooth_step(medial, 0.10)
    outer = np.sqrt(np.clip(lateral / 0.22, 0.0, 1.0))
    top = np.where(x < 0, np.float32(patient.dome_left + breath), np.float32(patient.dome_right + breath))
    dome = top + 0.85 * (side - 0.48) ** 2 + 0.6 * np.clip(side - 0.62, 0.0, None) ** 2
    base = _smooth_step(dome - y, 0.035)
    depth = inner * outer * base
    # The lower lobes lie behind the dome: a little air shines through just below it.
    behind = inner * outer * (1.0 - base) * 0.16 * _smooth_step(dome + 0.14 - y, 0.28)
    fundus = ((x - 0.52) / 0.24) ** 2 + ((y - dome - 0.13) / 0.10) ** 2
    bubble = patient.bubble * _smooth_step(1.0 - fundus, 0.9) * (x > 0) * (1.0 - base)
    return (depth + behind + bubble).astype(np.float32, copy=False), lateral


def _heart(patient: _Patient, x: _Plane, y: _Plane, rng: np.random.Generator) -> _Plane:
    """Share of the lung's air that heart and great vessels hide, 0 to 1: most of it on the viewer's right."""
    scale = patient.heart
    ripple = 0.04 * _smooth_noise(rng, x.shape, 10)
    along, across = 0.83 * x + 0.56 * y, 0.83 * y - 0.56 * x
    left = ((along - 0.25) / (0.44 * scale)) ** 2 + ((across - 0.12) / (0.38 * scale)) ** 2
    right = ((x + 0.06) / (0.21 * scale)) ** 2 + ((y - 0.24) / (0.36 * scale)) ** 2
    arch = 0.08 * np.exp(-(((y + 0.36) / 0.14) ** 2)) + 0.05 * np.exp(-(((y + 0.08) / 0.16) ** 2))
    trunk = np.abs(x - 0.02) - patient.mediastinum * (0.85 + 0.5 * np.clip(y + 0.5, 0.0, 0.8)) - arch * (x > 0)
    hila = sum(np.exp(-(((x - 0.24 * s) / 0.11) ** 2) - ((y + 0.02) / 0.17) ** 2) for s in (-1.0, 1.0))
    clear = 1.0 - _smooth_step(1.0 - left + ripple, 0.30)
    clear *= 1.0 - _smooth_step(1.0 - right + ripple, 0.36)
    clear *= 1.0 - 0.9 * _smooth_step(0.2 * ripple - trunk, 0.08)
    clear *= 1.0 - 0.3 * hila
    return (1.0 - clear).astype(np.float32, copy=False)


def _consolidation(patient: _Patient, x: _Plane, y: _Plane, rng: np.random.Generator) -> tuple[_Plane, list[_Plane]]:
    """Share of the lung's air that pneumonia fills, 0 to 1, in all (zero for a normal film), and for each opacity."""
    shape = x.shape
    clear = np.ones(shape, dtype=np.float32)
    cores: list[_Plane] = []
    for haze in patient.haze:
        # Noise moves the outline and mottles the inside, so that no two patches are ellipses.
        ragged = 0.26 * _smooth_noise(rng, shape, 7) + 0.12 * _smooth_noise(rng, shape, 16)
        away = ((x - haze.x) / haze.radius_x) ** 2 + ((y - haze.y) / haze.radius_y) ** 2
        patch = _smooth_step(1.0 - np.sqrt(away) + ragged, 1.05)
        mottle = 1.0 + 0.10 * _smooth_noise(rng, shape, 26)
        filled = np.clip(haze.strength * rng.uniform(0.85, 1.1) * patch * mottle, 0.0, 0.97)
        clear *= 1.0 - filled
        if not haze.halo:
            cores.append(filled)
    if patient.interstitial:
        net = np.exp(-((_smooth_noise(rng, shape, 24) / 0.5) ** 2)) + 0.7 * np.exp(
            -((_smooth_noise(rng, shape, 42) / 0.4) ** 2)
        )
        patchy = _smooth_step(_smooth_noise(rng, shape, 5) + 0.4, 2.0)
        clear *= 1.0 - np.clip(0.26 * patient.interstitial * net * patchy, 0.0, 0.8)
    return 1.0 - clear, cores


def _box_around(opacity: _Plane) -> _Rectangle | None:
    """Returns the box around an opacity (h, w), a share of filled air; None where next to nothing shows.

    As a radiologist would, it leaves out the faint rim: a twentieth of the opacity may stick out on each side.
    """
    shown = np.where(opacity > 0.1, opacity, 0.0)
    if shown.mean() < 0.002:
        return None
    spans = []
    for axis in (0, 1):
        grown = np.cumsum(shown.sum(axis=axis), dtype=np.float64)
        low, high = np.searchsorted(grown, (0.05 * grown[-1], 0.95 * grown[-1]))
        spans.append((round(int(low) / len(grown), 4), round((int(high) + 1) / len(grown), 4)))
    (x0, x1), (y0, y1) = spans
    return _Rectangle(x0, y0, x1, y1)


def _bones(patient: _Patient, x: _Plane, y: _Plane, side: _Plane, lateral: _Plane) -> _Plane:
    """Attenuation that ribs, clavicles and spine add."""
    caged = _smooth_step(lateral + 0.045, 0.03)
    spacing, half = patient.rib_spacing, patient.rib_spacing * 0.27
    # All ribs of one set are the level lines of one field: distance to the nearest line, whichever rib it is.
    behind = y - 0.78 * (side - 0.30) ** 2 * (1.15 - 0.3 * y)
    ahead = y + 0.62 * (side - 1.0) * (0.9 + 0.3 * y)
    ribs = _bone_profile(_distance_to_lines(behind, spacing, patient.rib_phase) / half) * _smooth_step(side - 0.08, 0.1)
    ribs *= 0.85 + 0.15 * np.cos(5.0 * behind)
    front = _bone_profile(_distance_to_lines(ahead, spacing * 1.08, patient.rib_phase + 0.4) / (1.3 * half))
    ribs += 0.32 * front * _smooth_step(side - 0.42, 0.3)
    ribs *= caged * _smooth_step(y - patient.apex, 0.2) * (1.0 - 0.75 * _smooth_step(y - 0.75, 0.5))
    rim = np.exp(-(((lateral + 0.012) / 0.028) ** 2)) * _smooth_step(0.85 - y, 0.3) * (0.55 + 0.6 * ribs)

    vertebra = 0.5 + 0.5 * np.cos(np.float32(2.0 * math.pi / 0.165) * y)
    spine = _bone_profile(side / 0.115) * (0.62 + 0.38 * vertebra) * (0.6 + 0.4 * _smooth_step(y + 0.2, 1.2))
    windpipe = np.exp(-(((x + 0.01) / 0.055) ** 2)) * _smooth_step(-0.30 - y, 0.25)

    bar = y + 0.70 + 0.30 * (side - 0.1) - 0.08 * np.sin((side - 0.12) * 4.2)
    clavicle = _bone_profile(bar / 0.042) * _smooth_step(side - 0.11, 0.05) * _smooth_step(0.95 - side, 0.1)
    blade = _smooth_step(0.30 - np.abs(side - 0.98 - 0.25 * (y + 0.5)), 0.16) * _smooth_step(
        0.32 - np.abs(y + 0.50), 0.2
    )
    total: _Plane = patient.bone * (ribs + 0.7 * rim + 1.25 * spine + 1.2 * clavicle + 0.35 * blade) - 0.09 * windpipe
    return total.astype(np.float32, copy=False)


def _vessels(
    tree: npt.NDArray[np.float32], shape: tuple[int, int], unit: float, centre: tuple[float, float], angle: float
) -> _Plane:
    """Draws a vessel tree into the film's frame, 0 to 1."""
    cos, sin = math.cos(angle), math.sin(angle)
    canvas = Image.new("L", (shape[1], shape[0]))
    pen = ImageDraw.Draw(canvas)
    for x0, y0, x1, y1, width in tree.tolist():
        ends = [
            (centre[0] + unit * (x * cos - y * sin), centre[1] + unit * (x * sin + y * cos))
            for x, y in ((x0, y0), (x1, y1))
        ]
        pixels = width * unit
        pen.line(ends, fill=min(255, round(50 + 90 * pixels)), width=max(1, round(pixels)))
    blurred = canvas.filter(ImageFilter.GaussianBlur(0.5))
    return np.asarray(blurred, dtype=np.float32) / np.float32(255.0)


def _expose(total: _Plane, soft: _Plane, site: _Site, rng: np.random.Generator) -> _Plane:
    """Turns attenuation into grey, about 0 to 1: exposure, fog and the film's curve."""
    grey = total * rng.uniform(*site.gain) + rng.uniform(-0.12, 0.10) * (soft > 0.02)
    grey = grey / (1.0 + 0.35 * np.clip(grey - 0.6, 0.0, None))  # the film's shoulder
    grey = np.clip(grey, 0.0, 1.2) ** math.exp(rng.normal(site.gamma, 0.22))
    fog = rng.uniform(*site.fog)
    return (fog + (1.0 - fog) * grey).astype(np.float32, copy=False)


def _develop(grey: _Plane, site: _Site, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Adds what belongs to the film and not to the patient: collimator, grain, blur, the side marker."""
    height, width = grey.shape
    if rng.random() < site.collimated:
        grey = grey * _collimator(grey.shape, rng)
    grain = rng.standard_normal(grey.shape, dtype=np.float32)
    pixels = np.clip(grey * 255.0 + rng.uniform(*site.grain) * grain, 0.0, 255.0).astype(np.uint8)
    film = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(*site.blur)))
    if rng.random() < 0.7:
        first = rng.random() < 0.8
        letter = site.letters[0 if first else 1]
        size = int(width * rng.uniform(*site.letter_size))
        place = width * rng.uniform(0.03, 0.10) if first else width * rng.uniform(0.84, 0.90)
        font = ImageFont.load_default(size)
        at = (place, height * rng.uniform(0.02, 0.16))
        ImageDraw.Draw(film).text(at, letter, fill=int(rng.integers(190, 256)), font=font)
    return np.asarray(film, dtype=np.uint8)


def _collimator(shape: tuple[int, int], rng: np.random.Generator) -> _Plane:
    """The lit field, 1 inside and 0 outside: the collimator's straight edges, a little askew."""
    row = np.linspace(0.0, 1.0, shape[0], dtype=np.float32)[:, None]
    column = np.linspace(0.0, 1.0, shape[1], dtype=np.float32)[None, :]
    tilt = np.float32(rng.normal(0.0, 0.03))
    left, right, top, bottom = rng.uniform(-0.02, 0.05, size=4).astype(np.float32)
    across, down = column + tilt * (row - 0.5), row - tilt * (column - 0.5)
    inside = np.minimum(np.minimum(across - left, 1.0 - right - across), np.minimum(down - top, 1.0 - bottom - down))
    lit: _Plane = np.clip(inside * 150.0, 0.0, 1.0).astype(np.float32, copy=False)
    return lit


# -------------------------------------------------------------------------------------------------------- shapes


def _smooth_step(value: _Plane, width: float) -> _Plane:
    """Smooth step from 0 to 1, `width` wide, one half at 0."""
    t = np.clip(value * np.float32(1.0 / width) + np.float32(0.5), 0.0, 1.0)
    step: _Plane = t * t * (3.0 - 2.0 * t)
    return step


def _bone_profile(away: _Plane) -> _Plane:
    """Profile of a bone of radius 1 at a distance from its axis: the cortex is denser than the marrow."""
    away = np.abs(away)
    profile: _Plane = np.clip((1.0 - away) * 5.0, 0.0, 1.0) * (0.65 + 0.35 * away * away)
    return profile


def _distance_to_lines(field: _Plane, spacing: float, phase: float) -> _Plane:
    """Distance of a field from its nearest level line, lines lying `spacing` apart."""
    level = field * np.float32(1.0 / spacing) + np.float32(phase)
    away: _Plane = np.abs(level - np.rint(level)) * np.float32(spacing)
    return away


def _distance_to_segment(x: _Plane, y: _Plane, start: tuple[float, float], angle: float, length: float) -> _Plane:
    """Distance from a segment that leaves `start` at `angle` radians from straight down, outward."""
    right, down = np.float32(math.sin(angle)), np.float32(math.cos(angle))
    dx, dy = x - np.float32(start[0]), y - np.float32(start[1])
    along = np.clip(dx * right + dy * down, 0.0, np.float32(length))
    away: _Plane = np.hypot(dx - along * right, dy - along * down)
    return away


def _interpolated(grid: npt.NDArray[np.float64], values: npt.NDArray[np.float64], at: _Plane) -> _Plane:
    """Interpolates a curve that is given on a grid."""
    return np.interp(at, grid, values).astype(np.float32)


def _enlarge(plane: _Plane, shape: tuple[int, int]) -> _Plane:
    """Resizes smoothly to (h, w)."""
    large = Image.fromarray(plane).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.array(large, dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> _Plane:
    """Smooth noise of about zero mean and unit spread, `cells` bumps across the film."""
    height, width = shape
    rows = max(2, round(cells * height / width))
    return _enlarge(rng.standard_normal((rows, cells), dtype=np.float32), shape) * np.float32(1.4)
