#!/usr/bin/env bash
# TensorRT for RTX does not multiply the joint product of an attention's queries, keys and values in INT8.
#
# One would guess: a MatMul between quantized inputs and quantized weights is a product of int8, whatever reads it. That
#   is so of the same product written as three, each with its third of the weights and of their scales.
# What happens: where it is split behind (Reshape, Transpose, Split, as vision transformers are exported), the
#   compiler carries the split over to the weights, through their DequantizeLinear. A kernel then makes float16 weights
#   of them at every call, another takes the int8 inputs back to float16 and multiplies. No warning, no refusal.
# Why it matters: one of the four linear layers of every block is not INT8, its weights are expanded at every call, eight
#   kernels do the work of five, and the layer report does not name the product. Three MatMul in its place are one kernel.
#
# Needs no GPU. Honours an active interpreter with this version, or makes one. Exits with 1 if the joint one is INT8, too.
set -euo pipefail
versions="numpy onnx==1.21.0 tensorrt-rtx==1.7.1.116"
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python=python3
if ! $python -c "import tensorrt_rtx, onnx; assert tensorrt_rtx.__version__ == '1.7.1.116'" 2>/dev/null; then
    python3 -m venv "$folder/venv"; python="$folder/venv/bin/python"; $python -m pip install -q $versions
fi
$python - <<'PYTHON'
import re
import numpy as np, tensorrt_rtx as trt
from onnx import TensorProto as T, helper as h, numpy_helper as n

TOKENS, WIDTH, HEADS = 17, 64, 2
rng = np.random.default_rng(0)
weight, bias = rng.integers(-127, 128, (WIDTH, 3 * WIDTH), np.int8), rng.normal(size=3 * WIDTH).astype(np.float16)
scale = rng.uniform(0.001, 0.01, 3 * WIDTH).astype(np.float16)


def model(parts):
    """Attention, its projection as one product or as three."""
    stored = [n.from_array(np.float16(0.02), "s"), n.from_array(np.int8(0), "z")]
    nodes = [h.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]), h.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"])]
    for k, columns in enumerate(np.split(np.arange(3 * WIDTH), parts)):
        stored += [n.from_array(v[..., columns], f"{name}{k}") for name, v in (("w", weight), ("t", scale), ("b", bias))]
        nodes += [
            h.make_node("DequantizeLinear", [f"w{k}", f"t{k}"], [f"d{k}"], axis=1),
            h.make_node("MatMul", ["xd", f"d{k}"], [f"m{k}"], f"product{k}"),
            h.make_node("Add", [f"m{k}", f"b{k}"], [f"a{k}"]),
        ]
    nodes.append(h.make_node("Concat", [f"a{k}" for k in range(parts)], ["all"], axis=-1))
    for name, values in (("five", [1, TOKENS, 3, HEADS, WIDTH // HEADS]), ("back", [1, TOKENS, WIDTH]), ("first", [0])):
        stored.append(n.from_array(np.array(values, np.int64), name))
    nodes += [
        h.make_node("Reshape", ["all", "five"], ["r"]), h.make_node("Transpose", ["r"], ["p"], perm=[2, 0, 3, 1, 4]),
        h.make_node("Split", ["p"], ["q1", "k1", "v1"], axis=0, num_outputs=3),
        *(h.make_node("Squeeze", [f"{i}1", "first"], [i]) for i in "qkv"),
        h.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), h.make_node("MatMul", ["q", "kt"], ["qk"]),
        h.make_node("Softmax", ["qk"], ["soft"], axis=-1), h.make_node("MatMul", ["soft", "v"], ["o"]),
        h.make_node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]), h.make_node("Reshape", ["ot", "back"], ["y"]),
    ]
    ends = (h.make_tensor_value_info(name, T.FLOAT16, [1, TOKENS, WIDTH]) for name in "xy")
    graph = h.make_graph(nodes, "attention", *([e] for e in ends), stored)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 19)], ir_version=9).SerializeToString()


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, text):
        self.lines += text.splitlines()


def kernels(parts):
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model(parts)), [parser.get_error(k).desc() for k in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    assert builder.build_serialized_network(network, config) is not None
    return [line for line in log.lines if re.match(r"Name: .*, LayerType: ", line)]


found = {}
for parts in (1, 3):
    made = kernels(parts)
    names = [re.match(r"Name: (.*?), LayerType", line)[1] for line in made]
    found[parts] = any("product" in name for name in names)
    print(f"tensorrt_rtx {trt.__version__}, as {parts}: {len(names)} kernels; a product by name: {found[parts]}; {', '.join(names)}")
raise SystemExit(0 if found[3] and not found[1] else 1)
PYTHON
