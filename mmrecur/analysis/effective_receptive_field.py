"""What the output of a CRC layer or a RecNet has seen: in which segments, and how far around.

Section 2.2 of the RecNet paper, https://arxiv.org/abs/1905.11910: the first output segment of a CRC layer has
seen the first input segment only, the last one all of them. The size of the effective receptive field
after Luo et al., *Understanding the Effective Receptive Field in Deep Convolutional Neural Networks*,
NeurIPS 2016, https://arxiv.org/abs/1701.04128: the squared gradient of a central output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmrecur.models.layers.channel_recurrence.conv import ChannelRecurrentConv
from mmrecur.models.layers.common.modes import evaluation_mode

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SegmentView:
    """What each output segment of a CRC layer sees of the input, at its centre.

    Attributes:
        name (str): Name, for plots.
        influence (np.ndarray): Shape (d, d); in row i and column j the share of input segment j in the
            squared gradient of output segment i. Rows sum to 1.
        radius (np.ndarray): Shape (d,); root of the mean squared distance in pixels at which output
            segment i sees, weighted with the squared gradient.
    """

    name: str
    influence: np.ndarray
    radius: np.ndarray


def gradient_energy(
    function: Function, x: Tensor, start: int = 0, stop: int | None = None, samples: int = 8
) -> Tensor:
    """Mean squared gradient of a central output pixel with respect to the input.

    Args:
        function (Callable): Map (1, C, H, W) -> (1, C_out, H', W'), without state.
        x (Tensor): Inputs, shape (N, C, H, W), one after another.
        start (int): First output channel to count. Defaults to 0.
        stop (int, optional): One behind the last. Defaults to all.
        samples (int): Random signs for the sum over the output's channels, whose mean is the sum of
            the squared gradients of each. Defaults to 8.

    Returns:
        Tensor: Shape (C, H, W).
    """
    generator = torch.Generator().manual_seed(0)
    energy = torch.zeros_like(x[0])
    for image in x.split(1):
        image = image.detach().requires_grad_()
        output = function(image)
        centre = output[0, start:stop, output.size(2) // 2, output.size(3) // 2]
        for _ in range(samples):
            signs = torch.randint(0, 2, centre.shape, generator=generator) * 2 - 1
            (grad,) = torch.autograd.grad((centre * signs.to(centre)).sum(), image, retain_graph=True)
            energy += grad[0].square()
    return energy / (samples * len(x))


def radius_of(energy: Tensor) -> float:
    """Root of the mean squared distance of a field from its own centre pixel.

    Args:
        energy (Tensor): Weights, shape (H, W) or (C, H, W), whose sum is not zero.

    Returns:
        float: In pixels.
    """
    field = energy.double().reshape(-1, *energy.shape[-2:]).sum(0)
    rows = torch.arange(field.size(0), device=field.device) - field.size(0) // 2
    columns = torch.arange(field.size(1), device=field.device) - field.size(1) // 2
    distance = rows.square()[:, None] + columns.square()[None]
    return float(((field * distance).sum() / field.sum()).sqrt())


def segment_view(
    layer: ChannelRecurrentConv, size: int | None = None, num_inputs: int = 4, name: str = ''
) -> SegmentView:
    """What each output segment of a CRC layer sees.

    Args:
        layer (ChannelRecurrentConv): The layer; measured in evaluation mode and left as it is.
        size (int, optional): Height and width of the random inputs. Defaults to what holds the widest
            receptive field, 2 d + 3.
        num_inputs (int): Number of inputs, from a normal distribution. Defaults to 4.
        name (str): Name, for plots. Defaults to none.

    Returns:
        SegmentView: Shares and radii.

    Raises:
        ValueError: If an output segment sees nothing, since a ReLU is closed everywhere.
    """
    parameter = next(layer.parameters())
    size = 2 * layer.steps + 3 if size is None else size
    x = torch.randn(
        num_inputs, layer.steps * layer.in_channels, size, size, generator=torch.Generator().manual_seed(0)
    ).to(parameter)
    influence, radius = [], []
    with evaluation_mode(layer):
        for i in range(layer.steps):
            first = i * layer.out_channels
            energy = gradient_energy(layer, x, first, first + layer.out_channels)
            if not energy.sum() > 0:
                raise ValueError(
                    f'output segment {i} of {name or "layer"} has no gradient: its ReLU is closed'
                )
            shares = energy.reshape(layer.steps, -1).sum(1)
            influence.append((shares / shares.sum()).cpu().numpy())
            radius.append(radius_of(energy))
    return SegmentView(name, np.array(influence), np.array(radius))
