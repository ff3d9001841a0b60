#!/usr/bin/env bash
# OpenVINO: start_async() and wait() are not infer() in two halves.
#
# One would guess: with one inference thread and one request, `request.start_async(); request.wait()` does what
# `request.infer()` does, and takes as long; people write the former to be ready for more requests, and time it.
#
# What happens: infer() computes in the thread that calls it. start_async() hands the call to a thread of the runtime
# and wait() sleeps until that one has woken the caller, every time: two switches, and on two cores also colder caches.
# The result is the same; of a network whose call takes a third of a millisecond it is a fifth of the time.
#
# Why it matters: the fixed cost is the same for the dense float network and for its pruned INT8 form, so that a
# comparison of small networks by start_async() understates what the small one won.
#
# What is checked is who computes: the share of the process's processor time that the calling thread spends itself,
# and that both give the same numbers. The times that are printed are for the reader.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet "openvino==2026.4.1" "numpy==2.4.6"

"$folder/v/bin/python" - <<'PYTHON'
import statistics
import time

import numpy as np
import openvino as ov
from openvino import opset13 as ops

rng = np.random.default_rng(0)
x = entry = ops.parameter([1, 16, 32, 32], np.float32, name="input")
for _ in range(12):
    weight = ops.constant(rng.normal(size=(16, 16, 3, 3)).astype(np.float32) / 12)
    x = ops.relu(ops.convolution(x, weight, [1, 1], [1, 1], [1, 1], [1, 1]))
options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
request = ov.Core().compile_model(ov.Model([x], [entry]), "CPU", options).create_infer_request()
request.set_input_tensor(0, ov.Tensor(rng.normal(size=(1, 16, 32, 32)).astype(np.float32)))


def in_one():
    request.infer(share_outputs=True)


def in_two():
    request.start_async()
    request.wait()


def measured(call):
    """The caller's share of the processor time of the process, milliseconds of a call, and what came out."""
    for _ in range(50):
        call()
    own, whole, walls = time.thread_time(), time.process_time(), []
    for _ in range(1000):
        start = time.perf_counter()
        call()
        walls.append(time.perf_counter() - start)
    share = (time.thread_time() - own) / (time.process_time() - whole)
    return share, 1e3 * statistics.median(walls), request.get_output_tensor(0).data.copy()


print(f"openvino {ov.__version__}")
(one, one_ms, a), (two, two_ms, b) = measured(in_one), measured(in_two)
print(f"infer():               {one:4.0%} of the processor time in the calling thread, {one_ms:.3f} ms a call")
print(f"start_async(), wait(): {two:4.0%} of the processor time in the calling thread, {two_ms:.3f} ms a call")
assert np.array_equal(a, b), "both compute the same"
assert one > 0.9, "infer() computes in the calling thread"
assert two < 0.5, "start_async() and wait() compute in another one"
print("as described")
PYTHON
