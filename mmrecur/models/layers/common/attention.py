"""Attention on residuals: squeeze-and-excitation, efficient channel attention, CBAM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmrecur.checks import check_flag, check_int
from mmrecur.models.layers.common.fuse import fuse_norm


def check_kernel_size(kernel_size: int) -> None:
    """Raise a ValueError unless ``kernel_size`` is an odd positive integer."""
    check_int('kernel_size', kernel_size, 1)
    if kernel_size % 2 == 0:
        raise ValueError(f'kernel_size={kernel_size}, allowed: an odd integer')


class ChannelGate(nn.Module):
    """Base of channel attention: scales each channel by a gate computed from the spatial means."""

    def gate(self, mean: Tensor) -> Tensor:
        """Compute the gate of each channel.

        Args:
            mean (Tensor): Spatial means, shape (N, C).

        Returns:
            Tensor: Values in (0, 1), shape (N, C).
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Same shape.
        """
        return x * self.gate(x.mean((2, 3))).unsqueeze(-1).unsqueeze(-1)


class SqueezeExcite(ChannelGate):
    """Squeeze-and-excitation, `Hu et al. 2018 <https://arxiv.org/abs/1709.01507>`_.

    Args:
        channels (int): Channels of the map.
        reduction (int): The hidden layer has ``channels // reduction`` units, at least one.
            Defaults to 16.
        bias (bool): Give both layers biases, as in the published SE-ResNets. The RLA-ResNets of the paper
            have none. Defaults to False.
    """

    def __init__(self, channels: int, reduction: int = 16, bias: bool = False) -> None:
        super().__init__()
        check_int('reduction', reduction, 1)
        check_flag(bias=bias)
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def gate(self, mean: Tensor) -> Tensor:
        """See :meth:`ChannelGate.gate`."""
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))


class ECA(ChannelGate):
    """Efficient channel attention, `Wang et al. 2020 <https://arxiv.org/abs/1910.03151>`_.

    Args:
        kernel_size (int): Odd size of the 1-D convolution over neighbouring channels. Defaults to 3.
    """

    def __init__(self, kernel_size: int = 3) -> None:
        super().__init__()
        check_kernel_size(kernel_size)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def gate(self, mean: Tensor) -> Tensor:
        """See :meth:`ChannelGate.gate`."""
        return torch.sigmoid(self.conv(mean.unsqueeze(1)).squeeze(1))


class CBAM(nn.Module):
    r"""Convolutional block attention, `Woo et al. 2018 <https://arxiv.org/abs/1807.06521>`_.

    First the channels are scaled (Equation 2), then the pixels (Equation 3):

    .. math::
        x &\leftarrow x \cdot \sigma(\mathrm{MLP}(\mathrm{avg}(x)) + \mathrm{MLP}(\max(x)))\\
        x &\leftarrow x \cdot \sigma(\mathrm{conv}_{7 \times 7}(\mathrm{cat}(\mathrm{avg}(x), \max(x))))

    The first line averages and maximises over the pixels, the second over the channels. With the default
    arguments, which leave out biases as in SE, the number of parameters is that of Table 3 in the RLA paper.
    The code of Woo et al. has ``bias=True, spatial_norm=True`` (28.09 M parameters with ResNet-50, as in
    their paper).

    Args:
        channels (int): Channels of the map.
        reduction (int): The MLP's hidden layer has ``channels // reduction`` units, at least one.
            Defaults to 16.
        kernel_size (int): Odd size of the spatial convolution. Defaults to 7.
        bias (bool): Give the MLP biases. Defaults to False.
        spatial_norm (bool): Add a norm after the spatial convolution. Defaults to False.
        norm_layer (Callable): Builds this norm from a number of channels. Defaults to ``nn.BatchNorm2d``.

    Raises:
        TypeError, ValueError: If an argument is wrong.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        bias: bool = False,
        spatial_norm: bool = False,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_int('reduction', reduction, 1)
        check_kernel_size(kernel_size)
        check_flag(bias=bias, spatial_norm=spatial_norm)
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Linear(channels, hidden, bias)
        self.fc2 = nn.Linear(hidden, channels, bias)
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.spatial_norm = norm_layer(1) if spatial_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels and the pixels.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Same shape.
        """
        mean, peak = x.mean((2, 3)), x.amax((2, 3))
        gate = self.fc2(torch.relu(self.fc1(mean))) + self.fc2(torch.relu(self.fc1(peak)))
        x = x * torch.sigmoid(gate).unsqueeze(-1).unsqueeze(-1)
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial_norm(self.spatial(pooled)))

    def switch_to_deploy(self) -> None:
        """Fuse the norm into the spatial convolution."""
        self.spatial, self.spatial_norm = fuse_norm(self.spatial, self.spatial_norm)
