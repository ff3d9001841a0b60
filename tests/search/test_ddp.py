"""Two processes on a CPU (gloo): the same steps on every rank, and the result of one process."""

import os
from datetime import timedelta
from functools import partial

import pytest
import torch
from classifier import Classifier, Scripted, accuracy_by_hand
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from processes import exit_codes
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from hqp_lightning import HQPPruning, Int8Export
from hqp_lightning.search import batchnorm
from hqp_lightning.surgery import record

pytestmark = pytest.mark.filterwarnings(
    "ignore:It is recommended to use `self.log.*sync_dist=True:UserWarning",
    "ignore:.*recommended to use a single device:UserWarning",
)


def on_two_ranks(work):
    """Call ``work()`` on two ranks, as ``torchrun`` or SLURM would."""
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
    }
    assert exit_codes(work, [{**common, "LOCAL_RANK": rank} for rank in "01"]) == [0, 0]


class Diary(Callback):
    """Writes what every rank holds: at every epoch start after the pruning, and in the end."""

    def __init__(self, folder):
        self.folder, self.pages = folder, []

    def page(self, trainer, pl_module):
        (optimizer,), names = trainer.optimizers, {id(p): n for n, p in pl_module.named_parameters()}
        state = {f"{names[id(p)]}/{k}": v for p, s in optimizer.state.items() for k, v in s.items() if v is not None}
        self.pages.append({n: t.detach().clone() for n, t in {**pl_module.state_dict(), **state}.items()})

    on_train_epoch_start = on_train_end = page

    def on_fit_end(self, trainer, pl_module):
        pruning = next(c for c in trainer.callbacks if isinstance(c, HQPPruning))
        left = {
            "pages": [*self.pages, {n: t.clone() for n, t in pl_module.state_dict().items()}],
            "structure": record(pl_module).to_plain(),
            "records": [[r.outcome, r.channels_removed, r.macs, r.accuracy, r.reason] for r in pruning.records],
            "predicted": [r.predicted_loss_increase for r in pruning.records],
            "removed": [list(r.items()) for r in pruning.state.rejected],
            "saliency": pruning.state.saliency,
        }
        torch.save(left, self.folder / f"rank{trainer.global_rank}.pt")


def shared_out(loader, rank):
    return DataLoader(
        loader.dataset, loader.batch_size, sampler=DistributedSampler(loader.dataset, 2, rank, shuffle=False)
    )


def fit(make_trainer, epochs, callbacks, model, loaders, distributed, prepare, settings, kwargs):
    """What every rank does; ``prepare()`` comes first."""
    if prepare:
        prepare()
    if distributed:
        settings = {**settings, "strategy": DDPStrategy(timeout=timedelta(seconds=60)), "devices": 2}
    if not settings.get("use_distributed_sampler", True):  # Lightning's own sampler always shuffles the training
        loaders = [shared_out(loader, int(os.environ["LOCAL_RANK"])) for loader in loaders]
    make_trainer(epochs, callbacks, **settings).fit(model, *loaders, **kwargs)


def run(
    make_trainer,
    folder,
    model,
    loaders,
    pruning,
    *others,
    epochs,
    distributed=True,
    in_order=False,
    prepare=None,
    settings=None,
    **kwargs,
):
    """Fit; returns what each rank wrote."""
    folder.mkdir(exist_ok=True)
    settings = {"enable_checkpointing": bool(others), **(settings or {})}
    if distributed and in_order:
        settings["use_distributed_sampler"] = False
    callbacks = [pruning, *others, Diary(folder)]
    work = partial(fit, make_trainer, epochs, callbacks, model, loaders, distributed, prepare, settings, kwargs)
    if distributed:
        on_two_ranks(work)
    else:
        work()
    return [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(2 if distributed else 1)]


