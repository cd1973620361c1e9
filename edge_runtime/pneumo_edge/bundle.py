"""A bundle on disk: `model.json`, and the model files that it lists with their hashes.

Nothing in it is executed or unpickled: it holds JSON, and graphs that ONNX Runtime and LiteRT parse. A file is read
once, its SHA-256 is compared, and the engine gets those bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pneumo_edge.atomic import write_json
from pneumo_edge.errors import BundleError

FORMAT_VERSION = 2
"""The version that is written. Bundles of format 1 are read too: what they do not say is unknown."""
DESCRIPTION = "model.json"
LABELS = ("NORMAL", "PNEUMONIA")
DEFAULT_BUNDLE = Path(__file__).parent / "default_model"

ENGINE_OF_SUFFIX = {".onnx": "onnx", ".tflite": "tflite"}
MODEL_FILES = ("model.int8.onnx", "model.onnx", "model.int8.tflite", "model.tflite")
"""The only file names that a bundle may list, so that `model.json` cannot point anywhere else."""

_MAX_DESCRIPTION_BYTES = 1_000_000
_MAX_MODEL_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Interval:
    """A proportion, or an area under a curve, with its 95 % interval; all in [0, 1]."""

    value: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the calibrated probability, with its sensitivity and specificity on the validation films."""

    threshold: float
    """Probability from which a film is called PNEUMONIA, in (0, 1)."""
    sensitivity: Interval
    specificity: Interval


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(scale * logit + offset), true where `prevalence` of the films show pneumonia (Platt)."""

    scale: float
    offset: float
    prevalence: float


@dataclass(frozen=True)
class InputContract:
    """uint8, shape (N, size, size, channels), 0 = black, whole range 0..255 as the film has it."""

    name: str
    dtype: str
    size: int
    channels: int


@dataclass(frozen=True)
class ModelFile:
    """One model file of the bundle."""

    precision: str
    """"int8" or "fp32"."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Its SHA-256, in hexadecimal."""
    novelty_limit: float
    """Above this novelty the verdict is withheld."""
    region_threshold: float | None = None
    """Local probability from which a place belongs to a region, in (0, 1). None where the head has no local map."""
    reference: Reference | None = None
    """How the answers of this file are distributed on validation films; None where that is unknown."""


@dataclass(frozen=True)
class Reference:
    """Distribution of the answers on validation films, with which a device can compare its own.

    The quantiles are 0, 1, 2 ... 100 % over the undisturbed validation films; each site weighs the same.
    """

    films: int
    """Number of validation films."""
    logit: tuple[float, ...]
    """101 numbers, ascending."""
    novelty: tuple[float, ...]
    """101 numbers, ascending."""
    contrast: tuple[float, ...] | None = None
    """101 numbers, ascending: standard deviation of the grey levels, as the model sees them; None where unknown."""


@dataclass(frozen=True)
class Ages:
    """Ages of a site's patients in years: percentiles over the training films whose age is known.

    Where no film's age is known, the ages can be stated for the site as a whole: the youngest and the oldest.
    """

    low: float
    """1st percentile, or the youngest."""
    median: float | None
    """None where the ages are stated for the site."""
    high: float
    """99th percentile, or the oldest."""
    known: int
    """Number of films whose age is known; 0 where the ages are stated for the site."""


@dataclass(frozen=True)
class Site:
    """A place whose films the model has learned from."""

    name: str
    source: str
    """The data set that its films come from, and who made it."""
    licence: str
    """Terms of the films."""
    films: dict[str, int]
    """Films per split and label, such as {"train/NORMAL": 1209}."""
    patients: int
    ages: Ages | None
    """None where no age is known."""
    views: dict[str, int]
    """View -> films, such as {"PA": 812}; empty where unknown."""
    sexes: dict[str, int]
    """Sex -> films; empty where unknown."""


@dataclass(frozen=True)
class Provenance:
    """What the model was made from. The runtime takes its warnings about ages and views from it."""

    data: str
    """Name of the data, for people."""
    films: dict[str, int]
    """Films per split and label, such as {"train/NORMAL": 1209}."""
    weights: str
    """Weights that the backbone started from."""
    trained: str
    """Day on which training ended, ISO 8601."""
    versions: dict[str, str]
    """Package -> version, of training and export."""
    sites: tuple[Site, ...] = ()
    """Sites whose films the model has learned from; empty where they are unknown."""
    licence: str = ""
    """Terms under which the weights may be used; empty where unknown."""


@dataclass(frozen=True)
class LocalSite:
    """The site on whose films a bundle was calibrated anew, and what the bundle said before."""

    name: str
    """Name of the site."""
    films: dict[str, int]
    """Label -> films."""
    patients: int
    """Number of patients."""
    prevalence: float
    """Share of films with pneumonia at the site, in (0, 1)."""
    calibrated: str
    """Day of the calibration, ISO 8601."""
    was: Calibration
    """Calibration of the bundle before."""
    was_operating_points: dict[str, OperatingPoint]
    """Operating points of the bundle before."""
    auc: Interval
    """AUC of the model on the films of the site."""


