"""The gate that sends a sample through a loop once more or out of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.checks import check_int


class GumbelGate(nn.Module):
    """Decide for each sample whether it passes.

    Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019, after Veit and Belongie, *Convolutional
    Networks with Adaptive Inference Graphs*, https://arxiv.org/abs/1711.11503. Two scores are computed from
    the means of the channels, ``fc2(relu(fc1(mean(x))))``, for leaving and for passing. In training Gumbel
    noise is added to both, the larger one wins, and the gradient is that of the softmax of the noisy scores
    (straight-through). In evaluation the larger score wins: the same image takes the same way every time.

    Args:
        channels (int): Channels of the input.
        hidden_channels (int): Channels of the hidden layer; 0 for a single linear layer. Defaults to 16.
        initial_rate (float): Share of samples that pass before training, through the bias; with a last
            weight close to zero they hardly differ. Defaults to 0.85.
        temperature (float): Of the softmax. Defaults to 1.0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> gate = GumbelGate(64)
        >>> gate.eval()(torch.rand(2, 64, 7, 7))
        tensor([True, True])
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int = 16,
        initial_rate: float = 0.85,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_int('channels', channels, 1)
        check_int('hidden_channels', hidden_channels, 0)
        check_rate('initial_rate', initial_rate)
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not temperature > 0:
            raise ValueError(f'temperature={temperature!r}, allowed: a positive number')
        self.initial_rate = initial_rate
        self.temperature = temperature
        self.fc1 = nn.Linear(channels, hidden_channels) if hidden_channels else None
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(hidden_channels or channels, 2)
        nn.init.normal_(self.fc2.weight, std=1e-3)
        nn.init.zeros_(self.fc2.bias)
        with torch.no_grad():
            self.fc2.bias[1] = math.log(initial_rate / (1 - initial_rate))

    def scores(self, x: Tensor) -> Tensor:
        """Compute the scores.

        Args:
            x (Tensor): Shape (N, channels, H, W).

        Returns:
            Tensor: Scores of leaving and of passing, shape (N, 2).
        """
        means = x.mean((2, 3))
        return self.fc2(means if self.fc1 is None else self.relu(self.fc1(means)))

    def forward(self, x: Tensor) -> Tensor:
        """Decide.

        Args:
            x (Tensor): Shape (N, channels, H, W).

        Returns:
            Tensor: Shape (N,). In training 1 for samples that pass and 0 for the others, exactly, with the
            gradient of a probability; in evaluation a mask of booleans.
        """
        scores = self.scores(x)
        if not self.training:
            return scores[:, 1] > scores[:, 0]
        scores = scores if scores.dtype == torch.float64 else scores.float()
        noise = -torch.empty_like(scores).exponential_().log()
        noisy = scores + noise
        margin = noisy[:, 1] - noisy[:, 0]
        soft = torch.sigmoid(margin / self.temperature)  # a softmax of two
        return (margin > 0).to(soft) + (soft - soft.detach())


def check_rate(name: str, value: float) -> None:
    """Raise unless ``value`` is a number between 0 and 1.

    Args:
        name (str): The argument's name, for the message.
        value (float): What was given.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f'{name}={value!r}, allowed: a number between 0 and 1, both excluded')
