"""Effective receptive field of the output segments of a CRC layer, across segments and pixels.

The first output segment of a CRC layer depends on the first input segment only, the last one on all of them
(Section 2.2 of the RecNet paper, https://arxiv.org/abs/1905.11910). The receptive field is measured by the
squared gradient of a central output pixel, after Luo et al., *Understanding the Effective Receptive Field in
Deep Convolutional Neural Networks*, NeurIPS 2016, https://arxiv.org/abs/1701.04128.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmrecur.models.layers.channel_recurrence import ChannelRecurrentConv
from mmrecur.models.layers.common.modes import evaluation_mode

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SegmentView:
    """Effective receptive field of each output segment of a CRC layer.

    Attributes:
        name (str): Name of the layer, for plots.
        influence (np.ndarray): Shape (d, d). Row i, column j holds the share of input segment j in the
            squared gradient of output segment i. Rows sum to 1.
        radius (np.ndarray): Shape (d,). Root mean square distance in pixels from the centre of output segment
            i, weighted with the squared gradient.
    """

    name: str
    influence: np.ndarray
    radius: np.ndarray


def gradient_energy(
    function: Function, x: Tensor, start: int = 0, stop: int | None = None, samples: int = 8
) -> Tensor:
    """Compute the mean squared gradient of the central output pixel with respect to the input.

    The squared gradients of all output channels are summed. The sum is estimated without bias from the
    gradients of the channels added with random signs.

    Args:
        function (Callable): Stateless map (1, C, H, W) -> (1, C_out, H', W').
        x (Tensor): Inputs, shape (N, C, H, W). The function runs on one at a time.
        start (int): First output channel. Defaults to 0.
        stop (int, optional): Output channel after the last. Defaults to None: all.
        samples (int): Number of random choices of signs. Defaults to 8.

    Returns:
        Tensor: Mean over the inputs, shape (C, H, W).
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
    """Compute the root mean square distance of a field from its central pixel.

    Args:
        energy (Tensor): Weights, shape (H, W) or (C, H, W), with a sum other than zero.

    Returns:
        float: Distance in pixels.
    """
    field = energy.double().reshape(-1, *energy.shape[-2:]).sum(0)
    rows = torch.arange(field.size(0), device=field.device) - field.size(0) // 2
    columns = torch.arange(field.size(1), device=field.device) - field.size(1) // 2
    distance = rows.square()[:, None] + columns.square()[None]
    return float(((field * distance).sum() / field.sum()).sqrt())


def segment_view(
    layer: ChannelRecurrentConv, size: int | None = None, num_inputs: int = 4, name: str = ''
) -> SegmentView:
    """Measure the effective receptive field of each output segment of a CRC layer.

    Args:
        layer (ChannelRecurrentConv): The layer. It runs in evaluation mode and is not changed.
        size (int, optional): Height and width of the inputs. Defaults to None: 2 d + 3, which holds the
            widest receptive field.
        num_inputs (int): Number of inputs, drawn from a normal distribution. Defaults to 4.
        name (str): Name of the layer, for plots and messages. Defaults to ''.

    Returns:
        SegmentView: Shares and radii.

    Raises:
        ValueError: If an output segment has no gradient because its ReLU is zero everywhere.
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
                raise ValueError(f'output segment {i} of {name or "layer"} has no gradient: its ReLU is zero')
            shares = energy.reshape(layer.steps, -1).sum(1)
            influence.append((shares / shares.sum()).cpu().numpy())
            radius.append(radius_of(energy))
    return SegmentView(name, np.array(influence), np.array(radius))
