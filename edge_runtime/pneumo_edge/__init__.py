"""The part of pneumo that runs on the device: it reads films and gives calibrated verdicts, without TensorFlow.

    from pneumo_edge import Classifier

    with Classifier.load() as classifier:
        print(classifier.predict("film.png"))

For education and research. Not a diagnosis.
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

# ONNX Runtime's Linux wheel collects telemetry in the user's home, and knows an address to send it to. A tool for films
# of patients must do neither. ONNX Runtime reads this variable when it is imported, which is after pneumo_edge.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Imports a module of `_MODULES` when one of its names is first used: `pneumo-infer --help` needs none of them."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists all public names, so that `dir`, `help` and completion find those that are not imported yet."""
    return sorted({*globals(), *__all__})