def assert_close(a, b, **tolerance):
    assert a["structure"] == b["structure"]
    for one, two in zip(a["pages"], b["pages"], strict=True):
        assert list(one) == list(two)
        for name in one:
            torch.testing.assert_close(one[name], two[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in a["saliency"].items():
        torch.testing.assert_close(value, b["saliency"][name], **tolerance)


def assert_equal_ranks(ranks):
    assert_close(*ranks, rtol=0, atol=0)
    assert ranks[0]["records"] == ranks[1]["records"]
    assert ranks[0]["removed"] == ranks[1]["removed"]


def without_batchnorm(model):
    """Under DDP the statistics of a batch are those of a rank's half of it, so that no BatchNorm can agree exactly."""
    torch.manual_seed(0)
    model.net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return model


def batched(digits, size, train=151, validation=91, padded=0):
    """Loaders whose last batches are smaller; ``padded`` repeats the first samples as DistributedSampler does."""
    x, y = digits

    def loader(start, count):
        rows = [*range(start, start + count), *range(start, start + padded)]
        return DataLoader(TensorDataset(x[rows], y[rows]), size)

    return loader(0, train), loader(1200, validation)


def test_two_processes_give_the_result_of_one_through_prune_roll_back_prune(digits, make_trainer, tmp_path):
    scores = [0.9, 0.89, 0.5, 0.885]

    def model():
        return without_batchnorm(Scripted(scores, lr=0.05, optimizer="sgd"))

    def pruning():
        return HQPPruning("val_acc", 0.02, step=0.2, min_step=0.05, compensate=False)

    # Rank r of a batch of 16 takes every second sample of the batch of 32, and both ranks of the last batch 12.
    ranks = run(make_trainer, tmp_path / "two", model(), batched(digits, 16), pruning(), epochs=3, in_order=True)
    one = batched(digits, 32, padded=1)
    (single,) = run(make_trainer, tmp_path / "one", model(), one, pruning(), epochs=3, distributed=False)
    assert [r[0] for r in single["records"]] == ["kept", "rolled_back", "kept"]
    assert_equal_ranks(ranks)
    assert ranks[0]["records"] == single["records"]
    assert ranks[0]["predicted"] == pytest.approx(single["predicted"], rel=1e-4)
    assert_close(ranks[0], single, rtol=1e-5, atol=1e-6)


def test_two_processes_compensate_as_one_does(digits, make_trainer, tmp_path):
    """The first page: right after the step. A regression in float32 agrees less closely than what is only cut."""
    folders = {"two": batched(digits, 16), "one": batched(digits, 32, padded=1)}
    two, one, plain = [
        run(make_trainer, tmp_path / folder, without_batchnorm(Scripted([0.9], lr=0.05, optimizer="sgd")), loaders,
            HQPPruning("val_acc", 0.02, step=0.25, compensate=compensate), epochs=1, distributed=folder == "two",
            in_order=True)
        for folder, compensate in (("two", True), ("one", True), ("one", False))
        for loaders in (folders[folder],)
    ]  # fmt: skip
    assert_equal_ranks(two)
    first, second, cut = (ranks[0]["pages"][0] for ranks in (two, one, plain))
    changed = {n for n, t in second.items() if not torch.equal(t, cut[n])}
    assert "net.2.weight" in changed
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-3 if name in changed else 0)
    assert (second["net.2.weight"] - cut["net.2.weight"]).abs().max() > 0.03


class Sum(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    backward = forward


def synchronised_on_a_cpu(self, x):
    """The forward of SyncBatchNorm, which torch has for GPUs only: batch statistics over all the ranks."""
    if not self.training:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    self.num_batches_tracked += 1
    count = torch.full((1,), x.numel() / x.shape[1])
    count, total = Sum.apply(count), Sum.apply(x.sum((0, 2, 3)))
    mean = (total / count).view(1, -1, 1, 1)
    variance = Sum.apply((x - mean).square().sum((0, 2, 3))) / count
    rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
    with torch.no_grad():
        self.running_mean.lerp_(mean.flatten(), rate)
        self.running_var.lerp_(variance * count / (count - 1), rate)
    normal = (x - mean) / (variance.view(1, -1, 1, 1) + self.eps).sqrt()
    return normal * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def synchronise_on_a_cpu():
    nn.SyncBatchNorm.forward = synchronised_on_a_cpu
    nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None


def test_synchronised_batchnorm_gives_the_result_of_one_process(digits, make_trainer, tmp_path):
    scores = [0.9, 0.89, 0.5, 0.885]

    def once(folder, loaders, **kwargs):
        torch.manual_seed(0)
        pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.05, compensate=False)
        model = Scripted(scores, optimizer="sgd")
        return run(make_trainer, tmp_path / folder, model, loaders, pruning, epochs=3, **kwargs)

    settings = {"sync_batchnorm": True}
    ranks = once("two", batched(digits, 16), in_order=True, settings=settings, prepare=synchronise_on_a_cpu)
    (single,) = once("one", batched(digits, 32, padded=1), distributed=False)
    assert [r[0] for r in single["records"]] == ["kept", "rolled_back", "kept"]
    assert_equal_ranks(ranks)
    assert ranks[0]["records"] == single["records"]
    assert_close(ranks[0], single, rtol=1e-4, atol=1e-5)


class Disagreeing(Scripted):
    """Without ``sync_dist`` every rank logs a value of its own."""

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])
        value = self.current + (0.04 if self.global_rank else -0.04)
        self.log("val_acc", torch.tensor(value, dtype=torch.float64))


