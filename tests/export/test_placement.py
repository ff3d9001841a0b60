"""Where the quantizers stand in six real networks, against torch.fx's graph of the same module."""

import operator

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import numpy_helper
from torch import fx, nn
from torchvision.ops import SqueezeExcitation

from hqp_lightning.export import Range, export_onnx, quantize, quantized_tensors

NAMES = ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "densenet121", "mobilenet_v2")
SIZE = 64
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
POOL_FUNCTIONS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")


def expected(module):
    """Readers of quantized tensors by kind, and how many different tensors they read, from torch's own graph."""
    graph, modules = fx.symbolic_trace(module.eval()).graph, dict(module.named_modules())
    squeezes = {f"{n}.avgpool" for n, m in modules.items() if isinstance(m, SqueezeExcitation)}
    readers = {"conv": set(), "depthwise": set(), "linear": set(), "pool": 0, "add": 0}
    tensors, depth, batchnorms = set(), {}, 0

    def source(node):
        """The node that computes what this one only passes on; a BatchNorm that can be folded is its convolution."""
        while node.args:
            layer = modules.get(node.target) if node.op == "call_module" else None
            passes = isinstance(layer, (nn.Dropout, nn.Identity)) or "stochastic_depth" in str(node.target)
            if not passes and not (isinstance(layer, nn.BatchNorm2d) and folded(node)):
                return node
            node = node.args[0]
        return node

    def folded(node):
        return isinstance(modules.get(node.args[0].target), nn.Conv2d)

    for node in graph.nodes:
        depth[node] = 1 + max((depth[k] for k in node.all_input_nodes), default=0)
        layer = modules.get(node.target) if node.op == "call_module" else None
        read = None
        if isinstance(layer, nn.Conv2d):
            read = node.args[0]
            readers["depthwise" if layer.groups == layer.in_channels else "conv"].add(node.target)
        elif isinstance(layer, nn.Linear):
            read = node.args[0]
            readers["linear"].add(node.target)
        elif isinstance(layer, nn.BatchNorm2d):
            batchnorms += not folded(node)
        elif (isinstance(layer, POOLS) and node.target not in squeezes) or (
            node.op == "call_function" and getattr(node.target, "__name__", "") in POOL_FUNCTIONS
        ):
            read = node.args[0]
            readers["pool"] += 1
        elif node.target in (operator.add, operator.iadd, torch.add):
            read = min(node.args, key=depth.get)
            readers["add"] += 1
        if read is not None:
            tensors.add(source(read))
    return readers, len(tensors), batchnorms


def module_path(node_name):
    """``/features/features.1/block/block.0/Conv`` is what the exporter makes of ``features.1.block.0``."""
    path, last = [], None
    for part in node_name.strip("/").split("/")[:-1]:
        if last is not None and part.startswith(f"{last}."):
            path.append(part.removeprefix(f"{last}."))
        else:
            path.append(part)
        last = part
    return ".".join(path)


def found(model):
    """The same from the Q/DQ file: who reads a dequantized activation."""
    graph = model.graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    producer = {o: n for n in graph.node for o in n.output}
    activations = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in stored}
    readers = {"conv": set(), "depthwise": set(), "linear": set(), "pool": 0, "add": 0}
    for node in graph.node:
        reads = [k for k in node.input if k in activations]
        if node.op_type in ("Conv", "Gemm"):
            weight = producer[node.input[1]]
            integers, scale, zero = (stored[k] for k in weight.input)
            assert reads == [node.input[0]]
            assert integers.dtype == np.int8
            assert scale.shape == zero.shape == integers.shape[:1]
            assert not zero.any()
            assert all(stored[k].dtype == np.float32 for k in node.input[2:])  # the bias
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            kind = "linear" if node.op_type == "Gemm" else "depthwise" if 1 < group == len(integers) else "conv"
            readers[kind].add(module_path(node.name))
        elif node.op_type == "Add":
            assert len(reads) == 1
            readers["add"] += 1
        elif "Pool" in node.op_type and reads:
            readers["pool"] += 1
        else:
            assert not reads, f"{node.op_type} {node.name} reads a quantized tensor"
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert stored[node.input[1]].shape == ()
            assert stored[node.input[2]] == np.int8(0)
    assert graph.output[0].name not in activations
    return readers, len(activations), [n.op_type for n in graph.node].count("BatchNormalization")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Module and float file of a network, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            module = getattr(torchvision.models, name)(num_classes=10)
            path = tmp_path_factory.mktemp("placement") / f"{name}.onnx"
            export_onnx(module, torch.zeros(1, 3, SIZE, SIZE), path)
            made[name] = module, path
        return made[name]

    return get


def _quantized(path, target, **options):
    ranges = dict.fromkeys(quantized_tensors(path, **options), Range.symmetric(1.0))
    return onnx.load(quantize(path, ranges, target, **options).path)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("resnet18", "mobilenet_v3_small") else pytest.mark.slow) for n in NAMES]
)
def test_readers_of_quantized_tensors(name, exported, tmp_path):
    module, path = exported(name)
    model = _quantized(path, tmp_path / "int8.onnx")
    assert found(model) == expected(module)
    assert (model.ir_version, [o.version for o in model.opset_import]) == (8, [17])


def _reading(model, op_type):
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return [[k in dequantized for k in n.input] for n in model.graph.node if n.op_type == op_type]


def test_hardswish_on_request(exported, tmp_path):
    module, path = exported("mobilenet_v3_small")
    model = _quantized(path, tmp_path / "int8.onnx", quantize_hardswish=True)
    activations = sum(isinstance(m, nn.Hardswish) for m in module.modules())
    assert _reading(model, "HardSwish") == [[True]] * activations
    assert not any(map(any, _reading(model, "Mul")))


def test_squeeze_excite_on_request(exported, tmp_path):
    module, path = exported("mobilenet_v3_small")
    model = _quantized(path, tmp_path / "int8.onnx", quantize_se=True)
    blocks = sum(isinstance(m, SqueezeExcitation) for m in module.modules())
    assert _reading(model, "Mul") == [[True, True]] * blocks
    assert _reading(model, "GlobalAveragePool") == [[True]] * (blocks + 1)  # and the one before the head
    assert not any(map(any, _reading(model, "HardSwish")))
