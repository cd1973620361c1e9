"""The part of pneumo that runs on the device: film in, calibrated verdict out, no TensorFlow."""

from pneumo_edge.classifier import Classifier, Prediction

__all__ = ["Classifier", "Prediction", "__version__"]

__version__ = "0.1.0"
