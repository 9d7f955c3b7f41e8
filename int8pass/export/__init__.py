"""From a model to files: ONNX for ONNX Runtime and TensorRT. onnx and onnxscript are imported on use."""
