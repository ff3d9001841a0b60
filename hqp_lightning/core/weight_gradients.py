"""Per-sample weight gradients of one layer, squared and summed, one sample's in memory at a time."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hqp_lightning.errors import ConfigurationError

__all__ = ["squared_sums"]


def squared_sums(layer: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Return Σₙ (∂Lₙ/∂w)² for the weight and the bias of a layer.

    A linear layer's gradient for one sample is *Gᵀ X* with one row per token; a convolution's is the same
    with its windows as tokens (im2col).

    Args:
        layer: a ``Conv2d`` (any stride, padding, dilation and groups) or a ``Linear``.
        x: its input, ``(N, C, H, W)``, or ``(N, ..., features)`` for a linear layer.
        grad: the gradient of the summed loss at its output.

    Returns:
        ``"weight"`` and, if there is one, ``"bias"``, of the parameters' shapes.

    Raises:
        ConfigurationError: another kind of layer.

    Examples:
        >>> import torch
        >>> layer, x, grad = nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [0.5]])
        >>> squared_sums(layer, x, grad)
        {'weight': tensor([[3.2500, 8.0000]]), 'bias': tensor([1.2500])}
    """
    if isinstance(layer, nn.Conv2d):
        weight = _depthwise(layer, x, grad) if layer.groups == layer.in_channels > 1 else _convolution(layer, x, grad)
        bias = grad.sum((2, 3))
    elif isinstance(layer, nn.Linear):
        weight = grad.square().t() @ x.square() if grad.dim() == 2 else _tokens(x.flatten(1, -2), grad.flatten(1, -2))
        bias = grad.flatten(1, -2).sum(1) if grad.dim() > 2 else grad
    else:
        raise ConfigurationError(
            f"the weight estimator knows Conv2d and Linear, not {type(layer).__name__}; use estimator='gate' instead."
        )
    return {"weight": weight, "bias": bias.square().sum(0)} if layer.bias is not None else {"weight": weight}


def _tokens(x: Tensor, grad: Tensor) -> Tensor:
    weight = x.new_zeros(grad.shape[-1], x.shape[-1])
    for tokens, g in zip(x, grad, strict=True):
        _add_square_(weight, g.t() @ tokens)
    return weight


def _convolution(layer: nn.Conv2d, x: Tensor, grad: Tensor) -> Tensor:
    x, groups, weight = _padded(layer, x), layer.groups, grad.new_zeros(layer.weight.shape)
    for image, g in zip(x.split(1), grad, strict=True):
        if layer.kernel_size == (1, 1):
            windows = image[:, :, :: layer.stride[0], :: layer.stride[1]]
        else:
            windows = F.unfold(image, layer.kernel_size, layer.dilation, stride=layer.stride)
        tokens = windows.reshape(groups, -1, g.shape[1:].numel()).transpose(1, 2)
        _add_square_(weight, (g.reshape(groups, -1, tokens.shape[1]) @ tokens).view(weight.shape))
    return weight


def _add_square_(total: Tensor, value: Tensor) -> None:
    # Sample by sample: windows and gradient stay in the cache, which took a third of the time of whole batches.
    total.addcmul_(value, value)


def _depthwise(layer: nn.Conv2d, x: Tensor, grad: Tensor) -> Tensor:
    """A filter that reads one channel: its gradient is the correlation of input and output gradient.

    One convolution forms all of them, with samples times filters as groups; stride and dilation change places.
    """
    multiplier = layer.out_channels // layer.in_channels
    x = _padded(layer, x.repeat_interleave(multiplier, 1) if multiplier > 1 else x)
    pairs = grad.shape[0] * grad.shape[1]
    image, kernel = x.reshape(1, pairs, *x.shape[2:]), grad.reshape(pairs, 1, *grad.shape[2:])
    out = F.conv2d(image, kernel, stride=layer.dilation, dilation=layer.stride, groups=pairs)
    rows, columns = layer.kernel_size  # a stride that does not fill the input leaves more
    return out[0, :, :rows, :columns].reshape(len(grad), *layer.weight.shape).square().sum(0)


def _padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    # torch's own resolution of padding="same" and of the padding modes
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, padding, mode=mode) if any(padding) else x
