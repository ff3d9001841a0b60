"""onnxruntime for tests: one thread, as more of them spin on the cores that do the rest."""

import onnxruntime


def session(model):
    """Of a path or of a file's content."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
