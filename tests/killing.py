"""A run that is killed, and started again from its newest file: ``python tests/killing.py 100`` kills at 100 moments.

Every run prunes and exports a small network. One that is killed at a random moment, by SIGKILL and SIGTERM in turn,
goes on from its newest checkpoint in a new process; in the end it has to be the run that nobody killed, bit for bit.
"""

import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from classifier import Classifier, quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import PRELOAD, context
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning, Int8Export, load_pruned
from hqp_lightning.report import read_json

EXPORT = {"engines": ["onnxruntime"], "rtx": (), "calibration_batches": 1, "latency_runs": 1, "threads": 1}
IMPORTED = ("torch._dynamo", "torch.onnx", "onnxruntime", "torch_pruning", "matplotlib.figure", "sklearn.datasets")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def run(folder):
    """Train, prune and export in a folder, from its newest checkpoint if there is one; notes begin and end."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    (folder / "began").write_text(str(time.time()))
    data = load_digits()
    x, y = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)
    torch.manual_seed(0)
    checkpoint = ModelCheckpoint(folder, save_last=True, enable_version_counter=False)
    export = Int8Export(folder / "deploy", **EXPORT)
    trainer = quiet_trainer(
        folder, 3, [checkpoint, HQPPruning("val_acc", 0.9, step=0.2), export], enable_checkpointing=True
    )
    newest = max(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, default=None)
    train = DataLoader(TensorDataset(x[:192], y[:192]), 64)
    trainer.fit(Classifier(), train, DataLoader(TensorDataset(x[1200:1300], y[1200:1300]), 50), ckpt_path=newest)
    (folder / "ended").write_text(str(time.time()))


def start(folder):
    """`run` in a process of its own; returns it when the run has begun."""
    (folder / "began").unlink(missing_ok=True)
    process = context.Process(target=_quietly, args=(pickle.dumps(folder),))
    process.start()
    while process.is_alive() and not (folder / "began").is_file():
        time.sleep(0.001)
    return process


def killed(folder, delay, number):
    """Start a run and kill it after so many seconds; whether that kept it from its end."""
    (folder / "ended").unlink(missing_ok=True)
    process = start(folder)
    process.join(delay)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(60)
    check_whole(folder)
    return not (folder / "ended").is_file()  # Lightning answers SIGTERM, and leaves with 0


def check_whole(folder):
    """Whatever has its final name can be read."""
    deploy = folder / "deploy"
    for path in (*folder.glob("*.ckpt"), *deploy.glob("*.ckpt")):
        torch.load(path, weights_only=True)
    report = deploy / "report.json"
    if report.is_file() and "was stopped" not in json.loads(report.read_text()).get("failed", ""):
        read_json(report)


def length(folder):
    """Seconds that the run took which ended there."""
    return float((folder / "ended").read_text()) - float((folder / "began").read_text())


def result(folder):
    """What a run that ended leaves, without times."""
    assert (folder / "ended").is_file(), sorted(p.name for p in folder.iterdir())
    report = read_json(folder / "deploy" / "report.json")
    steps = [(s.outcome, s.epoch, s.macs, s.accuracy, s.reason) for s in report.steps]
    int8 = (folder / "deploy" / "model.int8.onnx").read_bytes()
    return load_pruned(Classifier, folder / "deploy" / "pruned.ckpt").state_dict(), steps, report.int8, int8


def same(a, b):
    """Whether two results are equal, bit for bit."""
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(t, b[0][n]) for n, t in a[0].items())


def _quietly(content):
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        run(pickle.loads(content))


def main(moments, seed):
    """Kill so many runs, each once, before their end; prints how many came out as the run that nobody killed."""
    context.set_forkserver_preload([*PRELOAD, *IMPORTED, "settled"])
    chance, hit, tried, equal, failures = random.Random(seed), dict.fromkeys(SIGNALS, 0), 0, 0, []
    with tempfile.TemporaryDirectory() as root:
        straight = Path(root) / "straight"
        for _ in range(2):  # the first one waits for the imports of the server
            shutil.rmtree(straight, ignore_errors=True)
            straight.mkdir()
            start(straight).join()
        seconds, expected = length(straight), result(straight)
        while sum(hit.values()) < moments:
            folder, number, delay = Path(root) / str(tried), SIGNALS[tried % 2], chance.uniform(0, seconds)
            folder.mkdir()
            tried += 1
            if not killed(folder, delay, number):
                continue  # it was faster than the first
            hit[number] += 1
            start(folder).join()
            try:
                equal += same(result(folder), expected)
            except Exception as error:
                failures.append(f"{number.name} after {delay:.3f} s: {type(error).__name__}: {error}")
            shutil.rmtree(folder)
    kills = ", ".join(f"{count} by {number.name}" for number, count in hit.items())
    print(f"seed {seed}: one run takes {seconds:.2f} s; killed before the end: {kills}; as if nobody had: {equal}")
    print(*failures, sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
