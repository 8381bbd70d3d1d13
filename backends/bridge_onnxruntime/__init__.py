"""The ONNX Runtime backend: ONNX models and ORT files, on CPUs and NVIDIA GPUs.

Outputs of ONNX Runtime own their memory and never share it with inputs or weights
(tried with outputs that are inputs, initializers or reshaped inputs), so none is copied.
"""
