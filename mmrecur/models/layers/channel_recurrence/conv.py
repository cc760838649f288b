"""Channel-wise recurrent convolution: a recurrent network that runs along the channels of a map.

Retsinas, Elafrou, Goumas and Maragos, *RecNets: Channel-wise Recurrent Convolutional Neural Networks*,
BMVC 2019, https://arxiv.org/abs/1905.11910, Section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.common.fast_paths import pointwise_sum
from mmrecur.models.layers.common.fuse import fuse_norm, fuse_norm_of_sum, is_fusible
from mmrecur.models.layers.common.fuse_preact import fuse_preactivation

NormLayer = Callable[[int], nn.Module]

#: Non-linearities of Section 2.1.2.
ACTIVATIONS = ('relu', 'shared_bn', 'separate_bn', 'linear')


class ChannelRecurrentConv(nn.Module):
    r"""Channel-wise recurrent convolutional (CRC) layer (Section 2.1).

    The input's channels are d segments :math:`x_i`, read in turn:

    .. math:: h_i = \sigma_i(W_x * x_i + W_h * h_{i-1} + b), \qquad h_{-1} = 0,

    and the output is :math:`(o_0, \dots, o_{d-1})`, where :math:`o_i = h_i` but for the linear layer.
    Which :math:`\sigma_i` and b there are depends on ``activation``:

    - ``'relu'``: ReLU, b in every step (Equation 2).
    - ``'shared_bn'``: one norm and ReLU for all steps, no b.
    - ``'separate_bn'``: a norm for each step and ReLU, no b (Equation 3).
    - ``'linear'``: none; b in every step but the first (Equation 4; Equation 5 has it in the first as well).
      :math:`o_i` is ReLU of the norm of :math:`h_i`, the norm "at the output" in d parts.

    Equation 5 writes the linear layer as one convolution of all segments with kernels that grow by
    ``kernel_size_h - 1`` a step. The two agree where no kernel reaches over the border: there the
    recurrence pads each :math:`h_i` with zeros, which no single convolution does. So only a 1x1
    :math:`W_h` may be computed that way, at (d + 1) / 2 times the work of :math:`W_x`.

    Without recurrence (Section 3.1.4) the layer has the same parameters and convolves each segment with
    the product of both kernels, :math:`h_i = \sigma_i((W_x * W_h) * x_i)`.

    Args:
        in_channels (int): Channels S_in of a segment of the input.
        out_channels (int): Channels S_out of a segment of the output.
        steps (int): Number of segments d.
        kernel_size_x (int): Kernel size of W_x, 1 or 3. Defaults to 3.
        kernel_size_h (int): Kernel size of W_h, 1 or 3. Defaults to 3.
        activation (str): See above. Defaults to ``'separate_bn'``.
        recurrent (bool): Whether W_h reads the step before. Defaults to True.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.

    Raises:
        TypeError, ValueError: If an argument is wrong; the message says what is allowed.

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
        if steps > 1 or not recurrent:  # a single step has nothing before it
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
        #: Of the inference form: what the first step and each later one compute; the last serves the rest.
        self.step_convs: nn.ModuleList | None = None

    def segments(self, x: Tensor) -> Iterator[Tensor]:
        """Compute the output a step at a time, so that it need not exist as a whole.

        Args:
            x (Tensor): Shape (N, d * S_in, H, W).

        Yields:
            Tensor: The segments of the output, shape (N, S_out, H, W) each. They must not be changed.
        """
        # sizes in full: x with too many channels is an error, not cut off
        parts = x.split([self.in_channels] * self.steps, dim=1)
        composed = None if self.recurrent or self.conv_h is None else self.composed_kernel()
        h = None
        for i in range(self.steps):
            h = self._sum(parts[i], h, i) if composed is None else self._composed(parts[i], composed)
            output = self.relu(self.norms[min(i, len(self.norms) - 1)](h) if len(self.norms) else h)
            if not self.recurrent:
                h = None
            elif self.activation != 'linear':
                h = output
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
        """``W_x * x + W_h * h + b`` of a step."""
        inputs = (x,) if h is None else (x, h)
        if self.step_convs is not None:
            return self.step_convs[min(step, len(self.step_convs) - 1)](*inputs)
        total = self.conv_x(x)
        if h is not None:
            total += self.conv_h(h)
        return total

    def composed_kernel(self) -> Tensor:
        """The kernel ``W_x * W_h`` of the layer without recurrence.

        Returns:
            Tensor: Shape (S_out, S_in, K, K), where K is ``kernel_size_x + kernel_size_h - 1``.
        """
        reach = self.conv_h.kernel_size[0] - 1
        # a kernel that is convolved, not correlated, with another one turns
        kernel = F.conv2d(self.conv_x.weight.transpose(0, 1), self.conv_h.weight.flip(2, 3), padding=reach)
        return kernel.transpose(0, 1)

    def _composed(self, x: Tensor, kernel: Tensor) -> Tensor:
        bias = self.conv_x.bias if self.conv_h.bias is None else self.conv_h.bias
        padding = self.conv_x.padding[0] + self.conv_h.padding[0]
        return F.conv2d(x, kernel, bias, padding=padding)

    def switch_to_deploy(self) -> None:
        """Fold the norms into the convolutions, and join the two of a step if their kernels have one size.

        Norms for each step make kernels for each step. Those of a linear layer stay, for what reads its
        output to fold, as :class:`RecurrentModule` does. A second call does nothing.
        """
        if self.step_convs is not None:
            return
        if not self.recurrent and self.conv_h is not None:
            self._compose()
        if self.activation == 'shared_bn':
            folded = fuse_norm_of_sum(self.conv_x, self.conv_h, self.norms[0])
            self.conv_x, self.conv_h, self.norms[0] = folded
        pairs = [(self.conv_x, None)]
        if self.activation == 'separate_bn' and all(map(is_fusible, self.norms)):
            pairs = [self._folded_step(i) for i in range(self.steps)]
            self.norms = nn.ModuleList()
        elif self.conv_h is not None and self.conv_x.kernel_size != self.conv_h.kernel_size:
            return  # nothing to join: all steps go on with the same two convolutions
        elif self.conv_h is not None:
            pairs.append((self.conv_x, self.conv_h))
        convs = (conv_x if conv_h is None else _StepConv(conv_x, conv_h) for conv_x, conv_h in pairs)
        self.step_convs = nn.ModuleList(convs)
        self.conv_x = self.conv_h = None

    def _folded_step(self, step: int) -> tuple[nn.Conv2d, nn.Conv2d | None]:
        conv_h = copy.deepcopy(self.conv_h) if step else None
        return fuse_norm_of_sum(copy.deepcopy(self.conv_x), conv_h, self.norms[step])[:2]

    def _compose(self) -> None:
        """Make the two convolutions of the layer without recurrence one."""
        kernel = self.composed_kernel()
        bias = self.conv_x.bias if self.conv_h.bias is None else self.conv_h.bias
        size, padding = kernel.shape[-1], self.conv_x.padding[0] + self.conv_h.padding[0]
        conv = nn.Conv2d(
            *kernel.shape[1::-1], size, padding=padding, bias=bias is not None, device=kernel.device
        )
        conv.to(kernel.dtype).weight.data.copy_(kernel)
        if bias is not None:
            conv.bias.data.copy_(bias)
        self.conv_x, self.conv_h = conv, None


