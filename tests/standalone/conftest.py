import numpy as np
import onnx
import pytest
import torch
from classifier import small_net

from hqp_lightning.export import export_onnx


@pytest.fixture(scope="session")
def network(digits):
    """A classifier of digits that somebody trained, a little."""
    x, y = digits
    torch.manual_seed(0)
    net = small_net()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for k in [*range(0, 1152, 64)] * 2:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[k : k + 64]), y[k : k + 64]).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def own_file(network, tmp_path_factory):
    """As this package's export writes it."""
    path = tmp_path_factory.mktemp("own") / "model.onnx"
    export_onnx(network, torch.zeros(1, 1, 8, 8), path)
    return path


@pytest.fixture(scope="session")
def dynamo_file(network, tmp_path_factory):
    """As torch's newer exporter writes it, without its optimizer: a batch of two, BatchNormalization as it is."""
    path = tmp_path_factory.mktemp("dynamo") / "model.onnx"
    # Registered, so that warnings of torch's own deprecations in there are no errors of ours.
    with pytest.MonkeyPatch.context() as patched:
        import warnings

        patched.setattr(warnings, "warn", lambda *args, **kwargs: None)
        program = torch.onnx.export(
            network, (torch.zeros(2, 1, 8, 8),), dynamo=True, optimize=False, opset_version=20, verbose=False
        )
    program.save(path)
    assert "BatchNormalization" in {n.op_type for n in onnx.load(path).graph.node}
    return path


@pytest.fixture(scope="session")
def pictures(digits, tmp_path_factory):
    """200 digits with labels, as the network takes them."""
    x, y = digits
    path = tmp_path_factory.mktemp("pictures") / "digits.npz"
    np.savez(path, images=x[1200:1400].numpy(), labels=y[1200:1400].numpy())
    return path