def test_ranks_agree_with_batchnorm_and_a_metric_that_is_not_synchronised(digits, make_trainer, tmp_path):
    torch.manual_seed(0)
    model = Disagreeing([0.9, 0.89, 0.5, 0.885])
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.05)
    ranks = run(make_trainer, tmp_path, model, batched(digits, 16), pruning, epochs=3)
    assert [r[0] for r in ranks[0]["records"]] == ["kept", "rolled_back", "kept"]
    assert [r[3] for r in ranks[0]["records"]] == pytest.approx([0.89, 0.5, 0.885])
    for page in range(3):  # at an epoch's end the running statistics are a rank's own, by one batch, as DDP has it
        first, second = (r["pages"][page] for r in ranks)
        assert all(torch.equal(first[n], second[n]) for n in first), page


class Failing(HQPPruning):
    """The surgery fails on the second rank only, after the cut."""

    def on_train_epoch_start(self, trainer, pl_module):
        def fail(*_):
            raise RuntimeError("no memory")

        if trainer.global_rank == 1:
            batchnorm.recalibrate_batchnorm_ = fail
        super().on_train_epoch_start(trainer, pl_module)


def test_a_surgery_that_fails_on_one_rank_is_taken_back_on_all(digits, make_trainer, tmp_path):
    model = Scripted([0.9])
    dense = record(model).to_plain()
    pruning = Failing("val_acc", 0.02, step=0.2, min_step=0.15)
    ranks = run(make_trainer, tmp_path, model, batched(digits, 16), pruning, epochs=1)
    assert [[r[0] for r in rank["records"]] for rank in ranks] == [["refused"], ["refused"]]
    assert "on another rank" in ranks[0]["records"][0][-1]
    assert "no memory" in ranks[1]["records"][0][-1]
    assert [rank["structure"] for rank in ranks] == [dense, dense]


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_distributed_run_equals_the_straight_one(digits, make_trainer, tmp_path):
    def once(folder, **kwargs):
        torch.manual_seed(0)
        checkpoint = ModelCheckpoint(tmp_path / "ckpt", "{epoch}", save_top_k=-1, enable_version_counter=False)
        pruning = HQPPruning("val_acc", 0.3, step=0.2, start_epoch=1)
        model = without_batchnorm(Classifier(lr=0.05, optimizer="sgd"))
        loaders = batched(digits, 16)
        return run(make_trainer, tmp_path / folder, model, loaders, pruning, checkpoint, epochs=4, **kwargs)

    straight = once("straight")
    resumed = once("resumed", ckpt_path=tmp_path / "ckpt" / "epoch=1.ckpt", weights_only=True)
    assert straight[0]["structure"] != record(without_batchnorm(Classifier())).to_plain()
    for a, b in zip(straight, resumed, strict=True):
        assert a["records"] == b["records"]
        a["pages"] = a["pages"][2:]
        assert_close(a, b, rtol=0, atol=0)


class Preparing(Classifier):
    """Prepares data itself, as its datamodule does: Lightning lets all ranks wait for each other there."""

    def prepare_data(self):
        assert self.trainer.callbacks, "once, by the run"


class Prepared(LightningDataModule):
    def __init__(self, loaders):
        super().__init__()
        self.train, self.val = loaders

    def prepare_data(self):
        assert self.trainer.callbacks, "once, by the run"

    def train_dataloader(self):
        return self.train

    def val_dataloader(self):
        return self.val


def test_the_first_rank_exports_and_scores_all_of_the_data_while_the_other_waits(digits, make_trainer, tmp_path):
    deploy = tmp_path / "deploy"
    export = Int8Export(deploy, engines=["onnxruntime"], rtx=(), latency_runs=1, threads=1)
    loaders = batched(digits, 16)
    pruning = HQPPruning("val_acc", 0.3, step=0.2)
    data = Prepared(loaders)
    ranks = run(make_trainer, tmp_path / "two", Preparing(), (), pruning, export, epochs=2, datamodule=data)
    from hqp_lightning.report import read_json

    report = read_json(deploy / "report.json")
    x, y = loaders[1].dataset.tensors
    assert len(y) == 91
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(deploy / "model.int8.onnx", x, y), abs=1e-6)
    assert_close(*(dict(r, pages=r["pages"][-1:]) for r in ranks), rtol=0, atol=0)
    checkpoint = torch.load(deploy / "pruned.ckpt", weights_only=True)
    assert all(torch.equal(t, checkpoint["state_dict"][n]) for n, t in ranks[1]["pages"][-1].items())
