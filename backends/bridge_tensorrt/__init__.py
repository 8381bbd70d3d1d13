"""The TensorRT backend: ONNX models and serialized engines, on NVIDIA GPUs.

It serves the modules ``tensorrt`` (releases 10 and 11) and ``tensorrt_rtx``, which share
one API. ``tensorrt_rtx`` parses ONNX and builds engines on machines without a GPU;
running one needs a GPU. ``float32`` is computed in float32: networks are strongly typed
and TF32 is off unless an option asks for it.
"""
