"""The TensorRT backend: ONNX models and serialized engines, on NVIDIA GPUs.

It serves the modules ``tensorrt`` (releases 10 and 11) and ``tensorrt_rtx``, which share
one API. ``tensorrt_rtx`` parses ONNX and builds engines on machines without a GPU;
running one needs a GPU. ``float32`` is computed in float32: networks are strongly typed
and TF32 is off unless an option asks for it.

Verified so far: parsing and building with tensorrt_rtx 1.7.1, without a GPU; that every
name used exists in those bindings, and those of tensorrt in its bindings 10.0.1 and
11.4.0; the order of calls, against a stand-in for the GPU; DLPack, against numpy and
torch on the CPU. Not verified: anything on a real GPU, refittable engines, and anything
that tensorrt itself builds. ``docs/verified-hardware.md`` says what was run since.
"""
