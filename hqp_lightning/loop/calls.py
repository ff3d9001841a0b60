"""What the network is really called with: the user's own validation step is asked, up to that call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F

from hqp_lightning.core.calls import Call
from hqp_lightning.core.recomputing import without_reentrance
from hqp_lightning.core.taps import NO_GRADIENT
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.loop.losses import LossFn
from hqp_lightning.loop.network import per_sample_loss
from hqp_lightning.loop.parts import Way, way_through
from hqp_lightning.loop.untouched import untouched

__all__ = ["Receiver"]


class Receiver:
    """Knows what a batch makes of the network.

    The user's ``validation_step`` is run with the batch until it calls the network, and stopped there; nothing of it
    stays (`untouched`). A training batch goes through it, too, so that it is prepared as validation's are; where that
    does not work, through ``loss_fn``, and then through ``training_step``.

    Args:
        trainer: the trainer of the run.
        pl_module: the user's module.
        network: the part of it that is pruned.
        loss_fn: the user's, if there is one.
        like: a call in validation: training batches get its height and width, and have to be of its kind.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        network: nn.Module,
        loss_fn: LossFn | None = None,
        like: Call | None = None,
    ) -> None:
        self.trainer, self.pl_module, self.network, self.loss_fn, self.like = trainer, pl_module, network, loss_fn, like
        self._way: Way | None = None

    @property
    def way(self) -> Way:
        """How validation runs the network: its own call, or one of parts that compute the same. Known after a call."""
        return self._way or Way(self.network, self.network)

    def call(self, batch: Any, index: int = 0, training: bool = False) -> Call:
        """The first call of the network that a batch leads to.

        Args:
            batch: as the step gets it, on its device.
            index: its number in the epoch.
            training: it comes from the training loader.

        Raises:
            ConfigurationError: nothing calls the network, or what does so fails.
        """
        step = self.pl_module.validation_step
        failures: list[tuple[str, Exception]] = []
        call = self._through(step, step_arguments(step, batch, index), failures)
        if call is None and not failures and self._way is None:
            try:
                with untouched(self.trainer, self.pl_module):
                    arguments = step_arguments(step, batch, index)
                    self._way = way_through(self.pl_module, self.network, lambda: step(*arguments))
            except ConfigurationError:
                if self.loss_fn is None:
                    raise
            else:
                call = self._through(step, step_arguments(step, batch, index), failures)
        if call is None and self.loss_fn is not None:
            call = self._through(self.loss_fn, (self.pl_module, batch), failures)
        if call is None and training:
            step = self.pl_module.training_step
            call = self._through(step, step_arguments(step, batch, index), failures)
        if call is None:
            told = "; ".join(f"{name} fails: {type(e).__name__}: {e}" for name, e in failures)
            raise ConfigurationError(
                f"no call of {type(self.network).__name__} comes of a {'training' if training else 'validation'} batch "
                f"({_form(batch)}), so that it can't be known what it receives: {told or 'nothing calls it'}."
            ) from (failures[0][1] if failures else None)
        return call

    def check_loss(self, batch: Any, call: Call) -> None:
        """Try the loss on a validation batch, which leads to ``call``.

        Raises:
            ConfigurationError: no loss fits, or ``loss_fn`` never calls the network, or it has no gradient.
        """
        loss_fn, module = self.loss_fn, self.pl_module
        with untouched(self.trainer, module):
            if loss_fn is not None and first_call(self.network, lambda: loss_fn(module, batch)) is None:
                raise ConfigurationError(
                    f"loss_fn never called the network ({type(self.network).__name__}); name it with module=..."
                )
            with torch.enable_grad(), without_reentrance():
                loss = per_sample_loss(module, self.network, batch, loss_fn, call)
        if not isinstance(loss, torch.Tensor):
            raise ConfigurationError(
                f"loss_fn returned a {type(loss).__name__}: return per-sample losses (N,) or their mean, as a tensor."
            )
        if not loss.requires_grad and any(p.requires_grad for p in self.network.parameters()):
            raise ConfigurationError(NO_GRADIENT)

    def _through(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], failures: list[tuple[str, Exception]]
    ) -> Call | None:
        with untouched(self.trainer, self.pl_module):
            try:
                call = first_call(self.way.first, lambda: function(*arguments))
            except Exception as error:  # the user's own code, with a batch that it may not be meant for
                failures.append((getattr(function, "__name__", type(function).__name__), error))
                return None
            if call is None or self.like is None:
                return call
            if not _of_its_kind(call, self.like):
                name = getattr(function, "__name__", type(function).__name__)
                failures.append((name, TypeError(f"it passes shapes {call.shapes()}, validation {self.like.shapes()}")))
                return None
            return _sized(call, self.like)


def first_call(module: nn.Module, run: Callable[[], Any]) -> Call | None:
    """Arguments of the first call of ``module`` in ``run``, which is stopped there; None if nothing calls it."""
    caught: list[Call] = []

    def catch(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(called.__dict__.get("forward"), "__name__", "") == "wrapped_forward":
            return  # how Lightning has DDP call a step
        caught.append(Call(args, kwargs).map(lambda x: x.detach().clone()))
        raise _StoppedError

    # First of the hooks: what others make of the input, they make again when the call is repeated.
    handle = module.register_forward_pre_hook(catch, prepend=True, with_kwargs=True)
    try:
        run()
    except _StoppedError:
        pass
    finally:
        handle.remove()
    return caught[0] if caught else None


def step_arguments(step: Callable[..., Any], batch: Any, index: int) -> tuple[Any, ...]:
    """What Lightning would call a step with, for the first loader."""
    parameters = inspect.signature(step).parameters.values()
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return (batch, index, 0)[: max(len(placed), 2 if many else 1)]


def _of_its_kind(call: Call, like: Call) -> bool:
    given, wanted = call.tensors(), like.tensors()
    return len(given) == len(wanted) and all(
        a.dim() == b.dim() and a.shape[1:2] == b.shape[1:2] for a, b in zip(given, wanted, strict=True)
    )


def _sized(call: Call, like: Call) -> Call:
    """Images get validation's height and width: recipes train at smaller ones, and a file has one size."""
    sizes = iter(x.shape for x in like.tensors())

    def resize(x: torch.Tensor) -> torch.Tensor:
        size = next(sizes)[2:]
        if x.dim() != 4 or x.shape[2:] == size or not x.is_floating_point():
            return x
        return F.interpolate(x.float(), size=size, mode="bilinear", antialias=True).to(x.dtype)

    return call.map(resize)


def _form(batch: Any) -> str:
    return f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__


class _StoppedError(BaseException):
    """Not an Exception: a step that catches those must not go on."""
