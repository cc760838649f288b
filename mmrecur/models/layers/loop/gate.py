"""The gate of a loop: it lets each sample pass to another iteration or leave the loop."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmrecur.checks import check_int


class GumbelGate(nn.Module):
    """Decide for each sample whether it passes.

    Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019, after Veit and Belongie, *Convolutional
    Networks with Adaptive Inference Graphs*, https://arxiv.org/abs/1711.11503.

    The gate computes two scores, one for leaving and one for passing, from the mean of each channel:
    ``fc2(relu(fc1(mean(x))))``. In training it adds Gumbel noise to both scores. The larger score wins, and
    the gradient is that of the softmax of the noisy scores (straight-through estimator). In evaluation there
    is no noise, so that the decision depends on the image alone.

    Args:
        channels (int): Channels of the input.
        hidden_channels (int): Channels of the hidden layer; 0 for a single linear layer. Defaults to 16.
        initial_rate (float): Probability of passing before training, set by the bias. It is nearly the same
            for all samples, because the weight of the last layer starts close to zero. Defaults to 0.85.
        temperature (float): Temperature of the softmax. Defaults to 1.0.

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
        """Compute the scores without noise.

        Args:
            x (Tensor): Shape (N, channels, H, W).

        Returns:
            Tensor: Shape (N, 2): the score of leaving and the score of passing.
        """
        means = x.mean((2, 3))
        return self.fc2(means if self.fc1 is None else self.relu(self.fc1(means)))

    def forward(self, x: Tensor) -> Tensor:
        """Decide for each sample.

        Args:
            x (Tensor): Shape (N, channels, H, W).

        Returns:
            Tensor: Shape (N,). In training exactly 1 for samples that pass and 0 for the others, with the
            gradient of a probability. In evaluation a boolean mask, True for samples that pass.
        """
        scores = self.scores(x)
        if not self.training:
            return scores[:, 1] > scores[:, 0]
        scores = scores if scores.dtype == torch.float64 else scores.float()
        noise = -torch.empty_like(scores).exponential_().log()
        noisy = scores + noise
        margin = noisy[:, 1] - noisy[:, 0]
        soft = torch.sigmoid(margin / self.temperature)  # the softmax of two scores
        return (margin > 0).to(soft) + (soft - soft.detach())


def check_rate(name: str, value: float) -> None:
    """Raise a ValueError unless a rate is a number between 0 and 1.

    Args:
        name (str): Name of the argument, for the message.
        value (float): Value to check.

    Raises:
        ValueError: If ``value`` is not a number, or not strictly between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f'{name}={value!r}, allowed: a number between 0 and 1, both excluded')


def expected_iterations(rate: float, num_iterations: int, first_gated: int = 0) -> float:
    """Return the average number of iterations of a loop if its gate passes the same share every time.

    Args:
        rate (float): Share t of the samples reaching the gate that it lets pass.
        num_iterations (int): Maximum number of iterations l.
        first_gated (int): Index f of the first iteration that the gate decides on. Defaults to 0.

    Returns:
        float: ``f + t + t**2 + ... + t**(l - f)``.

    Example:
        >>> round(7 * expected_iterations(0.7, 3) + expected_iterations(0.7, 2), 3)  # DR-ResNet 53
        11.921
    """
    return first_gated + sum(rate**k for k in range(1, num_iterations - first_gated + 1))
