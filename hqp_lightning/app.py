"""The ``hqp`` console command: compose a recipe, train, prune, quantize, report."""

from __future__ import annotations

import dataclasses
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from hqp_lightning.configs import cause, check_overrides, check_values, fail, offer_recipes, offer_timm
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import ModelFigures, Report
from hqp_lightning.sweeps import Found, find_earlier, note_failure, note_settings, objectives, set_logs_aside

if TYPE_CHECKING:
    # Imported where something is trained: a tab's completion and --help need neither, and take no five seconds.
    import lightning as L

__all__ = ["CONFIG_DIR", "RECIPE_DIR", "build", "main", "run", "with_control"]

_log = logging.getLogger(__name__)
_PACKAGE = Path(__file__).resolve().parent
# A wheel carries both folders inside the package; in the source tree they stand beside it.
_ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
CONFIG_DIR, RECIPE_DIR = _ROOT / "conf", _ROOT / "recipes"
offer_recipes(RECIPE_DIR)
_CALLBACKS = ("hqp", "export")
_EXAMPLE = "resnet18_digits"


def _count_classes(root: str) -> int:
    from hqp_lightning.data import count_classes

    return count_classes(root)


OmegaConf.register_new_resolver("count_classes", _count_classes, replace=True)


def run(cfg: DictConfig) -> Report | None:
    """Carry out one composed configuration.

    Args:
        cfg: see ``conf/config.yaml``.

    Returns:
        The report, amended by the control where ``control=true``; None when the export is switched off.

    Raises:
        ConfigurationError: a value is missing or of the wrong type, before anything is loaded.
    """
    _check(cfg)
    earlier = find_earlier(cfg) if cfg.resume else Found()
    note_settings(cfg)
    if earlier.checkpoint is not None:
        set_logs_aside(Path(cfg.output_dir))
    report = earlier.report or _fit(cfg, earlier.checkpoint or cfg.ckpt_path)
    if report is None:
        return None
    if cfg.control and report.control is None:
        from hqp_lightning.report import publish

        report = with_control(report, _dense_figures(cfg, report))
        publish(report, Path(cfg.export.dirpath))
    if cfg.compare:
        from hqp_lightning.comparison import compare

        compare(cfg, report, build)
    print(f"Report: {Path(cfg.export.dirpath) / 'report.html'}")
    return report


def _fit(cfg: DictConfig, checkpoint: Path | str | None) -> Report | None:
    callbacks = _callbacks(cfg)
    model, data, trainer = build(cfg, callbacks)
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    return callbacks[-1].report if _is_on(cfg, "export") else None


def with_control(report: Report, control: ModelFigures) -> Report:
    """Add the dense model that trained for as long to a report, and the drops against it.

    Args:
        report: of the pruned and quantized model.
        control: the dense model after the same epochs.

    Returns:
        The report with ``control_accuracy_drop = control - INT8`` (the other way round for a metric that falls).
    """
    sign = 1.0 if report.budget.mode == "max" else -1.0
    holdout = None
    if control.holdout_accuracy is not None and report.int8.holdout_accuracy is not None:
        holdout = sign * (control.holdout_accuracy - report.int8.holdout_accuracy)
    return dataclasses.replace(
        report,
        control=control,
        control_accuracy_drop=sign * (control.accuracy - report.int8.accuracy),
        control_holdout_accuracy_drop=holdout,
    )


