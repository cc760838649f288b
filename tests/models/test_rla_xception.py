"""RLA-Xception against Table 9, written out with concatenations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.backbones import RLAXception
from mmrecur.models.layers import SeparableConv, XceptionBlock
from tests.helpers import randomise_norms


@pytest.mark.parametrize(
    'k, classes, count, paper',
    [
        (0, 10, 2_701_882, 2.70e6),
        (0, 100, 2_748_052, 2.75e6),
        (12, 10, 2_767_534, 2.70e6 + 0.07e6),
        (12, 100, 2_814_784, 2.75e6 + 0.06e6),
    ],
)
def test_parameters(k: int, classes: int, count: int, paper: float) -> None:
    """The last two digits of Table 2 are those printed."""
    with torch.device('meta'):
        model = RLAXception(rla_channels=k, with_hidden=k > 0)
    classifier = classes * (model.out_channels[-1] + 1)
    assert sum(p.numel() for p in model.parameters()) + classifier == count
    assert abs(count - paper) <= 0.005e6


def test_depth_is_xceptions() -> None:
    """36 convolutions, a separable one counted as one and shortcuts not at all."""
    with torch.device('meta'):
        model = RLAXception(rla_channels=0)
    separable = sum(isinstance(module, SeparableConv) for module in model.modules())
    shortcuts = [m for m in model.modules() if isinstance(m, XceptionBlock) and m.downsample is not None]
    plain = sum(isinstance(m, nn.Conv2d) for m in model.modules()) - 2 * separable - len(shortcuts)
    assert separable + plain == 36 and len(shortcuts) == 4


def separable(conv: SeparableConv, x: Tensor, h: Tensor | None = None) -> Tensor:
    """Depthwise and pointwise convolution of ``cat(x, h)``, norm."""
    depthwise, pointwise = conv.depthwise.weight, conv.pointwise.weight
    if h is not None:
        x = torch.cat([x, h], dim=1)
        depthwise = torch.cat([depthwise, conv.depthwise_hidden.weight])
        pointwise = torch.cat([pointwise, conv.pointwise_hidden.weight], dim=1)
    return conv.bn(F.conv2d(F.conv2d(x, depthwise, padding=1, groups=x.size(1)), pointwise))


def reference_forward(model: RLAXception, x: Tensor) -> list[Tensor]:
    x = F.relu(model.bn1(F.conv2d(x, model.conv1.weight, padding=1)))
    x = F.relu(model.bn2(F.conv2d(x, model.conv2.weight, padding=1)))
    k = model.rla_channels
    h = x.new_zeros(x.size(0), k, *x.shape[2:]) if k else None
    outputs = []

    def update(h: Tensor, s: Tensor, stage: nn.Module, step: int) -> Tensor:
        cells = list(stage.rla.cells)
        readouts = {cell.conv_out.in_channels: cell.conv_out for cell in cells}
        norms = [norm for cell in cells for norm in cell.norms]
        h = torch.tanh(norms[step](h + readouts[s.size(1)](s)))
        return F.conv2d(h, stage.rla.recurrent_conv.weight, padding=1)

    def pooled(map_: Tensor, size: int, padding: int) -> Tensor:
        return F.avg_pool2d(map_, size, 2, padding, count_include_pad=False)

    # entry flow
    stage = model.layer1
    for step, block in enumerate(stage.blocks):
        first, second = block.convs
        y = separable(first, F.relu(x) if step else x, F.relu(h) if step and k else h)
        y = separable(second, F.relu(y))
        (conv, norm), stride = block.downsample, 2 if step == 2 else 1
        x = (pooled(y, 3, 1) if stride == 2 else y) + norm(F.conv2d(x, conv.weight, stride=stride))
        h = update(h, y, stage, step) if k else None
    h = pooled(h, 2, 0) if k else None
    outputs.append(x)
    # middle flow, and the block that widens
    stage = model.layer2
    for step, block in enumerate(stage.blocks):
        y = separable(block.convs[0], F.relu(x), F.relu(h) if k else None)
        for conv in block.convs[1:]:
            y = separable(conv, F.relu(y))
        if step < 8:
            x = x + y
        else:
            conv, norm = block.downsample
            x = pooled(y, 3, 1) + norm(F.conv2d(x, conv.weight, stride=2))
        h = update(h, y, stage, step) if k else None
    h = pooled(h, 2, 0) if k else None
    outputs.append(x)
    # exit flow
    first, second = model.layer3.blocks[0].convs
    x = F.relu(separable(second, F.relu(separable(first, x, h))))
    if k:
        h = update(h, x, model.layer3, 0)
        x = torch.cat([x, F.relu(model.hidden_norm(h))], dim=1)
    return [*outputs, x]


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('k', [0, 3])
def test_computes_table_9(k: int, training: bool) -> None:
    torch.manual_seed(0)
    model = RLAXception(rla_channels=k, base_channels=2, with_hidden=k > 0).double()
    randomise_norms(model)
    model.train(training)
    x = torch.randn(2, 3, 16, 24, dtype=torch.double)
    with torch.no_grad():
        for actual, expected in zip(model(x), reference_forward(model, x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_stages_share_the_recurrent_convolution() -> None:
    model = RLAXception(base_channels=2, rla_channels=3, with_hidden=True)
    convs = {n for n, _ in model.named_parameters() if n.endswith('recurrent_conv.weight')}
    assert len(convs) == 3
    readouts = [m.in_channels for n, m in model.named_modules() if n.endswith('conv_out')]
    assert readouts == [8, 16, 32, 32, 64, 64]
    model.switch_to_deploy()
    assert {n for n, _ in model.named_parameters() if n.endswith('recurrent_conv.weight')} == convs


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(rla_channels=-1), 'rla_channels=-1, allowed: an integer of at least 0'),
        (dict(rla_channels=0, with_hidden=True), 'with_hidden=True with rla_channels=0, allowed: False'),
        (dict(with_hidden=1), 'with_hidden=1.*allowed: True or False'),
        (dict(base_channels=0), 'base_channels=0, allowed'),
        (dict(out_indices=(0, 3)), r'out_indices=\(0, 3\), allowed: .* integers from 0 to 2'),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        RLAXception(**arguments)
