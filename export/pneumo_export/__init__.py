"""From a training run to a bundle of ONNX and TFLite files that passed the gate."""
