"""Commands for ONNX files that somebody already has: ``hqp-int8`` and ``hqp-debug``. No torch, no training code."""
