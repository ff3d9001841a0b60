"""The trained networks that a pruned one follows, asked together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.errors import ConfigurationError, HQPError
from hqp_lightning.models.distillation import check_seen, follow, with_features
from hqp_lightning.models.teachers import Teacher

__all__ = ["Ask", "answered"]

_Found = dict[str, Tensor]
_Answer = tuple[Tensor, _Found]
_FAILURES = (RuntimeError, AssertionError, ValueError)  # as torch, torchvision and others refuse a size


def answered(net: nn.Module, run: Callable[[], Tensor], layers: Sequence[str] | None) -> tuple[Tensor, _Found, Tensor]:
    """What a call that may do more than call the network returns, and what the network did in it.

    Args:
        net: takes images.
        run: calls it, perhaps on images that it makes of others -> logits ``[B, num_classes, ...]``.
        layers: of `hqp_lightning.models.distillation.with_features`; None: no features at all.

    Returns:
        The logits, the features, and the images ``[B, 3, H, W]`` that the network was given.

    Raises:
        ConfigurationError: the network was not called once.
    """
    given: list[Tensor] = []
    handle = net.register_forward_pre_hook(
        lambda _, args, named: given.append(next(iter((*args, *named.values())))), with_kwargs=True, prepend=True
    )
    try:
        logits, features = (run(), {}) if layers is None else with_features(net, run, layers)
    finally:
        handle.remove()
    if len(given) != 1:
        raise ConfigurationError(
            f"distillation shows teachers what {type(net).__name__} is given: forward has to call self.net(images) "
            f"once, not {len(given)} times"
        )
    return logits, features, given[0]


class Ask:
    """Logits and features of frozen networks.

    Args:
        teachers: trained networks, in evaluation mode; they take images.
        logits_of: what a network returns -> logits ``[B, num_classes, ...]``.
        layers: names of layers whose outputs are features, too; None: no features at all.
        compiled: call what ``torch.compile`` makes of them, with the weights as constants.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        logits_of: Callable[[Any], Tensor],
        layers: Sequence[str] | None = None,
        compiled: bool = False,
    ) -> None:
        self._teachers, self._logits_of, self._layers, self._compiled = tuple(teachers), logits_of, layers, compiled
        self._calls: list[Callable[[Tensor], _Answer]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled: a copy compiles again."""
        return {**self.__dict__, "_calls": []}

    def to(self, like: Tensor) -> None:
        """Put the networks on the device of a tensor, in its type."""
        held = [t for teacher in self._teachers for t in teacher.state_dict().values() if t.is_floating_point()]
        if any((t.device, t.dtype) != (like.device, like.dtype) for t in held):
            self._calls = []  # a program has its weights inside
            for teacher in self._teachers:
                teacher.to(like)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """The logits of each network, and its features.

        Raises:
            ConfigurationError: a network fails on these images, or cannot be compiled here.
        """
        if not self._calls:
            make = self._compile if self._compiled else self._plain
            self._calls = [make(teacher) for teacher in self._teachers]
        answers = [call(images) for call in self._calls]
        return [logits for logits, _ in answers], [features for _, features in answers]

    def _plain(self, teacher: nn.Module) -> Callable[[Tensor], _Answer]:
        def ask(images: Tensor) -> _Answer:
            try:
                if self._layers is None:
                    return self._logits_of(teacher(images)), {}
                return with_features(_named(teacher), lambda: self._logits_of(teacher(images)), self._layers)
            except (HQPError, torch.OutOfMemoryError):
                raise
            except _FAILURES as error:
                raise _unfit(teacher, images, error) from error

        return ask

    def _compile(self, teacher: nn.Module) -> Callable[[Tensor], _Answer]:
        import torch._inductor.config  # takes longer than all of torch

        call = torch.compile(_followed(copy.deepcopy(teacher), self._layers))

        def ask(images: Tensor) -> _Answer:
            # Given as an option of torch.compile, freezing does nothing: Dynamo looks here whether weights are inputs.
            # oneDNN, to which frozen layers go (torch 2.14), knows no float64.
            with torch._inductor.config.patch(freezing=images.dtype != torch.float64):
                try:
                    answer, features = call(images)
                except (HQPError, torch.OutOfMemoryError):
                    raise
                except _FAILURES as error:
                    self._plain(teacher)(images)  # says better what is wrong with the images, if it is they
                    raise ConfigurationError(
                        f"compile_teachers=True, and torch.compile could not compile {type(teacher).__name__} "
                        f"({' '.join(str(error).split())[:400]}): leave it False"
                    ) from error
            return self._logits_of(answer), features

        return ask


def _followed(net: nn.Module, layers: Sequence[str] | None) -> Callable[[Tensor], tuple[Any, dict[str, Tensor]]]:
    """A call that returns the features, too: hooks that come and go would break its graph."""
    seen: dict[str, Tensor] = {}
    if layers is not None:
        follow(_named(net), seen, layers)

    def run(images: Tensor) -> tuple[Any, dict[str, Tensor]]:
        answer = net(images)
        if layers is not None:
            check_seen(_named(net), seen, layers)
        found = dict(seen)
        seen.clear()  # as every call finds it: compiled for once
        return answer, found

    # Dynamo counts the programs of a code object, and gives up at eight: those of a sweep's other networks are not its.
    run.__code__ = run.__code__.replace()
    return run


def _unfit(teacher: nn.Module, images: Tensor, error: Exception) -> ConfigurationError:
    kind = str(images.dtype).removeprefix("torch.")
    return ConfigurationError(
        f"the network that is followed, {type(_named(teacher)).__name__}, failed on images {tuple(images.shape)} "
        f"of {kind} ({' '.join(str(error).split())[:200]}); if it takes another size: Teacher(net, image_size=...)"
    )


def _named(net: nn.Module) -> nn.Module:
    return net.net if isinstance(net, Teacher) else net
