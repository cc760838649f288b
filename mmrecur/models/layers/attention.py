"""Channel attention: squeeze-and-excitation and efficient channel attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_flag, check_int


class ChannelGate(nn.Module):
    """Scales every channel of a map by a gate computed from the channels' spatial means."""

    def gate(self, mean: Tensor) -> Tensor:
        """Gate of every channel.

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
        bias (bool): Biases in both layers, which the published plain SE-ResNets have and the RLA-ResNets
            of the paper have not. Defaults to False.
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
        check_int('kernel_size', kernel_size, 1)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size={kernel_size}, allowed: an odd integer')
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def gate(self, mean: Tensor) -> Tensor:
        """See :meth:`ChannelGate.gate`."""
        return torch.sigmoid(self.conv(mean.unsqueeze(1)).squeeze(1))
