#!/usr/bin/env bash
# An array of one number that onnxruntime returned keeps all memory of its session, for as long as the array lives.
#
# One would guess: InferenceSession.run returns NumPy arrays of their own; with `del session` its memory is free.
# What happens: the array is a view of a buffer in the session's arena, which lives as long as any such view does, and the
#   arena holds what the largest call needed, activations of the whole network for the whole batch. A list of logits of
#   a few kilobytes holds hundreds of megabytes of a session that is long gone. A copy of each array frees them.
# Why it matters: calibration and comparison keep logits of several files side by side; memory grows with each of them,
#   and nothing that looks at Python objects shows it.
#
# Honours an active interpreter with these versions, or makes one. Linux. Exits with 1 if the memory is given back.
set -euo pipefail
versions="onnxruntime==1.32.0 onnx==1.21.0 numpy==2.4.6"
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python=python3
if ! $python -c "import onnx, onnxruntime; assert onnxruntime.__version__ == '1.32.0'" 2>/dev/null; then
    python3 -m venv "$folder/venv"; python="$folder/venv/bin/python"; $python -m pip install -q $versions
fi
cat > "$folder/hold.py" <<'PYTHON'
import gc, sys
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper

nodes = [helper.make_node("Exp", ["x" if k == 0 else f"t{k}"], [f"t{k + 1}"]) for k in range(2)]
nodes.append(helper.make_node("ReduceMean", ["t2"], ["y"], axes=[1], keepdims=0))
graph = helper.make_graph(
    nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 20_000_000])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

def megabytes():
    gc.collect()
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) // 1024

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
before = megabytes()
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
(y,) = session.run(None, {"x": np.zeros((1, 20_000_000), np.float32)})
del session
held = megabytes() - before
y = y.copy()
print(f"onnxruntime {onnxruntime.__version__}: {y.nbytes} bytes of output hold {held} MB of a deleted session; a copy {megabytes() - before} MB")
sys.exit(0 if held > 70 and megabytes() - before < 30 else 1)
PYTHON
$python "$folder/hold.py"