@dataclass(frozen=True)
class Description:
    """The content of `model.json`. It never changes: a calibration makes a new bundle."""

    format_version: int
    name: str
    """Name of the model, such as "efficientnet_lite0-local-160"."""
    backbone: str
    """Name of the network, as pneumo-train calls it."""
    head: str
    """"local", "gap" or "flatten"."""
    input: InputContract
    labels: tuple[str, str]
    calibration: Calibration
    operating_points: dict[str, OperatingPoint]
    """Name -> operating point."""
    default_operating_point: str
    """Name of the one that is used where none is chosen."""
    provenance: Provenance
    files: dict[str, ModelFile]
    """File name -> what the bundle says of the file."""
    site: LocalSite | None = None
    """The site on which it was calibrated anew; None in a bundle as pneumo-export writes it."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose description has been read and found whole. Cannot be hashed: its description holds dicts."""

    folder: Path
    """Where it lies."""
    description: Description
    """What its `model.json` says."""

    def read_file(self, name: str) -> bytes:
        """Returns the bytes of a model file, after checking their size and SHA-256.

        Raises:
            BundleError: The bundle has no such file, or its bytes are not those that were exported.
        """
        stated = self.description.files.get(name)
        if stated is None:
            listed = ", ".join(self.description.files)
            raise BundleError(f"{self.folder} has no file {name}: it has {listed}")
        path = self.folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}): copy the bundle again") from None
        if len(data) != stated.bytes or hashlib.sha256(data).hexdigest() != stated.sha256:
            raise BundleError(f"{path} is not the file that was exported (its SHA-256 differs): copy the bundle again")
        return data

    def files_of_engine(self, engine: str) -> list[str]:
        """Returns the files for one engine, int8 before fp32."""
        return [n for n in MODEL_FILES if n in self.description.files and ENGINE_OF_SUFFIX[Path(n).suffix] == engine]


def read_bundle(folder: Path) -> Bundle:
    """Reads and checks `model.json` and that every file it names is there with the stated size.

    Raises:
        BundleError: One sentence about the first fault.
    """
    path = folder / DESCRIPTION
    try:
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder: give the bundle that pneumo-export wrote")
        if not path.is_file():
            raise BundleError(f"{folder} holds no {DESCRIPTION}: give the bundle that pneumo-export wrote")
        if path.stat().st_size > _MAX_DESCRIPTION_BYTES:
            raise BundleError(f"{path} is larger than any {DESCRIPTION}: export the bundle again")
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except (ValueError, RecursionError):
        raise BundleError(f"{path} is not JSON: export the bundle again") from None
    version = parsed.get("format_version") if isinstance(parsed, dict) else None
    if version not in (1, FORMAT_VERSION):
        raise BundleError(
            f"{path} has format version {version!r}, this pneumo reads 1 and {FORMAT_VERSION}: "
            f"export the bundle again or install the pneumo that wrote it"
        )
    try:
        if version == 1:
            _add_what_format_1_lacks(parsed)
        _add_what_early_references_lack(parsed)
        description = replace(from_json(Description, parsed), format_version=FORMAT_VERSION)
        _check(description)
    except ValueError as error:
        raise BundleError(f"{path} is broken ({error}): export the bundle again") from None
    for name, stated in description.files.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"{file} is missing though {DESCRIPTION} lists it: copy the bundle again")
        if file.stat().st_size != stated.bytes:
            raise BundleError(f"{file} has another size than {DESCRIPTION} states: copy the bundle again")
    return Bundle(folder, description)


def _add_what_format_1_lacks(parsed: dict[str, Any]) -> None:
    """Brings `model.json` of format 1 to format 2. What it does not say becomes unknown.

    Raises:
        ValueError: It has a key that came with format 2.
    """
    files = parsed.get("files")
    unknown: list[tuple[str, Any, dict[str, Any]]] = [
        ("", parsed, {"site": None}),
        ("provenance.", parsed.get("provenance"), {"sites": [], "licence": ""}),
    ]
    for name, file in files.items() if isinstance(files, dict) else ():
        unknown.append((f"files.{name}.", file, {"region_threshold": None, "reference": None}))
    for where, place, values in unknown:
        # `from_json` refuses what is no object.
        if isinstance(place, dict):
            for key, value in values.items():
                if key in place:
                    raise ValueError(f"unknown key {where}{key}")
                place[key] = value


def _add_what_early_references_lack(parsed: dict[str, Any]) -> None:
    """A reference knew no contrast at first."""
    files = parsed.get("files")
    for file in files.values() if isinstance(files, dict) else ():
        if isinstance(file, dict) and isinstance(file.get("reference"), dict):
            file["reference"].setdefault("contrast", None)


def write_description(folder: Path, description: Description) -> None:
    """Writes `model.json`, after the same checks as in reading.

    Raises:
        ValueError: Values make no sense.
    """
    _check(description)
    write_json(folder / DESCRIPTION, asdict(description))


