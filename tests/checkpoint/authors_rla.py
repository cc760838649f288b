"""The authors' RLA networks without stored outputs, re-implemented with their names and orders.

Widths are arguments, so that tests can be small; everything is computed as plainly as possible:
concatenations as concatenations, the state from a map of zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden import tensor_for


def fill(model: nn.Module) -> dict[str, Tensor]:
    """Give a network the weights that every fixture has under its names, and return them.

    A tensor with several names keeps the value of the last name, as in the fixtures.
    """
    state = {key: tensor_for(key, list(value.shape)) for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    return {key: value.clone() for key, value in model.state_dict().items()}


class GRUUnit(nn.Module):
    """The authors' ConvGRU: one convolution for both gates, a norm for each of the three parts."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.gate_conv = nn.Conv2d(2 * k, 2 * k, 3, padding=1)
        self.reset_gate_norm = nn.GroupNorm(1, k, eps=1e-6)
        self.update_gate_norm = nn.GroupNorm(1, k, eps=1e-6)
        self.output_conv = nn.Conv2d(2 * k, k, 3, padding=1)
        self.output_norm = nn.GroupNorm(1, k, eps=1e-6)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        reset, update = self.gate_conv(torch.cat([x, h], 1)).chunk(2, 1)
        reset = self.reset_gate_norm(reset).sigmoid()
        update = self.update_gate_norm(update).sigmoid()
        new = self.output_norm(self.output_conv(torch.cat([x, reset * h], 1))).tanh()
        return update * h + (1 - update) * new


class GRUBlock(nn.Module):
    """A bottleneck that reads ``cat(x, h)``; it returns its output twice."""

    def __init__(self, inputs: int, width: int, k: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs + k, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.bn1(self.conv1(torch.cat([x, h], 1))))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y + shortcut), F.avg_pool2d(h, 2, 2) if self.stride == 2 else h


class GRUResNet(nn.Module):
    """ResNet-50 with the ConvGRU, whose state the classifier reads without a norm."""

    def __init__(self, base_channels: int = 64, k: int = 32, num_classes: int = 1000) -> None:
        super().__init__()
        self.k, inputs = k, base_channels
        self.conv1 = nn.Conv2d(3, inputs, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv_outs, self.recurrent_convs, self.stages, self.stage_bns = (
            nn.ModuleList() for _ in range(4)
        )
        for stage, num_blocks in enumerate((3, 4, 6, 3)):
            width = base_channels * 2**stage
            blocks = nn.ModuleList()
            for block in range(num_blocks):
                blocks.append(GRUBlock(inputs, width, k, 2 if stage and not block else 1))
                inputs = 4 * width
            self.conv_outs.append(nn.Conv2d(inputs, k, 1, bias=False))
            self.recurrent_convs.append(GRUUnit(k))
            self.stages.append(blocks)
            self.stage_bns.append(nn.ModuleList(nn.BatchNorm2d(k) for _ in blocks))
        self.fc = nn.Linear(inputs + k, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        h = x.new_zeros(len(x), self.k, *x.shape[2:])
        for blocks, norms, conv_out, unit in zip(
            self.stages, self.stage_bns, self.conv_outs, self.recurrent_convs
        ):
            for block, norm in zip(blocks, norms):
                x, h = block(x, h)
                h = unit(norm(conv_out(x)).tanh(), h)
        return self.fc(torch.cat([x, h], 1).mean((2, 3)))


class ECALayer(nn.Module):
    """A 1-D convolution over the channels' means."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None])[:, 0, :, None, None].sigmoid()


def conv_norm_relu6(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class MobileBlock(nn.Module):
    """An inverted residual block whose state joins after the expansion; ECA ends ``conv``."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, k: int, eca: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.stride, self.adds = stride, stride == 1 and inputs == outputs
        self.conv1x1 = conv_norm_relu6(inputs, inner, 1) if expansion != 1 else None
        self.conv = nn.Sequential(
            conv_norm_relu6(inner + k, inner + k, 3, stride, groups=inner + k),
            nn.Conv2d(inner + k, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            ECALayer(eca),
        )

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = x if self.conv1x1 is None else self.conv1x1(x)
        y = self.conv(torch.cat([inner, h], 1))
        return x + y if self.adds else y, y, F.avg_pool2d(h, 2, 2) if self.stride == 2 else h


class ECAMobileNetV2(nn.Module):
    """MobileNetV2 with ECA, whose five W_r are one module; ``widths`` are of the stem and the groups."""

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 16, 24, 32, 64, 96, 160, 320),
        last: int = 1280,
        k: int = 32,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.k = k
        self.conv1 = conv_norm_relu6(3, widths[0], 3, 2)
        self.stages, self.conv_outs, self.stage_bns = (nn.ModuleList() for _ in range(3))
        self.recurrent_dsconvs = nn.ModuleList([nn.Conv2d(k, k, 3, padding=1, groups=k, bias=False)] * 5)
        inputs = widths[0]
        settings = zip((1, 2, 3, 4, 3, 3, 1), (1, 2, 2, 2, 1, 2, 1))
        for group, (num_blocks, stride) in enumerate(settings):
            outputs, blocks = widths[group + 1], nn.ModuleList()
            eca = 1 if outputs < 96 else 3
            for block in range(num_blocks):
                strides = stride if block == 0 else 1
                blocks.append(MobileBlock(inputs, outputs, 6 if group else 1, strides, k, eca))
                inputs = outputs
            self.stages.append(blocks)
            self.conv_outs.append(nn.Conv2d(outputs, k, 1, bias=False))
            self.stage_bns.append(nn.ModuleList(nn.BatchNorm2d(k) for _ in blocks))
        self.conv2 = conv_norm_relu6(inputs + k, last, 1)
        self.bn2 = nn.BatchNorm2d(k)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        h = x.new_zeros(len(x), self.k, *x.shape[2:])
        for group, blocks in enumerate(self.stages):
            for block, norm in zip(blocks, self.stage_bns[group]):
                x, y, h = block(x, h)
                h = self.recurrent_dsconvs[0](norm(h + self.conv_outs[group](y)).tanh())
        x = self.conv2(torch.cat([x, F.relu6(self.bn2(h))], 1))
        return self.classifier(x.mean((2, 3)))
