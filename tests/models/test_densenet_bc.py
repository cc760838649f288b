"""DenseNet-BC with shared bottleneck convolutions against the paper's equations, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.backbones import DenseNetBC
from mmrecur.models.layers.rla.dense_block import DenseBlock
from tests.helpers import randomise_norms


def parameters(model: DenseNetBC, classes: int = 10) -> int:
    """Parameters with the classifier."""
    return sum(p.numel() for p in model.parameters()) + classes * (model.out_channels[-1] + 1)


@pytest.mark.parametrize('sharing, paper', [(None, 0.80e6), ('lag', 0.60e6), ('ordinal', 0.60e6)])
def test_parameters(sharing: str | None, paper: float) -> None:
    with torch.device('meta'):
        count = parameters(DenseNetBC(depth=100, growth_rate=12, share=sharing))
    # The number of Huang et al.'s DenseNet-BC-100 (k = 12); of the 120 pairs of layers in each of three
    # blocks 15 keep weights, 48 x 12 of them.
    assert count == 769_162 - (3 * (120 - 15) * 48 * 12 if sharing else 0)
    if sharing:
        # the norms of the paper's implementation also see 12 zeros for each layer still to come
        assert count + 3 * 2 * 12 * 120 == 596_362
        assert abs(count - paper) < 0.02e6


@pytest.mark.parametrize('classes, growth_rate, depth, paper', [(10, 24, 250, 15.3e6), (10, 40, 190, 25.6e6)])
def test_other_depths_have_the_parameters_of_huang_et_al(
    classes: int, growth_rate: int, depth: int, paper: float
) -> None:
    """Their Table 2."""
    with torch.device('meta'):
        count = parameters(DenseNetBC(depth=depth, growth_rate=growth_rate), classes)
    assert count == pytest.approx(paper, abs=0.05e6)


def pieces(block: DenseBlock) -> dict[int, Tensor]:
    """The shared 1x1 convolutions by the number that stands at them in Equations 9 and 10."""
    k = block.growth_rate
    split = list(block.shared_conv1.weight.split(k, dim=1))
    numbers = range(1, len(split) + 1)
    return dict(zip(reversed(numbers) if block.share == 'lag' else numbers, split))


def reference_block(block: DenseBlock, x0: Tensor) -> Tensor:
    """Equations 9 and 10: a sum of one small convolution for each earlier layer."""
    outputs, k = [x0], block.growth_rate
    for t, layer in enumerate(block.layers, 1):
        # the norm acts on each channel alone: on the concatenation as on its parts
        active = F.relu(layer.norm1(torch.cat(outputs, dim=1)))
        parts = active.split([block.in_channels] + [k] * (t - 1), dim=1)
        weight = layer.conv1.weight
        total = F.conv2d(parts[0], weight[:, : block.in_channels])  # Conv1_0^t
        for number in range(1, t):  # x^number
            if block.share is None:
                first = block.in_channels + (number - 1) * k
                piece = weight[:, first : first + k]
            else:
                piece = pieces(block)[t - number if block.share == 'lag' else number]
            total = total + F.conv2d(parts[number], piece)
        outputs.append(F.conv2d(F.relu(layer.norm2(total)), layer.conv2.weight, padding=1))
    return torch.cat(outputs, dim=1)


def reference_forward(model: DenseNetBC, x: Tensor) -> list[Tensor]:
    x, outputs = F.conv2d(x, model.conv0.weight, padding=1), []
    for i in (1, 2, 3):
        if i > 1:
            transition = getattr(model, f'transition{i - 1}')
            x = F.conv2d(F.relu(transition.norm(x)), transition.conv.weight)
            x = F.avg_pool2d(x, 2)
        x = reference_block(getattr(model, f'denseblock{i}'), x)
        outputs.append(x)
    return [*outputs[:2], F.relu(model.final_norm(x))]


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('sharing', [None, 'lag', 'ordinal'])
def test_computes_the_equations(sharing: str | None, training: bool) -> None:
    torch.manual_seed(0)
    model = DenseNetBC(depth=34, growth_rate=3, share=sharing).double()
    randomise_norms(model)
    model.train(training)
    x = torch.randn(2, 3, 16, 24, dtype=torch.double)
    with torch.no_grad():
        for actual, expected in zip(model(x), reference_forward(model, x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_lag_block_shifts_with_the_layer_and_ordinal_does_not() -> None:
    """Return the part of the shared weights that each layer of a block reads, by earlier layer."""
    for sharing, expected in (
        ('lag', [[], [1], [2, 1], [3, 2, 1]]),
        ('ordinal', [[], [1], [1, 2], [1, 2, 3]]),
    ):
        block = DenseBlock(4, 5, 2, sharing)
        for number, piece in pieces(block).items():
            nn.init.constant_(piece, number)
        for index, numbers in enumerate(expected):
            weight = block.shared_weight(index)
            found = [] if weight is None else weight[0, ::2, 0, 0].tolist()
            assert found == numbers


def test_plain_names_are_torchvisions() -> None:
    """But for ``features.`` and the last norm, which torchvision counts with the blocks of ImageNet."""
    names = {name.rsplit('.', 1)[0] for name, _ in DenseNetBC(depth=16, growth_rate=2).named_parameters()}
    layers = {f'denseblock{b}.denselayer{i}' for b in (1, 2, 3) for i in (1, 2)}
    parts = {f'{layer}.{part}' for layer in layers for part in ('norm1', 'conv1', 'norm2', 'conv2')}
    transitions = {f'transition{i}.{part}' for i in (1, 2) for part in ('norm', 'conv')}
    assert names == parts | transitions | {'conv0', 'final_norm'}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(depth=101), r'depth=101, allowed: 6 n \+ 4'),
        (dict(depth=4), 'depth=4, allowed: an integer of at least 10'),
        (dict(depth=10, share='lag'), 'depth=10, allowed: an integer of at least 16'),
        (dict(share='time'), "share='time', allowed: None, 'lag', 'ordinal'"),
        (dict(growth_rate=0), 'growth_rate=0, allowed'),
        (dict(compression=0), r'compression=0, allowed: a number in \(0, 1\]'),
        (dict(compression='half'), "compression='half', allowed"),
        (dict(out_indices=(3,)), r'out_indices=\(3,\), allowed: .* integers from 0 to 2'),
        (dict(frozen_stages=4), 'frozen_stages=4, allowed: an integer from -1 to 3'),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        DenseNetBC(**arguments)
