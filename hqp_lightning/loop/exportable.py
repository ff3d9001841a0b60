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

__all__ = ["LAYOUTS", "Exportable", "exportable", "laid_out", "on_cpu", "one_sample"]

LAYOUTS = ("NCHW", "NHWC")
"""Of pictures in the files: as PyTorch has them, or as cameras and decoders give them."""


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
        layout: one of `LAYOUTS`.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    returned: Any
    paths: tuple[Path, ...]
    layout: str = LAYOUTS[0]

    @property
    def prefix(self) -> str:
        """Of the names that the network's modules have in ``module``."""
        return "network." if isinstance(self.module, OneTensor | Tensors) else ""

    def put_back(self, values: Sequence[Tensor]) -> Any:
        """Outputs in the structure that validation expects; what is not written is absent there."""
        return put_back(self.returned, self.paths, values)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """A tensor of four axes, that a network takes, as the file takes it; any other as it is.

    Examples:
        >>> laid_out(torch.zeros(1, 3, 4, 5), "NHWC").shape, laid_out(torch.zeros(1, 7), "NHWC").shape
        (torch.Size([1, 4, 5, 3]), torch.Size([1, 7]))
    """
    return x.permute(0, 2, 3, 1).contiguous() if layout == "NHWC" and x.dim() == 4 else x


def _from_nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


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


def exportable(
    network: nn.Module, call: Call, wanted: Sequence[str] | None = None, layout: str = LAYOUTS[0]
) -> Exportable:
    """A float32 copy of the network on the CPU, a function of the tensors of the call.

    A copy, so that any precision of the training can be written, and what was compiled or hooked in stays behind;
    weights that a parametrization computes (weight_norm, spectral_norm) are plain in it, and can be quantized. One
    tensor alone is called ``input`` or ``logits``; others after parameters of ``forward`` and the keys of what it
    returns.

    Args:
        network: as it is.
        call: what it receives, of one sample.
        wanted: names of the outputs to write; None: all.
        layout: of inputs with four axes, one of `LAYOUTS`.

    Raises:
        ConfigurationError: there is no tensor, one without a batch axis, no output of a wanted name, or no input of
            four axes to lay out as NHWC.
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
    change = {"change": _from_nhwc} if layout == "NHWC" else {}
    if change and not any(x.dim() == 4 for x in tensors):
        shown = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise ConfigurationError(f"layout='NHWC' is of inputs with four axes; {kind} is called with {shown}.")
    if len(tensors) == 1 and list(kept.values()) == [()]:
        plain = not change and len(call.args) == 1 and call.args[0] is tensors[0] and not call.kwargs
        module = twin if plain else OneTensor(twin, call, **change).eval()
    else:
        module = Tensors(twin, call, tuple(kept.values()), **change).eval()
    example = tuple(laid_out(x, layout) for x in tensors)
    return Exportable(module, example, inputs, tuple(kept), returned, tuple(kept.values()), layout)


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
