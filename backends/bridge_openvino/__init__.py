"""The OpenVINO backend: ONNX, OpenVINO IR, SavedModel, TensorFlow Lite, ExportedProgram.

``float32`` is computed in float32 unless an option says otherwise; OpenVINO's own default
on CPUs with bfloat16 instructions is bfloat16. 64-bit integers are a limit of the
runtime: it computes them in 32 bits, so inputs that do not fit are refused.
"""
