"""Parley's own operators for ONNX Runtime on CPUs, in C: products with 8-bit blocks, and attention."""
