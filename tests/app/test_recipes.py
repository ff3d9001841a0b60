"""Every published recipe composes, builds, trains a step, prunes, exports and reports, on little data."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hqp_lightning import app
from hqp_lightning.configs import check_values
from hqp_lightning.report import read_json

RECIPES = sorted(path.stem for path in app.RECIPE_DIR.glob("*.yaml"))
# Every kind of data once, and a published network for each task; all the others are built, which is what they could
# fail at, and tests/zoo prunes and exports the networks.
RUN = {
    "resnet18_digits": False,
    "mobilenetv3_small_imagenette": True,
    "lraspp_mobilenetv3_digits": True,
    "mobilenetv3_large_imagenet": False,
    "resnet18_cifar10": False,
    "imagefolder": False,
}
QUICK = "model.net._target_=networks.quick"
SEGMENTATION = ("lraspp_mobilenetv3_digits", "imagefolder_segmentation")
SMALL = [
    "data.image_size=32",
    "data.batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=2",
    "+trainer.limit_test_batches=2",
    "trainer.limit_val_batches=2",
    "trainer.enable_progress_bar=false",
    "trainer.enable_checkpointing=false",
    "hqp.max_drop=0.99",  # nothing is learnt here, so every score is as good as another
    "hqp.start_epoch=0",
    "hqp.every_n_epochs=1",
    "hqp.fisher_batches=1",
    "hqp.compensate=false",  # tests/search has it; batches of four are its slowest case
    "export.calibration_batches=1",
    "export.engines=[onnxruntime]",
    "export.latency_runs=3",
    "export.threads=1",  # more of them spin on the cores that do the rest
    "export.rtx=[]",
]


def composed(recipe, *overrides):
    with initialize_config_dir(str(app.CONFIG_DIR), version_base="1.3"):
        return compose("config", overrides=[f"recipe={recipe}", *overrides])


def small(recipe, tmp_path, root, *overrides):
    extra = [f"output_dir={tmp_path}", "model.checkpoint=null", "model.net.weights=null"]
    if "digits" not in recipe:
        extra += [f"data.root={root}", "data.num_workers=0"]
    if recipe.endswith("imagenet"):
        extra.append("model.num_classes=10")
    if recipe == "imagefolder_segmentation":
        extra.append("data.num_classes=3")
    if recipe == "lraspp_mobilenetv3_digits":
        extra.append("data.canvases=16")
    return composed(recipe, *SMALL, *extra, *overrides)


@pytest.fixture
def root(recipe, request):
    """Pictures in the layout that the recipe's data module reads."""
    if recipe == "imagefolder_segmentation":
        return request.getfixturevalue("masks_root")
    if "cifar10" in recipe:
        return request.getfixturevalue("cifar_root")
    if recipe.endswith("imagenette"):
        return request.getfixturevalue("imagenette_root")
    return request.getfixturevalue("imagenet_root")


def test_the_published_recipes_are_there():
    networks = "resnet18", "mobilenetv3_small", "mobilenetv3_large"
    expected = {f"{network}_{data}" for network in networks for data in ("imagenet", "imagenette", "cifar10")}
    assert expected | {"resnet18_digits", "mobilenetv3_small_digits", "imagefolder", *SEGMENTATION} == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_its_command_and_composes_without_new_keys(recipe):
    lines = (app.RECIPE_DIR / f"{recipe}.yaml").read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert lines[0] == "# @package _global_"
    assert f"hqp recipe={recipe}" in header
    for word in ("expected:", "hardware:", "time:"):
        assert word in header
    own = OmegaConf.load(app.RECIPE_DIR / f"{recipe}.yaml")
    own.pop("defaults")
    with initialize_config_dir(str(app.CONFIG_DIR), version_base="1.3"):
        groups = [f"{g}={composed_choice(recipe, g)}" for g in ("model", "data")]
        base = compose("config", overrides=["~recipe", *groups])
    # Merging into a closed configuration fails on any key that the groups do not have.
    OmegaConf.set_struct(base, True)
    assert OmegaConf.merge(base, own)


def composed_choice(recipe, group):
    defaults = OmegaConf.load(app.RECIPE_DIR / f"{recipe}.yaml").defaults
    return next(d[f"override /{group}"] for d in defaults if f"override /{group}" in d)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "its_network"), RUN.items())
def test_recipe_runs_to_the_report(recipe, its_network, tmp_path, root):
    cfg = small(recipe, tmp_path, root, *[QUICK] * (not its_network))
    report = app.run(cfg)
    assert report == read_json(tmp_path / "deploy" / "report.json")
    assert report.budget.monitor == ("val_miou" if recipe in SEGMENTATION else "val_acc")
    assert report.pruned.macs < report.baseline.macs
    assert report.int8.holdout_accuracy is not None
    assert [e.backend for e in report.engines if e.precision == "int8"] == ["onnxruntime"]
    assert (tmp_path / "deploy" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_part_of_a_recipe_builds(recipe, tmp_path, root):
    cfg = small(recipe, tmp_path, root)
    check_values(cfg)
    callbacks = app._callbacks(cfg)
    assert [type(c).__name__ for c in callbacks] == ["HQPPruning", "Int8Export"]
    model, data, trainer = app.build(cfg, callbacks)
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    model.eval()
    with torch.no_grad():
        logits = model(images)
    if recipe in SEGMENTATION:
        assert logits.shape[2:] == labels.shape[1:] == (32, 32)
        assert int(labels[labels != 255].max()) < logits.shape[1] == cfg.model.num_classes
    else:
        assert logits.shape == (4, 10)
        assert labels.shape == (4,)
    assert trainer.max_epochs == 2
    assert trainer.limit_train_batches == 2
    again = instantiate(cfg.model)
    assert again.hparams == model.hparams


@pytest.mark.slow
def test_export_alone_and_the_other_loggers(tmp_path, imagenette_root):
    overrides = ["hqp=none", "export.monitor=val_acc", "export.max_drop=0.99", "logger=none"]
    small_ones = [QUICK, *(o for o in SMALL if not o.startswith("hqp."))]
    cfg = composed("resnet18_digits", *small_ones, f"output_dir={tmp_path}", *overrides)
    report = app.run(cfg)
    assert report.steps == ()
    assert report.pruned.macs == report.baseline.macs
    assert report.size_reduction > 0.5
