"""The part of pneumo that runs on the device: film in, calibrated verdict out, no TensorFlow."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pneumo_edge.classifier import Classifier, Prediction

__all__ = ["Classifier", "Prediction", "__version__"]

__version__ = "0.1.0"

# ONNX Runtime's Linux wheel keeps telemetry in the user's home, 2.9 MB of it after a while, and knows a place to send
# it to. A tool for films of patients does neither. ONNX Runtime reads this when it is imported: after pneumo_edge.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Imports NumPy and Pillow when `Classifier` is first asked for: `pneumo-infer --help` needs neither."""
    if name in {"Classifier", "Prediction"}:
        from pneumo_edge import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
