"""Options by which stages share differently: values per stage, first blocks, low-rank residuals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrecur.models.backbones import DRMobileNetV2, DRResNet, ResNetShared
from mmrecur.models.layers import BasicBlock, BasisConv2d, FactorizedConv2d, LowRankResidual, low_rank_factors
from mmrecur.models.layers.loop import LoopBlock
from tests.helpers import assert_close, build, image, randomise_norms


def parameters(kind: type, *args, **arguments) -> int:
    """Count parameters of a network of any size; its weights take no memory."""
    with torch.device('meta'):
        model = kind(*args, **arguments)
    assert all(p.is_meta for p in model.parameters())
    return sum(p.numel() for p in model.parameters())


def test_a_residual_starts_at_zero_and_has_at_most_full_rank() -> None:
    weight = torch.randn(4, 3, 3, 3)
    residual = LowRankResidual(weight.shape, 9)
    assert residual.rank == 4 and residual.up.shape == (4, 4) and residual.down.shape == (4, 27)
    assert torch.equal(residual(weight), weight) and residual.down.abs().min() > 0
    assert LowRankResidual((4, 2, 1, 1), 3).rank == 2
    for rank in (0, True, 1.0):
        with pytest.raises(ValueError, match=f'rank={rank}, allowed: an integer of at least 1'):
            LowRankResidual(weight.shape, rank)


@pytest.mark.parametrize('shape', [(6, 20), (20, 6)])
def test_factors_are_those_of_the_nearest_matrix(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, dtype=torch.double)
    values = torch.linalg.svdvals(matrix)
    for rank in (1, 4, 6):
        up, down = low_rank_factors(matrix, rank)
        assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1])
        off = (matrix - up @ down).square().sum()
        torch.testing.assert_close(off, values[rank:].square().sum(), atol=1e-12, rtol=1e-9)
    # training can use the rows where the matrix is zero
    up, down = low_rank_factors(torch.zeros(shape), 2)
    assert not up.any()
    torch.testing.assert_close(down @ down.T, torch.eye(2))


PLAN = dict(
    share=('single', None, 'all', 'double'),
    share_first=(True, True, False, True),
    relaxation_rank=(0, 3, 2, 99),
)


def test_parameters_of_bottlenecks() -> None:
    width, removed = 4, 0
    names = {
        'single': [9],
        None: [],
        'double': [9, 4],
        'all': [4, 9, 4],
    }  # entries by the square of the width
    for stage, num_blocks in enumerate((3, 4, 6, 3)):
        inner, share = width * 2**stage, PLAN['share'][stage]
        rank = min(PLAN['relaxation_rank'][stage], inner)
        for place, factor in enumerate(names[share]):
            joins = PLAN['share_first'][stage] and not (share == 'all' and place == 0)
            readers = num_blocks if joins else num_blocks - 1
            sides = 10 * inner if factor == 9 else 5 * inner  # rows and columns of the weight as a matrix
            removed += (readers - 1) * factor * inner**2 - readers * rank * sides
    plain = parameters(ResNetShared, 50, base_channels=width, share=None)
    assert parameters(ResNetShared, 50, base_channels=width, **PLAN) == plain - removed


def test_parameters_of_basic_blocks() -> None:
    width, added = 4, 0
    ranks, unique, bases, first = (3, 0, 5, 7), (1, 1, 0, 2), (1, 2, 2, 1), (True, True, False, True)
    for stage, num_blocks in enumerate((3, 4, 6, 3)):
        channels, rank = width * 2**stage, ranks[stage] + unique[stage]
        if ranks[stage]:
            # of the first blocks, only the first stage's keeps its width
            readers = 2 * (num_blocks - 1) + (first[stage] and 1 + (stage == 0))
            own = unique[stage] * 9 * channels + rank * channels + 2 * rank
            added += bases[stage] * ranks[stage] * 9 * channels + readers * (own - 9 * channels**2)
    plain = parameters(ResNetShared, 34, base_channels=width, share=None)
    options = dict(shared_rank=ranks, unique_rank=unique, bases=bases, share_first=first)
    assert parameters(ResNetShared, 34, base_channels=width, **options) == plain + added


def test_parameters_of_loops() -> None:
    shape = dict(depth=None, blocks=(1, 2, 3, 2), loops=(1, 1, 3, 2), base_channels=4)
    # two loops of three iterations with 16 inner channels, one of two with 32
    added = 2 * 3 * 2 * (5 + 10 + 5) * 16 + 2 * 32 * (5 + 10 + 5) * 32
    relaxed = parameters(DRResNet, relaxation_rank=(7, 7, 2, 99), **shape)
    assert relaxed == parameters(DRResNet, **shape) + added
    mobile = parameters(DRMobileNetV2, 0.25, relaxation_rank=(0, 0, 0, 2, 0, 0, 0))
    # three iterations of 16 channels, expanded to 96, without the depthwise convolution
    assert mobile == parameters(DRMobileNetV2, 0.25) + 3 * 2 * 2 * (16 + 96)


@pytest.mark.parametrize(
    'depth, single, sequence',
    [
        (50, dict(share='all'), dict(share=('all',) * 4, share_first=[False] * 4, relaxation_rank=(0,) * 4)),
        (18, dict(shared_rank=3), dict(shared_rank=(3, 6, 12, 24), unique_rank=(1, 2, 4, 8), bases=(2,) * 4)),
        (20, dict(share=None), dict(share=(None, None, None))),
    ],
)
def test_one_value_is_that_of_all_stages(depth: int, single: dict, sequence: dict) -> None:
    shapes = []
    for options in (single, sequence):
        state = ResNetShared(depth, base_channels=4, **options).state_dict()
        shapes.append({name: value.shape for name, value in state.items()})
    assert shapes[0] == shapes[1]


def test_first_blocks_share_what_has_the_shape_of_the_others() -> None:
    def readers(model: nn.Module) -> set[str]:
        kinds = (BasisConv2d, FactorizedConv2d)
        return {name for name, module in model.named_modules() if isinstance(module, kinds) and '.0.' in name}

    model = ResNetShared(50, base_channels=4, share='all', share_first=(False, True, True, True))
    assert readers(model) == {f'layer{i}.0.conv{j}' for i in (2, 3, 4) for j in (2, 3)}
    assert model.layer2[0].conv2.stride == 2 and model.layer2[0].conv3.stride == 1
    assert model.layer2[0].conv2.basis is model.layer2[3].conv2.basis
    model = ResNetShared(18, base_channels=4, shared_rank=2, share_first=True)
    assert readers(model) == {'layer1.0.conv1', *(f'layer{i}.0.conv2' for i in (1, 2, 3, 4))}


@torch.no_grad()
def test_a_relaxed_first_block_by_hand() -> None:
    model = build('shared-r50-relaxed').eval()
    block, x = model.layer3[0], image(2, 64, 9, 8)

    def weight(name: str) -> Tensor:
        conv, basis = getattr(block, name), model.layer3.basis[name].weight
        return basis + (conv.relaxation.up @ conv.relaxation.down).reshape(basis.shape)

    y = F.relu(block.bn1(F.conv2d(x, block.conv1.weight)))
    y = F.relu(block.bn2(F.conv2d(y, weight('conv2'), stride=2, padding=1)))
    y = block.bn3(F.conv2d(y, weight('conv3')))
    expected = F.relu(y + block.downsample(x))
    assert_close((block(x),), (expected,), 1e-6)
    assert model.layer3[1].conv2.relaxation.up.any()


@torch.no_grad()
@pytest.mark.parametrize('loop_norm', ['shared', 'lvbn'])
def test_a_relaxed_loop_by_hand(loop_norm: str) -> None:
    torch.manual_seed(0)
    loop = LoopBlock(BasicBlock(6, 6), 3, loop_norm=loop_norm, relaxation_rank=2).eval()
    randomise_norms(loop)
    for module in loop.modules():
        if isinstance(module, LowRankResidual):
            nn.init.normal_(module.up)
    x = y = image(2, 6, 5, 5)
    for k in range(3):
        z = y
        for place in (1, 2):
            conv, norm = getattr(loop.block, f'conv{place}'), getattr(loop.block, f'bn{place}')
            own = conv.relaxations[k]
            z = F.conv2d(z, conv.weight + (own.up @ own.down).reshape(6, 6, 3, 3), padding=1)
            z = (norm if loop_norm == 'shared' else norm[k])(z)
            z = F.relu(z) if place == 1 else F.relu(z + y)
        y = z
    assert_close((loop(x),), (y,), 1e-6)
    loop.switch_to_deploy()
    assert_close((loop(x),), (y,), 1e-5)
    assert not any(isinstance(module, LowRankResidual) for module in loop.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    'kind, arguments',
    [
        (ResNetShared, dict(depth=50, share='all', share_first=True)),
        (DRResNet, dict(depth=None, blocks=(1, 2, 2, 2), loops=(1, 1, 3, 2))),
    ],
)
def test_training_starts_from_the_network_without_residuals(kind: type, arguments: dict) -> None:
    torch.manual_seed(0)
    bare = kind(base_channels=4, **arguments).eval()
    relaxed = kind(base_channels=4, relaxation_rank=2, **arguments).eval()
    relaxed.init_weights()
    missing, unexpected = relaxed.load_state_dict(bare.state_dict(), strict=False)
    assert not unexpected and missing
    assert all(name.endswith(('.up', '.down')) and '.relaxation' in name for name in missing)
    x = image(2, 3, 32, 32)
    assert_close(relaxed(x), bare(x), 1e-6)


WRONG = [
    ('ResNetShared', dict(depth=50, share=('all', 'all')), r"share=\('all', 'all'\), .* each of 4 stages"),
    ('ResNetShared', dict(depth=50, share=(None, 'most', None, None)), r"share\[1\]='most', allowed: None"),
    ('ResNetShared', dict(depth=18, share=(None, 'all', None, None)), r"share\[1\]='all' with depth=18"),
    ('ResNetShared', dict(depth=50, share_first=1), 'share_first=1.*allowed: True or False'),
    ('ResNetShared', dict(depth=18, share_first=(True,) * 3), 'share_first=.*one for each of 4 stages'),
    ('ResNetShared', dict(depth=50, share_first=(True, True, 0, True)), r'share_first\[2\]=0.*True or False'),
    ('ResNetShared', dict(depth=50, relaxation_rank=-1), 'relaxation_rank=-1, allowed: an integer'),
    ('ResNetShared', dict(depth=50, relaxation_rank='4'), "relaxation_rank='4', allowed: an integer"),
    ('ResNetShared', dict(depth=18, relaxation_rank=4), 'relaxation_rank=4 with depth=18, allowed: 0'),
    ('ResNetShared', dict(depth=18, shared_rank=(4, 4, -4, 4)), r'shared_rank\[2\]=-4, allowed'),
    ('ResNetShared', dict(depth=20, bases=(1, 2, 3)), r'bases\[2\]=3, allowed: 1, 2'),
    ('DRResNet', dict(depth=53, relaxation_rank=(1, 1)), r'relaxation_rank=\(1, 1\), .* each of 4 stages'),
    ('DRResNet', dict(depth=53, relaxation_rank=True), 'relaxation_rank=True, allowed'),
    ('DRMobileNetV2', dict(relaxation_rank=(1,) * 8), 'relaxation_rank=.*one for each of 7 stages'),
]  # fmt: skip


@pytest.mark.parametrize('kind, arguments, message', WRONG)
def test_wrong_options_are_named(kind: str, arguments: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        MODELS.build(dict(type=f'mmrecur.{kind}', **arguments))
