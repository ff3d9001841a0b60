"""The interval of the report is that of the samples, however often the network sees them."""

from classifier import Classifier

from hqp_lightning import Int8Export


class Flipping(Classifier):
    """Answers by the mean over an image and its mirror image."""

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.accuracy((self.net(x) + self.net(x.flip(3))) / 2, y)
        self.log("val_acc", self.accuracy)


def test_flipped_copies_are_no_samples(loaders, make_trainer, tmp_path):
    settings = {"engines": ["onnxruntime"], "latency_runs": 1, "calibration_batches": 1, "threads": 1}
    export = Int8Export(tmp_path, "val_acc", 0.9, holdout=loaders[1], **settings)
    model = Flipping()
    make_trainer(1, [export]).fit(model, *loaders)
    assert (export.report.samples, export.report.holdout_samples) == (200, 200)
    assert "validation_step" not in model.__dict__
