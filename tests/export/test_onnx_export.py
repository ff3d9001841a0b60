"""ONNX export against torch's own outputs, and what it must leave untouched."""

import warnings

import numpy as np
import onnx
import pytest
import sessions
import torch
import torchvision
from torch import nn

from hqp_lightning.errors import ExportError
from hqp_lightning.export import describe, export_onnx
from hqp_lightning.records import ModelTensor


def _randomised(model):
    """Non-trivial BatchNorm statistics, so that folding can go wrong."""
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(m.num_features, generator=generator) * 0.1)
            m.running_var.copy_(torch.rand(m.num_features, generator=generator) + 0.5)
            m.bias.data.copy_(torch.randn(m.num_features, generator=generator) * 0.1)
    return model


def _run(path, batch):
    session = sessions.session(path)
    return session.run(["logits"], {"input": batch.numpy()})[0]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_equals_torch_for_any_batch_size(name, tmp_path):
    model = _randomised(getattr(torchvision.models, name)(num_classes=10)).eval()
    artifact = export_onnx(model, torch.randn(2, 3, 64, 64), tmp_path / "deep" / "model.onnx")
    batch = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        expected = model(batch).numpy()
    np.testing.assert_allclose(_run(artifact.path, batch), expected, atol=1e-4)


def test_products_that_the_user_has_in_bfloat16_are_no_reason_to_refuse_a_file(tmp_path):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # what Lightning recommends; CPUs with AMX obey, too
        export_onnx(
            nn.Sequential(nn.Flatten(), nn.Linear(768, 512), nn.Linear(512, 10)), torch.randn(1, 768), tmp_path / "m"
        )
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_file_is_what_the_oldest_target_reads(tmp_path):
    model = _randomised(torchvision.models.mobilenet_v3_small(num_classes=10))
    artifact = export_onnx(model, torch.randn(1, 3, 64, 64), tmp_path / "model.onnx")
    loaded = onnx.load(artifact.path, load_external_data=False)
    assert loaded.ir_version == 8
    assert [(o.domain, o.version) for o in loaded.opset_import] == [("", 17)]
    assert {"BatchNormalization", "Identity"}.isdisjoint(n.op_type for n in loaded.graph.node)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert loaded.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert artifact.inputs == (ModelTensor("input", (3, 64, 64)),)
    assert artifact.outputs == (ModelTensor("logits", (10,)),)
    assert artifact.opset == 17
    assert artifact.file_bytes == (tmp_path / "model.onnx").stat().st_size
    assert describe(artifact.path) == artifact


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_leaves_the_module_as_it_was_in_any_context(context, tmp_path):
    model = torchvision.models.resnet18(num_classes=4).train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    with context():
        export_onnx(model, torch.randn(2, 3, 32, 32), tmp_path / "model.onnx")
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_peoples_warnings_stay_visible(tmp_path):
    class Warns(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            warnings.warn("mine", DeprecationWarning, stacklevel=1)
            return self.fc(x)

    with pytest.warns(DeprecationWarning, match="mine"):
        export_onnx(Warns(), torch.randn(1, 4), tmp_path / "model.onnx")


class _Two(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class _FrozenBatch(nn.Linear):
    def forward(self, x):
        return super().forward(x) + float(x.abs().sum())


def test_clear_errors(tmp_path):
    x = torch.randn(2, 4)
    with pytest.raises(ExportError, match="returned tuple, expected one tensor"):
        export_onnx(_Two(4, 2), x, tmp_path / "a.onnx")
    with (
        pytest.warns(torch.jit.TracerWarning),
        pytest.raises(ExportError, match="computes something else"),
    ):
        export_onnx(_FrozenBatch(4, 2), x, tmp_path / "b.onnx")
    with pytest.raises(ExportError, match=r"float16.*\.float\(\)"):
        export_onnx(nn.Linear(4, 2).half(), x, tmp_path / "c.onnx")
    with pytest.raises(ExportError, match="could not export Linear") as caught:
        export_onnx(nn.Linear(3, 2), x, tmp_path / "d.onnx")
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ExportError, match="no ONNX file at"):
        describe(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ExportError, match="not a readable ONNX file"):
        describe(tmp_path / "text.onnx")