def _check(cfg: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigurationError(f"no value for {', '.join(missing)}; add {' '.join(f'{k}=...' for k in missing)}")
    for key, kind in (("control", bool), ("compare", bool), ("resume", bool), ("seed", int)):
        if not isinstance(cfg[key], kind):
            raise ConfigurationError(f"{key} must be of type {kind.__name__}, got {cfg[key]!r}")
    check_values(cfg)
    for key in ("control", "compare"):
        if cfg[key] and not all(_is_on(cfg, name) for name in _CALLBACKS):
            raise ConfigurationError(f"{key}=true compares with a pruned and exported model; it needs hqp and export")


def _callbacks(cfg: DictConfig) -> list[Any]:
    return [instantiate(cfg[name]) for name in _CALLBACKS if _is_on(cfg, name)]


def _is_on(cfg: DictConfig, group: str) -> bool:
    # With hqp=none a recipe's overrides of hqp are still there, but nothing that they would be given to.
    return bool(cfg[group]) and "_target_" in cfg[group]


def build(
    cfg: DictConfig, callbacks: list[Any], suffix: str = "", **settings: Any
) -> tuple[L.LightningModule, L.LightningDataModule, L.Trainer]:
    """The model, the data and the Trainer of a configuration, seeded.

    Args:
        cfg: the composed configuration.
        callbacks: of the Trainer.
        suffix: of the Trainer's folder; with one it has no logger.
        **settings: of the Trainer, instead of the configuration's.
    """
    from lightning import seed_everything

    seed_everything(cfg.seed, workers=True)
    data, model = instantiate(cfg.data), instantiate(cfg.model)
    logger = instantiate(cfg.logger) if _is_on(cfg, "logger") and not suffix else False
    root = str(cfg.trainer.default_root_dir) + suffix
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=logger, default_root_dir=root, **settings)
    return model, data, trainer


def _dense_figures(cfg: DictConfig, report: Report) -> ModelFigures:
    """Train the dense model from the same start for the same epochs; score its best epoch on both splits."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    budget, baseline = report.budget, report.baseline
    _log.info("control: training the dense model for the same epochs")
    best = ModelCheckpoint(
        dirpath=Path(cfg.output_dir) / "control", monitor=budget.monitor, mode=budget.mode, save_weights_only=True
    )
    model, data, trainer = build(cfg, [best], suffix="/control", enable_checkpointing=True)
    trainer.fit(model, datamodule=data)
    if best.best_model_score is None:
        raise ConfigurationError(f"the control never logged {budget.monitor!r}")
    accuracy = float(best.best_model_score)
    sign = 1.0 if budget.mode == "max" else -1.0
    if sign * (baseline.accuracy - accuracy) >= 0:
        # Training on did not help: then the model at the start is the best dense one that can be had.
        return baseline
    holdout = None
    if baseline.holdout_accuracy is not None:
        (scores,) = trainer.validate(model, data.test_dataloader(), ckpt_path=best.best_model_path, verbose=False)
        holdout = float(scores[budget.monitor])
    return dataclasses.replace(baseline, accuracy=accuracy, holdout_accuracy=holdout)


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def _job(cfg: DictConfig) -> tuple[float, float] | None:
    # The recipes' loaders serve thousands of images a second from memory: workers would only copy.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Lightning 2.6's own use of torch 2.15; nothing that the user could change.
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
    # A resumed run goes on in its folder; its log was set aside.
    warnings.filterwarnings("ignore", message="(Experiment logs|Checkpoint) directory .* exists and is not empty")
    try:
        report = run(cfg)
    except Exception as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            fail(error)
        # The other runs of a sweep go on, and the table at its end says why this one has no figures.
        _log.exception("hqp: this run failed")
        note_failure(Path(cfg.output_dir), cause(error))
        return None
    return None if report is None else objectives(report)


def main() -> None:
    """Run ``hqp recipe=NAME [key=value ...]``; a sweeper gets the INT8 accuracy and the latency."""
    arguments = sys.argv[1:]
    offer_timm(arguments, CONFIG_DIR)
    if "--help" in arguments and not any(a.startswith("recipe=") for a in arguments):
        sys.argv.append(f"recipe={_EXAMPLE}")  # help shows a composed configuration, and that needs a recipe
    elif not any(a.startswith("-") for a in arguments) or "-m" in arguments or "--multirun" in arguments:
        try:
            check_overrides(arguments, CONFIG_DIR)
        except ConfigurationError as error:
            fail(error)
    _job()


if __name__ == "__main__":
    # Not this copy's: other processes of a sweep have to find what they run under the module's own name.
    from hqp_lightning.app import main as command

    command()
