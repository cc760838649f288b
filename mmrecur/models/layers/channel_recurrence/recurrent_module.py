"""The recurrent module of RecNet: a CRC layer and the transition block that reads it."""

from __future__ import annotations

from torch import Tensor, nn

from mmrecur.checks import check_flag, check_int
from mmrecur.models.layers.channel_recurrence.conv import ChannelRecurrentConv, NormLayer
from mmrecur.models.layers.channel_recurrence.inference import fuse_output_norms
from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.fast_paths import pointwise_sum
from mmrecur.models.layers.common.fuse import fuse_norm, is_fusible


class RecurrentModule(nn.Module):
    r"""A CRC layer, followed by the transition block: 1x1 convolution, norm and ReLU.

    Retsinas et al., https://arxiv.org/abs/1905.11910, Section 2.2. The 1x1 convolution reads each output
    segment of the layer as soon as it is computed, :math:`y = \sum_i A_i h_i` (Equation 7), in training as
    well. The wide output of the layer is therefore never held in memory. On a CPU the maps are in channels
    last layout, which makes the convolutions and the sum faster.

    Args:
        crc (ChannelRecurrentConv): The CRC layer.
        out_channels (int): Channels of the output.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the allowed values.

    Example:
        >>> import torch
        >>> module = RecurrentModule(ChannelRecurrentConv(8, 32, steps=10), out_channels=160)
        >>> module(torch.rand(1, 80, 16, 16)).shape
        torch.Size([1, 160, 16, 16])
    """

    def __init__(
        self,
        crc: ChannelRecurrentConv,
        out_channels: int,
        norm_layer: NormLayer = nn.BatchNorm2d,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        check_int('out_channels', out_channels, 1)
        check_flag(with_cp=with_cp)
        self.crc = crc
        self.conv = nn.Conv2d(crc.steps * crc.out_channels, out_channels, 1, bias=False)
        self.norm = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Compute the module.

        Args:
            x (Tensor): Shape (N, d * S_in, H, W).

        Returns:
            Tensor: Shape (N, out_channels, H, W).
        """
        return run_step(self, self.with_cp, self._compute, x)

    def _compute(self, x: Tensor) -> Tensor:
        weights = self.conv.weight.split(self.crc.out_channels, dim=1)
        return self.relu(self.norm(pointwise_sum(self.crc.segments(x), weights, self.conv.bias)))

    def switch_to_deploy(self) -> None:
        """Fuse the norms; a second call does nothing."""
        self.crc.switch_to_deploy()
        if self.crc.activation == 'linear' and all(map(is_fusible, self.crc.norms)):
            fuse_output_norms(self)
        self.conv, self.norm = fuse_norm(self.conv, self.norm)
