"""A bundle on disk: `model.json` and the model files it vouches for.

Nothing in it is ever executed or unpickled: JSON, and graphs that ONNX Runtime and LiteRT parse. A file is read once,
its SHA-256 is compared, and the engine gets those very bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pneumo_edge.atomic import write_json
from pneumo_edge.errors import BundleError

FORMAT_VERSION = 1
DESCRIPTION = "model.json"
LABELS = ("NORMAL", "PNEUMONIA")
DEFAULT_BUNDLE = Path(__file__).parent / "default_model"

ENGINE_OF_SUFFIX = {".onnx": "onnx", ".tflite": "tflite"}
MODEL_FILES = ("model.int8.onnx", "model.onnx", "model.int8.tflite", "model.tflite")
"""The only names a bundle may list: a path in `model.json` can point nowhere else."""

_MAX_DESCRIPTION_BYTES = 1_000_000
_MAX_MODEL_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Interval:
    """A proportion or an area under a curve with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the calibrated probability, and what it gave on the validation films."""

    threshold: float
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
    """One file of the bundle. Above `novelty_limit` a picture is called out of distribution."""

    precision: str
    bytes: int
    sha256: str
    novelty_limit: float


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to know where the model comes from."""

    data: str
    films: dict[str, int]
    """Films per split and label, such as {"train/NORMAL": 1209}."""
    weights: str
    """What the backbone started from."""
    trained: str
    """Day, ISO 8601."""
    versions: dict[str, str]
    """Package -> version, for training and export."""


@dataclass(frozen=True)
class Description:
    """`model.json`. Frozen: a bundle is made once, by the export, and never edited."""

    format_version: int
    name: str
    backbone: str
    head: str
    input: InputContract
    labels: tuple[str, str]
    calibration: Calibration
    operating_points: dict[str, OperatingPoint]
    default_operating_point: str
    provenance: Provenance
    files: dict[str, ModelFile]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose description has been read and found whole."""

    folder: Path
    description: Description

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
        BundleError: One sentence on the first thing that is wrong.
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
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path} has format version {version!r}, this pneumo reads {FORMAT_VERSION}: "
            f"export the bundle again or install the pneumo that wrote it"
        )
    try:
        description = from_json(Description, parsed)
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


def write_description(folder: Path, description: Description) -> None:
    """Writes `model.json` after the checks that reading makes."""
    _check(description)
    write_json(folder / DESCRIPTION, asdict(description))


def _check(description: Description) -> None:
    """Raises ValueError where values that have the right type make no sense."""
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
    if description.calibration.scale <= 0:
        raise ValueError("calibration.scale must be positive")
    shares = [description.calibration.prevalence] + [p.threshold for p in description.operating_points.values()]
    if not all(0 < share < 1 for share in shares):
        raise ValueError("prevalence and thresholds must lie between 0 and 1")


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