class _StepConv(nn.Module):
    """``W_x * x + W_h * h + b``: one convolution of both where their kernels have one size.

    That saves a pass over the sum, and up to a quarter of the time at batch 1 on a CPU; in large batches and
    in training it makes no difference there. Where sizes differ, a kernel would have to be filled with zeros.
    """

    def __init__(self, conv_x: nn.Conv2d, conv_h: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.conv_h = conv_x, conv_h
        if conv_x.kernel_size == conv_h.kernel_size:
            weight = torch.cat([conv_x.weight.data, conv_h.weight.data], dim=1)
            biases = [conv.bias.data for conv in (conv_x, conv_h) if conv.bias is not None]
            self.conv = nn.Conv2d(
                *weight.shape[1::-1],
                conv_x.kernel_size,
                padding=conv_x.padding,
                bias=bool(biases),
                device=weight.device,
                dtype=weight.dtype,
            )
            self.conv.weight.data, self.conv_h = weight, None
            if biases:
                self.conv.bias.data = sum(biases)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute it, shape (N, S_out, H, W)."""
        if self.conv_h is None:
            return self.conv(torch.cat([x, h], dim=1))
        total = self.conv(x)
        total += self.conv_h(h)
        return total


class RecurrentModule(nn.Module):
    r"""A CRC layer and the transition block behind it: 1x1 convolution, norm, ReLU (Section 2.2).

    The layer's wide output is never built: as in Equation 7 each segment is read as it comes,
    :math:`y = \sum_i A_i h_i`, in training too.

    Args:
        crc (ChannelRecurrentConv): The layer.
        out_channels (int): Channels of the output.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.

    Raises:
        TypeError, ValueError: If an argument is wrong; the message says what is allowed.

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
        """Fold the norms; a second call does nothing."""
        self.crc.switch_to_deploy()
        if self.crc.activation == 'linear' and all(map(is_fusible, self.crc.norms)):
            self._fold_output_norms()
        self.conv, self.norm = fuse_norm(self.conv, self.norm)

    def _fold_output_norms(self) -> None:
        """Fold the norms of a linear layer's output into the 1x1 convolution; clamps stay of them."""
        clamps, weights, bias = [], [], 0
        for norm, weight in zip(self.crc.norms, self.conv.weight.data.split(self.crc.out_channels, dim=1)):
            conv = nn.Conv2d(*weight.shape[1::-1], 1, bias=False, device=weight.device).to(weight.dtype)
            conv.weight.data.copy_(weight)
            clamp, (conv,) = fuse_preactivation(norm, [conv])
            clamps.append(clamp)
            weights.append(conv.weight.data)
            bias = bias + conv.bias.data
        self.crc.norms = nn.ModuleList(clamps)
        self.crc.relu = nn.Identity()
        self.conv.weight.data = torch.cat(weights, dim=1)
        self.conv.bias = nn.Parameter(bias)
