"""What a user has, in small: a network, its LightningModule, a Trainer; and outside counts of what comes of it."""

import numpy as np
import onnx
import sessions
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchmetrics.classification import MulticlassAccuracy


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


READERS = {"0": "net.3.weight", "3": "net.7.weight", "7": "net.11.weight"}
WRITERS = {"0": ["net.0", "net.1"], "3": ["net.3", "net.4"], "7": ["net.7"]}


def cut_by_hand(tensors, removed):
    """The convolutions of ``small_net`` lose output channels, their norms the same, their readers inputs.

    ``tensors`` are parameters, buffers or an optimizer's state, by the parameter's name; replaced in the dict.
    """
    for group, channels in removed.items():
        for name, t in tensors.items():
            if name.rpartition(".")[0] in WRITERS[group] and t.dim():
                tensors[name] = t[[c for c in range(len(t)) if c not in channels]]
        reader = tensors[READERS[group]]
        tensors[READERS[group]] = reader[:, [c for c in range(reader.shape[1]) if c not in channels]]


class Classifier(LightningModule):
    """What a user has: nothing in here knows of pruning."""

    def __init__(self, lr=3e-3, optimizer="adamw"):
        super().__init__()
        self.save_hyperparameters()
        self.net = small_net()
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.accuracy(self.net(x), y)
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self):
        if self.hparams.optimizer == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)]


class Scripted(Classifier):
    """A classifier whose validation reports given scores, one per validation run; the last one repeats.

    ``int8`` are those reported while an engine stands in for the network.
    """

    def __init__(self, scores, int8=(), **kwargs):
        super().__init__(**kwargs)
        self.scores, self.int8 = list(scores), list(int8)

    def on_validation_epoch_start(self):
        if self._trainer.sanity_checking:
            self.current = 0.0
            return
        queue = self.int8 if "forward" in self.net.__dict__ else self.scores
        self.current = queue.pop(0) if len(queue) > 1 else queue[0]

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])
        self.log("val_acc", torch.tensor(self.current, dtype=torch.float64))


def quiet_trainer(folder, max_epochs, callbacks, **kwargs):
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }
    return Trainer(max_epochs=max_epochs, callbacks=callbacks, **{**settings, **kwargs})


def accuracy_by_hand(path, x, y):
    """onnxruntime and numpy only."""
    session = sessions.session(path)
    logits = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return float((logits.argmax(1) == y.numpy()).mean())


def macs_of(path):
    """MACs of an ONNX file's Conv and Gemm nodes from its inferred shapes, an independent count."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*model.graph.value_info, *model.graph.output, *model.graph.input]
    }
    weights = {i.name: list(i.dims) for i in model.graph.initializer}
    sources = {
        n.output[0]: n.input[0]
        for n in model.graph.node
        if n.op_type.endswith("quantizeLinear") or "Dequant" in n.op_type
    }
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            name = node.input[1]
            while name not in weights:
                name = sources[name]
            total += np.prod(shapes[node.output[0]][1:]) * np.prod(weights[name][1:])
    return float(total)
