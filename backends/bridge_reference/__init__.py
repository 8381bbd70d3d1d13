"""ONNX's own reference evaluator as a backend: slow, independent of every runtime."""
