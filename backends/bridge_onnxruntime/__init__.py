"""ONNX Runtime as a backend: ONNX and ORT files on CPUs and NVIDIA GPUs."""
