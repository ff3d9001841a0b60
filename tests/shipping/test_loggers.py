"""What the user's loggers hold of the report when fit ends, read back without a server."""

import json
import logging
import os
from io import BytesIO

import numpy as np
import pytest
from classifier import Scripted
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from hqp_lightning import hqp_callbacks
from hqp_lightning.report import read_json


@pytest.fixture
def run(loaders, make_trainer, tmp_path):
    """``run(loggers)``: a search of three epochs and its export; the folder of the report."""

    def fit(loggers):
        options = {"engines": ["onnxruntime"], "latency_runs": 2, "threads": 1}
        callbacks = hqp_callbacks(0.02, "val_acc", tmp_path / "deploy", step=0.2, min_step=0.05, export=options)
        make_trainer(3, callbacks, logger=loggers).fit(Scripted([0.9, 0.89, 0.5, 0.885], [0.884]), *loaders)
        assert callbacks[-1].report == read_json(tmp_path / "deploy" / "report.json")
        return tmp_path / "deploy"

    return fit


def is_a_drawing(pixels):
    """Landscape, on paper, with the blue of kept steps."""
    assert pixels.shape == (468, 912, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert (pixels == np.array([0x0B, 0x67, 0xB2], np.uint8)).all(2).sum() > 50


def test_tensorboard_has_the_table_and_the_trajectory(run, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    logger = TensorBoardLogger(tmp_path)
    run([logger, CSVLogger(tmp_path)])
    events = accumulator.EventAccumulator(logger.log_dir, {"images": 0, "tensors": 0}).Reload()
    (image,) = events.Images("hqp/trajectory")
    is_a_drawing(np.asarray(Image.open(BytesIO(image.encoded_image_string))))
    (text,) = events.Tensors("hqp/report/text_summary")
    assert text.step == image.step == 15
    assert "| INT8 | 0.8840 |" in text.tensor_proto.string_val[0].decode()


@pytest.mark.filterwarnings("ignore")  # its file store warns that a database were better
def test_mlflow_has_the_files(run, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("digits", tracking_uri=f"file:{tmp_path / 'mlruns'}")
    deploy = run(logger)
    folder = next((tmp_path / "mlruns").glob(f"*/{logger.run_id}/artifacts/hqp"))
    assert sorted(os.listdir(folder)) == ["report.html", "report.json", "trajectory.png"]
    assert (folder / "report.html").read_bytes() == (deploy / "report.html").read_bytes()
    is_a_drawing(np.asarray(Image.open(folder / "trajectory.png").convert("RGB")))


@pytest.mark.filterwarnings("ignore")  # its own
def test_wandb_has_the_page_and_the_trajectory(run, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    deploy = run(logger)
    media = next(tmp_path.glob("wandb/offline-run-*/files/media"))
    (page,) = (media / "html" / "hqp").glob("report_*.html")
    assert page.read_bytes() == (deploy / "report.html").read_bytes()
    (drawing,) = (media / "images" / "hqp").glob("trajectory_*.png")
    is_a_drawing(np.asarray(Image.open(drawing).convert("RGB")))
    wandb.finish()


class Broken(MLFlowLogger):
    """Of a server that went away."""

    def __init__(self):
        self.metrics = []

    def log_metrics(self, metrics, step=None):
        self.metrics.append(json.dumps(metrics))

    @property
    def experiment(self):
        return self

    def log_artifact(self, *args):
        raise ConnectionError("no route to host\nmore\nlines")

    run_id = name = version = save_dir = root_dir = "broken"
    log_hyperparams = log_graph = save = finalize = after_save_checkpoint = lambda self, *args, **kwargs: None


def test_a_logger_that_fails_costs_one_line(run, caplog):
    with caplog.at_level(logging.WARNING, "hqp_lightning.shipping.publishing"):
        deploy = run(logger := Broken())
    (line,) = [r.getMessage() for r in caplog.records if r.name == "hqp_lightning.shipping.publishing"]
    assert line == (
        f"hqp: Broken did not take the report (ConnectionError: no route to host); it is in {deploy / 'report.html'}"
    )
    assert logger.metrics
