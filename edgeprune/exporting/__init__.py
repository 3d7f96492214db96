"""From a captured model to an ONNX file that has been checked."""
