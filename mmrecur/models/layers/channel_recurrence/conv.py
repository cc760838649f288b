"""The channel-wise recurrent convolutional (CRC) layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.channel_recurrence.inference import fuse_steps

NormLayer = Callable[[int], nn.Module]

#: Activations of Section 2.1.2.
ACTIVATIONS = ('relu', 'shared_bn', 'separate_bn', 'linear')


class ChannelRecurrentConv(nn.Module):
    r"""Channel-wise recurrent convolutional (CRC) layer.

    Retsinas et al., *RecNets: Channel-wise Recurrent Convolutional Neural Networks*, BMVC 2019,
    https://arxiv.org/abs/1905.11910, Section 2.1. The layer reads d segments :math:`x_i` of the input's
    channels in turn, starting with :math:`h_{-1} = 0`:

    .. math:: h_i = \sigma_i(W_x * x_i + W_h * h_{i-1} + b)

    It returns :math:`(o_0, \dots, o_{d-1})`, where :math:`o_i = h_i` except for the linear layer.
    ``activation`` selects :math:`\sigma_i` and b:

    - ``'relu'``: ReLU; b in every step (Equation 2).
    - ``'shared_bn'``: a norm shared by all steps, then ReLU; no b.
    - ``'separate_bn'``: a norm for each step, then ReLU; no b (Equation 3).
    - ``'linear'``: the identity; b in every step but the first (Equation 4). :math:`o_i` is a norm for each
      step and ReLU of :math:`h_i`.

    Equation 5 of the paper writes the linear layer as one convolution of all segments, with kernels that
    grow by ``kernel_size_h - 1`` in each step. It also has b in the first step. Apart from that the two agree
    only where no kernel reaches over the border, because the recurrence pads each :math:`h_i` with zeros. The
    layer therefore always computes the recurrence.

    ``recurrent=False`` gives the grouped convolution of Section 3.1.4. It has the same parameters and
    convolves each segment with the product of both kernels, :math:`o_i = \sigma_i((W_x * W_h) * x_i + b)`.

    Args:
        in_channels (int): Channels S_in of an input segment.
        out_channels (int): Channels S_out of an output segment.
        steps (int): Number of segments d.
        kernel_size_x (int): Kernel size of W_x, 1 or 3. Defaults to 3.
        kernel_size_h (int): Kernel size of W_h, 1 or 3. Defaults to 3.
        activation (str): ``'relu'``, ``'shared_bn'``, ``'separate_bn'`` or ``'linear'``, see above. Defaults
            to ``'separate_bn'``.
        recurrent (bool): Whether a step reads the step before. Defaults to True.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the allowed values.

    Example:
        >>> import torch
        >>> layer = ChannelRecurrentConv(in_channels=8, out_channels=32, steps=10)
        >>> layer(torch.rand(1, 80, 16, 16)).shape
        torch.Size([1, 320, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        steps: int,
        kernel_size_x: int = 3,
        kernel_size_h: int = 3,
        activation: str = 'separate_bn',
        recurrent: bool = True,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_int('in_channels', in_channels, 1)
        check_int('out_channels', out_channels, 1)
        check_int('steps', steps, 1)
        check_choice('kernel_size_x', kernel_size_x, (1, 3))
        check_choice('kernel_size_h', kernel_size_h, (1, 3))
        check_choice('activation', activation, ACTIVATIONS)
        check_flag(recurrent=recurrent)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.steps = steps
        self.activation = activation
        self.recurrent = recurrent
        self.conv_x = nn.Conv2d(
            in_channels, out_channels, kernel_size_x, padding=kernel_size_x // 2, bias=activation == 'relu'
        )
        self.conv_h = None
        if steps > 1 or not recurrent:  # the recurrence of a single step never reads h
            self.conv_h = nn.Conv2d(
                out_channels,
                out_channels,
                kernel_size_h,
                padding=kernel_size_h // 2,
                bias=activation == 'linear',
            )
        num_norms = {'relu': 0, 'shared_bn': 1}.get(activation, steps)
        self.norms = nn.ModuleList(norm_layer(out_channels) for _ in range(num_norms))
        self.relu = nn.ReLU(inplace=True)
        #: Inference form: convolutions of the steps. The last one serves all remaining steps.
        self.step_convs: nn.ModuleList | None = None

    def segments(self, x: Tensor) -> Iterator[Tensor]:
        """Compute the output one segment at a time, so that it is never held as a whole.

        Args:
            x (Tensor): Shape (N, d * S_in, H, W).

        Yields:
            Tensor: Each output segment, shape (N, S_out, H, W). The caller must not modify it, because the
            next step reads it.
        """
        # splitting by all sizes rejects an input with another number of channels, which slicing does not
        parts = x.split([self.in_channels] * self.steps, dim=1)
        if not self.recurrent:
            yield from self._grouped(parts)
            return
        h = None
        for i in range(self.steps):  # torch.fx cannot iterate over the parts
            total = self._sum(parts[i], h, i)
            output = self._activate(total, i)
            h = total if self.activation == 'linear' else output
            yield output

    def forward(self, x: Tensor) -> Tensor:
        """Compute the whole output.

        Args:
            x (Tensor): Shape (N, d * S_in, H, W).

        Returns:
            Tensor: Shape (N, d * S_out, H, W).
        """
        return torch.cat(list(self.segments(x)), dim=1)

    def _sum(self, x: Tensor, h: Tensor | None, step: int) -> Tensor:
        """Return ``W_x * x + W_h * h + b`` of a step; ``h`` is None in the first."""
        if self.step_convs is not None:
            conv = self.step_convs[min(step, len(self.step_convs) - 1)]
            return conv(x) if h is None else conv(x, h)
        total = self.conv_x(x)
        if h is not None:
            total += self.conv_h(h)
        return total

    def _activate(self, x: Tensor, step: int) -> Tensor:
        if len(self.norms):
            x = self.norms[min(step, len(self.norms) - 1)](x)
        return self.relu(x)

    def _grouped(self, parts: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """Compute the output segments of the layer without recurrence."""
        if self.conv_h is None:  # inference form
            yield from (self._activate(self._sum(parts[i], None, i), i) for i in range(self.steps))
            return
        kernel, bias, padding = self.composed()
        for i in range(self.steps):
            yield self._activate(F.conv2d(parts[i], kernel, bias, padding=padding), i)

    def composed(self) -> tuple[Tensor, Tensor | None, int]:
        """Compose both convolutions of the layer without recurrence into one.

        Returns:
            tuple[Tensor, Tensor or None, int]: The kernel ``W_x * W_h`` of shape (S_out, S_in, K, K) with
            ``K = kernel_size_x + kernel_size_h - 1``, the bias and the padding.
        """
        reach = self.conv_h.kernel_size[0] - 1
        # conv2d correlates; the flip makes it a convolution of the two kernels
        kernel = F.conv2d(self.conv_x.weight.transpose(0, 1), self.conv_h.weight.flip(2, 3), padding=reach)
        bias = self.conv_x.bias if self.conv_h.bias is None else self.conv_h.bias
        return kernel.transpose(0, 1), bias, self.conv_x.padding[0] + self.conv_h.padding[0]

    def switch_to_deploy(self) -> None:
        """Fuse the norms and join the convolutions of a step; see :func:`fuse_steps`."""
        fuse_steps(self)
