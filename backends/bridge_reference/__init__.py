"""The reference backend: ONNX's own evaluator, which follows the standard in numpy.

Slow, and independent of every runtime: what it computes is what the standard says, up to
rounding in float32.
"""
