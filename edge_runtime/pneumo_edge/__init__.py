"""The part of pneumo that runs on the device: film in, calibrated verdict out, no TensorFlow.

from pneumo_edge import Classifier

with Classifier.load() as classifier:
    print(classifier.predict("film.png"))
"""

import os
from typing import TYPE_CHECKING, Any

from pneumo_edge.errors import (
    BundleError,
    DataError,
    ImageError,
    MissingExtraError,
    PassingError,
    PneumoError,
    RunError,
    UsageError,
)

if TYPE_CHECKING:
    from pneumo_edge.bundle import Bundle, read_bundle
    from pneumo_edge.classifier import Classifier, Failure, Prediction
    from pneumo_edge.region import Region

__all__ = [
    "Bundle",
    "BundleError",
    "Classifier",
    "DataError",
    "Failure",
    "ImageError",
    "MissingExtraError",
    "PassingError",
    "PneumoError",
    "Prediction",
    "Region",
    "RunError",
    "UsageError",
    "__version__",
    "read_bundle",
]

__version__ = "0.1.0"

_MODULES = {
    "Bundle": "bundle",
    "Classifier": "classifier",
    "Failure": "classifier",
    "Prediction": "classifier",
    "Region": "region",
    "read_bundle": "bundle",
}
"""Public names whose modules import NumPy and Pillow -> module."""

# ONNX Runtime's Linux wheel keeps telemetry in the user's home, 2.9 MB of it after a while, and knows a place to send
# it to. A tool for films of patients does neither. ONNX Runtime reads this when it is imported: after pneumo_edge.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Imports a module of `_MODULES` when its name is first asked for: `pneumo-infer --help` needs none of them."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names what has not been imported yet too: `dir`, `help` and completion find it."""
    return sorted({*globals(), *__all__})
