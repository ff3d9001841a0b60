"""The trained networks that a pruned one follows, asked together: in a training step they can take half of the time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models.distillation import check_seen, follow, with_features
from hqp_lightning.models.teachers import Teacher

__all__ = ["Ask"]

_Answer = tuple[Tensor, dict[str, Tensor]]


class Ask:
    """Logits and features of frozen networks.

    Args:
        teachers: trained networks, in evaluation mode; they take images.
        logits_of: what a network returns -> logits ``[B, num_classes, ...]``.
        features: also return what `hqp_lightning.models.distillation.with_features` does.
        layers: names of layers whose outputs are features, too.
        compiled: call what ``torch.compile`` makes of them, with the weights as constants.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        logits_of: Callable[[Any], Tensor],
        features: bool = False,
        layers: Sequence[str] = (),
        compiled: bool = False,
    ) -> None:
        self._teachers, self._logits_of, self._compiled = tuple(teachers), logits_of, compiled
        self._features, self._layers = features, tuple(layers)
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
            ConfigurationError: a network cannot be compiled here.
        """
        if not self._calls:
            make = self._compile if self._compiled else self._plain
            self._calls = [make(teacher) for teacher in self._teachers]
        answers = [call(images) for call in self._calls]
        return [logits for logits, _ in answers], [features for _, features in answers]

    def _plain(self, teacher: nn.Module) -> Callable[[Tensor], _Answer]:
        if not self._features:
            return lambda images: (self._logits_of(teacher(images)), {})
        return lambda images: with_features(_named(teacher), lambda: self._logits_of(teacher(images)), self._layers)

    def _compile(self, teacher: nn.Module) -> Callable[[Tensor], _Answer]:
        import torch._dynamo  # takes longer than all of torch
        import torch._inductor.config

        # Given as an option of torch.compile, freezing does nothing: Dynamo looks there whether weights are inputs. Its
        # limit counts all networks of a process, those of the runs before this one, in a sweep, as well.
        frozen, limits = torch._inductor.config, torch._dynamo.config
        many = {name: 10_000 for name in ("cache_size_limit", "accumulated_cache_size_limit") if hasattr(limits, name)}
        followed = _Followed(copy.deepcopy(teacher), self._features, self._layers)
        call = torch.compile(followed)

        def ask(images: Tensor) -> _Answer:
            single = images.dtype != torch.float64  # oneDNN, to which frozen layers go (torch 2.14), knows no other
            with frozen.patch(freezing=single), limits.patch(many):
                try:
                    answer, features = call(images)
                except torch._dynamo.exc.TorchDynamoException as error:
                    raise ConfigurationError(
                        f"compile_teachers=True, and torch.compile could not compile {type(teacher).__name__} "
                        f"({str(error).strip().splitlines()[0]}): leave it False"
                    ) from error
            return self._logits_of(answer), features

        return ask


class _Followed(nn.Module):
    """A network that returns its features, too: hooks that come and go would break its graph."""

    def __init__(self, net: nn.Module, features: bool, layers: Sequence[str]) -> None:
        super().__init__()
        self.net, self.layers = net, layers if features else ()
        self.seen: dict[str, Tensor] = {}
        if features:
            follow(_named(net), self.seen, layers)

    def forward(self, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
        answer = self.net(images)
        check_seen(_named(self.net), self.seen, self.layers)
        features = dict(self.seen)
        self.seen.clear()  # as every call finds it: compiled for once
        return answer, features


def _named(net: nn.Module) -> nn.Module:
    return net.net if isinstance(net, Teacher) else net
