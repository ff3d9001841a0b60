#!/usr/bin/env bash
# A network in evaluation mode is exported with a BatchNormalization in training mode, which TensorRT does not read.
#
# One would guess: model.eval() and torch.onnx.export give a file in which nothing is in training mode. The weights of a
#   weight-standardised convolution (BiT, ResNet-V2, NFNets, the hybrid vision transformers of timm) depend on its
#   parameters alone, so that they are folded into constants, as do_constant_folding says.
# What happens: timm standardises a filter with F.batch_norm(..., training=True). The TorchScript exporter keeps it:
#   a BatchNormalization with training_mode=1 and three outputs computes the weights in every call. onnx's checker and
#   onnxruntime take the file. The parser of TensorRT for RTX refuses it ("does not support training_mode == 1").
#   The exporter with dynamo=True folds it, and the same parser reads that file.
# Why it matters: files for TensorRT 8 need opset 17 or less, which only the old exporter writes; and quantizers find
#   no stored weight there, so that whole families of networks silently stay in float.
#
# Honours an active interpreter with these versions, or makes one. Exits with 1 if any of it changes.
set -euo pipefail
versions="torch==2.14.1 timm==1.0.31 onnx==1.21.0 onnxruntime==1.32.0 onnxscript==0.7.2 tensorrt-rtx==1.7.1.116"
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python=python3
if ! $python -c "import torch, timm, onnxruntime, onnxscript, tensorrt_rtx as t; assert t.__version__ == '1.7.1.116'" 2>/dev/null; then
    python3 -m venv "$folder/venv"; python="$folder/venv/bin/python"; $python -m pip install -q $versions
fi
cat > "$folder/export.py" <<'PYTHON'
import io, sys, warnings
import onnx, onnxruntime, tensorrt_rtx, timm, torch
from timm.layers import StdConv2d

warnings.simplefilter("ignore")
torch.manual_seed(0)
network, x = torch.nn.Sequential(StdConv2d(3, 16, 3, padding=1), torch.nn.ReLU()).eval(), torch.randn(1, 3, 32, 32)
logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR)
print(f"torch {torch.__version__}, timm {timm.__version__}, onnx {onnx.__version__}, tensorrt-rtx {tensorrt_rtx.__version__}")

def look(name, model):
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    error = abs(session.run(None, {model.graph.input[0].name: x.numpy()})[0] - network(x).detach().numpy()).max()
    modes = [a.i for n in model.graph.node if n.op_type == "BatchNormalization" for a in n.attribute if a.name == "training_mode"]
    builder = tensorrt_rtx.Builder(logger)
    target = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(target, logger)
    read = parser.parse(content)
    said = parser.get_error(0).desc() if parser.num_errors else ""
    print(f"{name}: training_mode {modes}, onnxruntime differs by {error:.0e}, TensorRT for RTX reads it: {read} {said}")
    return modes, bool(error < 1e-3), read

file = io.BytesIO()
torch.onnx.export(network, (x,), file, dynamo=False, opset_version=17, do_constant_folding=True)
old = look("dynamo=False", onnx.load_from_string(file.getvalue()))
new = look("dynamo=True", torch.onnx.export(network, (x,), dynamo=True, verbose=False).model_proto)
sys.exit(0 if old == ([1], True, False) and new == ([], True, True) else 1)
PYTHON
$python "$folder/export.py" 2>/dev/null
