"""The dual path ResNet against its definition with two separate paths."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrecur.models.backbones import DualPathResNet
from tests.helpers import randomise_norms


@pytest.mark.parametrize('dense_channels, count', [(12, 2_127_826), (0, 1_703_290)])
def test_parameters(dense_channels: int, count: int) -> None:
    """Table 11: 2.13 M; without the dense path the plain ResNet-164."""
    with torch.device('meta'):
        model = DualPathResNet(depth=164, dense_channels=dense_channels)
    classifier = 10 * (model.out_channels[-1] + 1)
    assert sum(p.numel() for p in model.parameters()) + classifier == count


def reference_forward(model: DualPathResNet, x: Tensor) -> list[Tensor]:
    """Residual and dense path apart, as Chen et al. draw them."""
    residual, dense, outputs = F.relu(model.bn1(model.conv1(x))), None, []
    k = model.dense_channels
    for i in (1, 2, 3):
        width = 4 * 2 ** (i - 1) * model.conv1.out_channels
        for j, block in enumerate(getattr(model, f'layer{i}')):
            both = residual if dense is None else torch.cat([residual, dense], dim=1)
            active = F.relu(block.bn1(both))
            if j == 0:
                projected = F.conv2d(active, block.downsample.weight, stride=2 if i > 1 else 1)
                residual, dense = projected.split([width, 2 * k], dim=1)
            y = F.relu(block.bn2(block.conv1(active)))
            y = block.conv3(F.relu(block.bn3(block.conv2(y))))
            residual = residual + y[:, :width]
            dense = torch.cat([dense, y[:, width:]], dim=1)
        outputs.append(torch.cat([residual, dense], dim=1))
    outputs[-1] = F.relu(model.final_norm(outputs[-1]))
    return outputs


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('dense_channels', [0, 3])
def test_computes_the_definition(dense_channels: int, training: bool) -> None:
    torch.manual_seed(0)
    model = DualPathResNet(depth=29, dense_channels=dense_channels, base_channels=4).double()
    randomise_norms(model)
    model.train(training)
    x = torch.randn(2, 3, 13, 16, dtype=torch.double)
    with torch.no_grad():
        for actual, expected in zip(model(x), reference_forward(model, x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(depth=100), r'depth=100, allowed: 9 n \+ 2'),
        (dict(depth=2), 'depth=2, allowed: an integer of at least 11'),
        (dict(dense_channels=-1), 'dense_channels=-1, allowed: an integer of at least 0'),
        (dict(base_channels=0), 'base_channels=0, allowed'),
        (dict(out_indices=(1, 3)), r'out_indices=\(1, 3\), allowed'),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        DualPathResNet(**arguments)
