"""A network as the export takes it: a function of tensors that have names, and its outputs in the user's structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hqp_lightning.core.calls import Call, OneTensor, Tensors
from hqp_lightning.core.structure import Path, names, put_back, tensors_of, unique
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.export.onnx import INPUT, OUTPUT
from hqp_lightning.surgery.copying import copied

__all__ = ["Exportable", "exportable", "on_cpu", "one_sample"]


@dataclass(frozen=True, slots=True)
class Exportable:
    """A float32 copy of a network on the CPU, as a function of tensors.

    Attributes:
        module: takes ``example``, returns a tensor, or a tuple of them.
        example: a tensor for each input, of one sample.
        inputs: their names in the file.
        outputs: names of what is written of what the network returns.
        returned: what it returns, as validation gets it.
        paths: where the outputs stand in it.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    returned: Any
    paths: tuple[Path, ...]

    def put_back(self, values: Sequence[Tensor]) -> Any:
        """Outputs in the structure that validation expects; what is not written is absent there."""
        return put_back(self.returned, self.paths, values)


def one_sample(call: Call, network: nn.Module) -> Call:
    """The first sample of a call.

    Raises:
        ConfigurationError: one of several tensors has no batch axis of its own.
    """
    shapes = call.shapes()
    if len(shapes) > 1 and any(s[:1] != shapes[0][:1] or not s for s in shapes):
        given = ", ".join(f"{n} {s}" for n, s in zip(call.names(network.forward), shapes, strict=True))
        raise ConfigurationError(
            f"Int8Export writes inputs whose first axis is the batch; {type(network).__name__} is called with {given}. "
            "Keep what is the same for every sample as a buffer of the network, or pass it as a number."
        )
    return call.map(lambda x: x[:1] if x.dim() else x)


def exportable(network: nn.Module, call: Call, wanted: Sequence[str] | None = None) -> Exportable:
    """A float32 copy of the network on the CPU, a function of the tensors of the call.

    A copy, so that any precision of the training can be written, and what was compiled or hooked in stays behind;
    weights that a parametrization computes (weight_norm, spectral_norm) are plain in it, and can be quantized. One
    tensor alone is called ``input`` or ``logits``; others after parameters of ``forward`` and the keys of what it
    returns.

    Args:
        network: as it is.
        call: what it receives, of one sample.
        wanted: names of the outputs to write; None: all.

    Raises:
        ConfigurationError: there is no tensor, one without a batch axis, or no output of a wanted name.
    """
    twin, call = copied(network), call.map(on_cpu)
    _compute_weights_(twin)
    tensors = call.tensors()
    kind = type(network).__name__
    if not tensors:
        raise ConfigurationError(f"Int8Export writes functions of tensors; {kind} is called with none.")
    returned = call.on(twin)
    found = tensors_of(returned)
    inputs = (INPUT,) if len(tensors) == 1 else call.names(network.forward)
    outputs = unique(names(found, OUTPUT, "output"), taken=inputs)
    if not found or any(x.shape[:1] != tensors[0].shape[:1] for x in found.values()):
        shown = ", ".join(f"{n} {tuple(x.shape)}" for n, x in zip(outputs, found.values(), strict=True))
        raise ConfigurationError(
            f"Int8Export writes outputs whose first axis is the batch; {kind} returns "
            f"{shown or f'no tensor but {type(returned).__name__}'}. Name the part that returns them with module=..., "
            "or leave Int8Export out: HQPPruning alone works with a loss_fn."
        )
    unknown = sorted(set(wanted or ()) - set(outputs))
    if unknown or wanted is not None and not wanted:
        raise ConfigurationError(f"outputs={list(wanted or ())}: {kind} returns {list(outputs)}; name some of these.")
    kept = {n: p for n, p in zip(outputs, found, strict=True) if wanted is None or n in wanted}
    if len(tensors) == 1 and list(kept.values()) == [()]:
        plain = len(call.args) == 1 and call.args[0] is tensors[0] and not call.kwargs
        module = twin if plain else OneTensor(twin, call).eval()
    else:
        module = Tensors(twin, call, tuple(kept.values())).eval()
    return Exportable(module, tensors, inputs, tuple(kept), returned, tuple(kept.values()))


def _compute_weights_(network: nn.Module) -> None:
    """Weights that are computed at every call, from others that no longer change, are computed now."""
    with torch.no_grad():
        for m in list(network.modules()):
            if is_parametrized(m):
                values = {n: getattr(m, n).detach().clone() for n in m.get_submodule("parametrizations")._modules}
                # Not by remove_parametrizations: it takes the tensors' names from the class, the original's as well.
                m.__class__ = type(m).__bases__[0]
                del m._modules["parametrizations"]
                for name, value in values.items():
                    m.register_parameter(name, nn.Parameter(value))
            for hook in list(m._forward_pre_hooks.values()):
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(m, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(m, hook.name)


def on_cpu(x: Tensor) -> Tensor:
    """On the CPU; floats in float32, bytes as they are."""
    return x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu()
