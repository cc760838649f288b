"""Networks in the layout of the authors of the shared filter bases, to test ``convert``.

No outputs of these two are stored. They are written from the published names and equations with plain
layers, independently of the package, so that checkpoints with known outputs can be made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(cin: int, cout: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, size, stride, size // 2, groups=groups, bias=False)


class MobileBlock(nn.Module):
    """Expansion, depthwise convolution, projection; the first and the last perhaps shared."""

    def __init__(
        self, cin: int, cout: int, ratio: int, stride: int = 1, shared: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        inner = cin * ratio
        if shared:
            self.shared_basis1, self.shared_basis2 = shared
            self.chan_attention = nn.Module()
            size = 1 if cin < 96 else 3
            self.chan_attention.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        else:
            self.conv1, self.conv3 = conv(cin, inner), conv(inner, cout)
        self.conv2 = conv(inner, inner, 3, stride, inner)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner), nn.BatchNorm2d(cout)
        self.shares, self.keeps_shape = bool(shared), stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        expand = self.shared_basis1 if self.shares else self.conv1
        project = self.shared_basis2 if self.shares else self.conv3
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(expand(x))))))
        y = self.bn3(project(y))
        if self.shares:
            means = F.adaptive_avg_pool2d(y, 1)[:, :, 0, 0]
            gate = torch.sigmoid(self.chan_attention.conv(means[:, None])[:, 0])
            y = torch.einsum('nchw,nc->nchw', y, gate)
        return x + y if self.keeps_shape else y


class MobileNetV2SharedDouble(nn.Module):
    """Their MobileNetV2-Shared++ for ImageNet."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU6())
        self.stage1 = MobileBlock(32, 16, 1)
        self.stage2 = nn.Sequential(MobileBlock(16, 24, 6, 2), MobileBlock(24, 24, 6))
        plan = [(24, 32, 3, 2), (32, 64, 4, 2), (64, 96, 3, 1), (96, 160, 3, 2)]
        for i, (cin, cout, count, stride) in enumerate(plan, 1):
            shared = [conv(cout, 6 * cout), conv(6 * cout, cout)]
            for j, basis in enumerate(shared, 1):
                setattr(self, f'shared_basis_{i}_{j}', basis)
            blocks = [MobileBlock(cin, cout, 6, stride)]
            blocks += [MobileBlock(cout, cout, 6, shared=shared) for _ in range(count - 1)]
            setattr(self, f'stage{i + 2}', nn.Sequential(*blocks))
        self.stage7 = MobileBlock(160, 320, 6)
        self.conv1 = nn.Sequential(nn.Conv2d(320, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for i in range(1, 8):
            x = getattr(self, f'stage{i}')(x)
        return self.classifier(self.conv1(x).mean((2, 3)))


class ResNeXtBlock(nn.Module):
    """A block of a ResNeXt; with a shared basis its own filters and the shared ones are joined."""

    def __init__(
        self,
        cin: int,
        inner: int,
        cout: int,
        stride: int,
        groups: int,
        shared: nn.Conv2d | None = None,
        unique_rank: int = 0,
        unique_groups: int = 1,
    ) -> None:
        super().__init__()
        if shared is None:
            self.residual_function = nn.Sequential(
                conv(cin, inner), nn.BatchNorm2d(inner), nn.ReLU(),
                conv(inner, inner, 3, stride, groups), nn.BatchNorm2d(inner), nn.ReLU(),
                conv(inner, cout), nn.BatchNorm2d(cout),
            )  # fmt: skip
        else:
            rank = unique_rank + shared.out_channels
            self.shared_basis = shared
            self.conv1, self.bn1 = conv(cin, inner), nn.BatchNorm2d(inner)
            self.basis_conv2 = conv(inner, unique_rank, 3, groups=unique_groups)
            self.bn2 = nn.BatchNorm2d(rank)
            self.conv3, self.bn3 = conv(rank, cout), nn.BatchNorm2d(cout)
        projects = stride != 1 or cin != cout
        shortcut = [conv(cin, cout, 1, stride), nn.BatchNorm2d(cout)] if projects else []
        self.shortcut = nn.Sequential(*shortcut)
        self.shares = shared is not None

    def forward(self, x: Tensor) -> Tensor:
        if not self.shares:
            return F.relu(self.residual_function(x) + self.shortcut(x))
        y = F.relu(self.bn1(self.conv1(x)))
        y = torch.cat([self.basis_conv2(y), self.shared_basis(y)], 1)
        return F.relu(self.bn3(self.conv3(F.relu(self.bn2(y)))) + self.shortcut(x))


class ResNeXtSingleShared(nn.Module):
    """Their ResNeXt-50 for CIFAR-100, with other widths where asked for; plain without a shared rank."""

    def __init__(
        self,
        shared_rank: int = 64,
        unique_rank: int = 4,
        groups: int = 32,
        base_width: int = 4,
        channels: int = 64,
        num_classes: int = 100,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, channels, 3), nn.BatchNorm2d(channels)
        cin = channels
        for i, count in enumerate((3, 4, 6, 3)):
            scale = 2**i
            inner, cout = groups * base_width * scale, 4 * channels * scale
            shared = None
            if shared_rank:
                shared = conv(inner, shared_rank * scale, 3, groups=shared_rank // base_width)
                setattr(self, f'shared_basis_{i + 1}', shared)
            blocks = [ResNeXtBlock(cin, inner, cout, 1 if i == 0 else 2, groups)]
            for _ in range(count - 1):
                unique = (unique_rank * scale, unique_rank * scale // base_width)
                blocks.append(ResNeXtBlock(cout, inner, cout, 1, groups, shared, *unique))
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
            cin = cout
        self.linear = nn.Linear(cin, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(1, 5):
            x = getattr(self, f'layer{i}')(x)
        return self.linear(x.mean((2, 3)))