def _check(description: Description) -> None:
    """Raises ValueError where values that have the right type make no sense."""
    if description.format_version != FORMAT_VERSION:
        raise ValueError(f"format_version must be {FORMAT_VERSION}")
    made_for = description.input
    if made_for.dtype != "uint8" or made_for.channels != 1 or not 32 <= made_for.size <= 1024:
        raise ValueError("input must be uint8, one channel, 32 to 1024 pixels")
    if description.labels != LABELS:
        raise ValueError(f"labels must be {LABELS}")
    if description.default_operating_point not in description.operating_points:
        raise ValueError("default_operating_point is none of the operating_points")
    if not description.files:
        raise ValueError("files is empty")
    for name, file in description.files.items():
        if name not in MODEL_FILES:
            raise ValueError(f"{name!r} is no file that a bundle can have")
        if not 0 < file.bytes <= _MAX_MODEL_BYTES or file.novelty_limit <= 0:
            raise ValueError(f"{name}: size and novelty_limit must be positive")
        if file.region_threshold is not None and (description.head != "local" or not 0 < file.region_threshold < 1):
            raise ValueError(f"{name}: region_threshold is for the head local alone, between 0 and 1")
        if file.reference is not None:
            _check_reference(file.reference, f"{name}: reference")
    _check_probabilities(description.calibration, description.operating_points, "")
    _check_sites(description.provenance.sites)
    if description.site is not None:
        _check_local(description.site)


def _check_probabilities(calibration: Calibration, points: Mapping[str, OperatingPoint], where: str) -> None:
    if calibration.scale <= 0:
        raise ValueError(f"{where}calibration.scale must be positive")
    shares = [calibration.prevalence] + [point.threshold for point in points.values()]
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"{where}prevalence and thresholds must lie between 0 and 1")


def _check_reference(reference: Reference, where: str) -> None:
    if reference.films < 1:
        raise ValueError(f"{where} needs films")
    for quantiles in (reference.logit, reference.novelty, reference.contrast):
        if quantiles is not None and (len(quantiles) != 101 or any(a > b for a, b in pairwise(quantiles))):
            raise ValueError(f"{where} must have 101 quantiles in ascending order")


def _check_sites(sites: tuple[Site, ...]) -> None:
    names = [site.name for site in sites]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError("provenance.sites must have names, each its own")
    for site in sites:
        if min(site.patients, *site.films.values(), *site.views.values(), *site.sexes.values(), 0) < 0:
            raise ValueError(f"provenance.sites: {site.name} counts less than nothing")
        ages = site.ages
        if ages is None:
            continue
        middle = ages.low if ages.median is None else ages.median
        if not 0 <= ages.low <= middle <= ages.high or (ages.known == 0) != (ages.median is None) or ages.known < 0:
            raise ValueError(
                f"provenance.sites: {site.name} must have ages in ascending order, with a median if films tell them"
            )


def _check_local(site: LocalSite) -> None:
    if not site.name:
        raise ValueError("site must have a name")
    if min(site.patients, *site.films.values(), 0) < 0:
        raise ValueError("site counts less than nothing")
    try:
        date.fromisoformat(site.calibrated)
    except ValueError:
        raise ValueError("site.calibrated must be a day such as 2026-05-31") from None
    if not 0 < site.prevalence < 1 or not 0 <= site.auc.low <= site.auc.value <= site.auc.high <= 1:
        raise ValueError("site.prevalence and site.auc must lie between 0 and 1, the interval around its value")
    _check_probabilities(site.was, site.was_operating_points, "site.was: ")


def from_json(kind: Any, value: Any, where: str = "") -> Any:
    """Builds a dataclass from parsed JSON, strictly: unknown or missing keys and wrong types are errors.

    Args:
        kind: A dataclass, or the type of one of its fields (str, int, float, tuple[...], dict[str, ...], X | None).
        value: What `json.loads` gave.
        where: Dotted path of the value, for messages.

    Raises:
        ValueError: Names the first place that does not fit.
    """
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where or 'the whole'} must be an object")
        expected, given = {f.name for f in fields(kind)}, set(value)
        for key in sorted(expected ^ given):
            state = "missing" if key in expected else "unknown"
            raise ValueError(f"{state} key {where + '.' if where else ''}{key}")
        hints = get_type_hints(kind)
        return kind(**{k: from_json(hints[k], v, f"{where}.{k}".lstrip(".")) for k, v in value.items()})
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object")
        return {str(k): from_json(get_args(kind)[1], v, f"{where}.{k}") for k, v in value.items()}
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list) or (kinds[-1] is not ... and len(kinds) != len(value)):
            raise ValueError(
                f"{where} must be a list of {len(kinds)}" if ... not in kinds else f"{where} must be a list"
            )
        return tuple(from_json(kinds[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if type(None) in get_args(kind):
        return None if value is None else from_json(get_args(kind)[0], value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        # JSON's integers have no limit, floats have.
        value = float(value) if abs(value) < 1 << 1023 else math.inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} must be finite")
    return value
