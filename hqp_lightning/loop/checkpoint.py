"""Pruned models in checkpoints: every file carries its structure, and loading applies it first."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path
from pickle import UnpicklingError
from types import MethodType
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.loop.averaging import copies
from hqp_lightning.surgery import Structure, apply_structure_, record

__all__ = ["STRUCTURE_KEY", "PrunedCheckpointMixin", "carry_structure", "load_pruned"]

STRUCTURE_KEY = "hqp_structure"
_LIGHTNINGS = {"cls", "checkpoint", "checkpoint_path", "map_location"}
"""Names that ``load_from_checkpoint`` passes on itself: an argument of the constructor can't go by them, too."""

T = TypeVar("T", bound=LightningModule)


def carry_structure(pl_module: LightningModule) -> None:
    """Make every checkpoint of ``pl_module`` carry its structure from now on, and apply it on load.

    Lightning loads the weights before any callback hears of the checkpoint, so the module's own hooks are wrapped:
    they are the only ones called early enough, and for ``save_weights_only`` files and after ``fit`` too.
    """
    pl_module.__dict__["on_save_checkpoint"] = MethodType(on_save_checkpoint, pl_module)
    pl_module.__dict__["on_load_checkpoint"] = MethodType(on_load_checkpoint, pl_module)


# Named as what they stand in for: a pickled module then finds its class's own methods again.
def on_save_checkpoint(self: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Record the structure, then call the user's hook."""
    checkpoint[STRUCTURE_KEY] = record(self).to_plain()
    type(self).on_save_checkpoint(self, checkpoint)


def on_load_checkpoint(self: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Apply the structure, then call the user's hook."""
    if STRUCTURE_KEY in checkpoint:
        structure = Structure.from_plain(checkpoint[STRUCTURE_KEY])
        # An averaged copy loads its weights in its callback's turn; it has to fit by then, too.
        for module in (self, *(copies(self._trainer) if self._trainer is not None else [])):
            apply_structure_(module, structure)
    type(self).on_load_checkpoint(self, checkpoint)


class PrunedCheckpointMixin:
    """Lets ``load_from_checkpoint`` rebuild a pruned network, and every Trainer save and load it.

        class MyModule(PrunedCheckpointMixin, LightningModule): ...

        model = MyModule.load_from_checkpoint("deploy/pruned.ckpt")

    Without it a module of the dense shapes meets the weights of a pruned one, and torch reports a size mismatch.
    Files that carry no structure load as ever. The class's own ``on_save_checkpoint`` and ``on_load_checkpoint`` are
    called after the structure was recorded, or applied; they need not call ``super``. What is loaded this way keeps its
    structure through later ``fit`` runs without `HQPPruning`, too.

    Raises:
        SurgeryError: on loading, if the structure is of another architecture, also with ``strict=False``.
    """

    # Not overridden hooks: a hook of the user's that does not call super, as few do, would hide them.
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Prepare the module before its own ``__init__``."""
        self: Any = super().__new__(cls)
        carry_structure(self)
        return self


def unsaved_arguments(model: type[LightningModule], saved: Collection[str], whole: str | None = None) -> list[str]:
    """Names of arguments that the class can't be made without, and that a checkpoint does not have.

    Args:
        model: the class.
        saved: names of its hyperparameters.
        whole: the argument that takes all of them as one.
    """
    parameters = inspect.signature(model).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return [] if "_instantiator" in saved else sorted(needed - {*saved, whole})  # LightningCLI makes it of its file


def load_pruned(model: type[T] | T, ckpt_path: str | Path, *, weights_only: bool = True, **kwargs: Any) -> T:
    """Rebuild a pruned LightningModule from its original class, or a fresh instance, and a checkpoint.

    Args:
        model: the LightningModule class (built as ``load_from_checkpoint`` does, with the checkpoint's hyperparameters
            and ``kwargs``), or an instance of the original, unpruned architecture; the instance is changed in place.
        ckpt_path: a Lightning checkpoint saved while `HQPPruning` or `Int8Export` was attached.
        weights_only: read tensors and plain data alone, which cannot run code; False, for a file that you trust, reads
            other objects, too (a ``Path`` among the hyperparameters is one).
        **kwargs: constructor arguments that override the saved hyperparameters; those that Lightning's loading takes
            for its own (``checkpoint``, ``map_location``) are given to an instance instead.

    Returns:
        The module with the pruned structure and the checkpoint's weights, on the CPU.

    Raises:
        ConfigurationError: the file carries no structure, or holds more than plain data, or an argument has a name that
            Lightning's loading keeps for itself.
        SurgeryError: the structure is of another architecture.
    """
    if isinstance(model, type) and (taken := sorted(_LIGHTNINGS & kwargs.keys())):
        raise ConfigurationError(
            f"load_pruned can't pass {taken[0]}={kwargs[taken[0]]!r} on to {model.__name__}: Lightning's "
            f"load_from_checkpoint has an argument {taken[0]!r} of its own. The weights come from the file, on the "
            f"CPU; what {model.__name__} is to get, give to an instance: load_pruned({model.__name__}(...), path)"
        )
    try:
        checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=weights_only)
    except UnpicklingError as error:
        raise ConfigurationError(
            f"{ckpt_path} holds more than tensors and plain data (most often among the hyperparameters), or is no "
            "checkpoint. If you trust it: load_pruned(..., weights_only=False)."
        ) from error
    if STRUCTURE_KEY not in checkpoint:
        raise ConfigurationError(
            f"{ckpt_path} carries no {STRUCTURE_KEY!r}: it was saved without HQPPruning or Int8Export. "
            f"Load it with {getattr(model, '__name__', type(model).__name__)}.load_from_checkpoint."
        )
    if isinstance(model, type):
        saved = {*checkpoint.get("hyper_parameters", {}), *kwargs}
        if missing := unsaved_arguments(model, saved, checkpoint.get("hparams_name")):
            name = model.__name__
            raise ConfigurationError(
                f"{ckpt_path} does not hold all that {name} is made of: load_pruned({name}, path, "
                f"{', '.join(f'{n}=...' for n in missing)}), with what the original got. save_hyperparameters() keeps "
                "plain values, no modules."
            )
        loader: Any = type(model.__name__, (model, PrunedCheckpointMixin), {})
        if "weights_only" in inspect.signature(loader.load_from_checkpoint).parameters:  # Lightning has it since 2.6
            kwargs["weights_only"] = weights_only
        module = loader.load_from_checkpoint(ckpt_path, map_location="cpu", **kwargs)
        module.__class__ = model
        return module
    carry_structure(model)
    model.configure_model()
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return model
