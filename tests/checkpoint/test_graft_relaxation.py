"""Plain networks grafted into ones whose residuals relax the sharing: exact at full rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmrecur.checkpoint import Report, graft
from mmrecur.models.backbones import DRMobileNetV2, DRResNet, ResNetShared, RLAMobileNetV2
from tests.helpers import assert_close, image, randomise_norms

FULL = 99  # more than any rank of these networks


def plain(kind: type, **arguments) -> nn.Module:
    torch.manual_seed(1)
    model = kind(**arguments).eval()
    randomise_norms(model)
    return model


@torch.no_grad()
def make_alike(model: nn.Module) -> nn.Module:
    """Give the blocks of a stage similar weights, so that their channels are in the same order."""
    state = model.state_dict()
    for name, value in state.items():
        stage, block, rest = [*name.split('.', 2), '', ''][:3]
        first = state.get(f'{stage}.1.{rest}')
        if block.isdigit() and value.dim() == 4 and first is not None and first.shape == value.shape:
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name) + int(block)))
            value.copy_(first + 0.3 * first.std() * noise)
    return model


def fill(model: nn.Module, source: nn.Module, images: Tensor | None = None) -> Report:
    """Graft and load; every entry of the model is explained once."""
    randomise_norms(model, seed=5)
    state, report = graft(source.state_dict(), model.eval(), images=images)
    assert sorted([*report.copied, *report.transformed, *report.initial]) == sorted(model.state_dict())
    model.load_state_dict(state)
    return report


@torch.no_grad()
@pytest.mark.parametrize('share_first', [False, True])
def test_shared_convolutions_are_exact_at_full_rank(share_first: bool) -> None:
    source = plain(ResNetShared, depth=50, base_channels=4, share=None)
    model = ResNetShared(50, base_channels=4, share='all', share_first=share_first, relaxation_rank=FULL)
    errors = fill(model, source).errors
    assert len(errors) == 3 * (2 + 3 + 5 + 2) + 2 * 4 * share_first and max(errors.values()) < 1e-12
    x = image(2, 3, 48, 32)
    assert_close(model(x), source(x), 1e-5)
    model.switch_to_deploy()
    assert_close(model(x), source(x), 1e-4)


def test_below_it_the_residual_is_the_nearest_and_the_report_says_how_far_off() -> None:
    source = make_alike(plain(ResNetShared, depth=50, base_channels=4, share=None))
    model = ResNetShared(
        50,
        base_channels=4,
        share=('double', None, 'single', 'double'),
        share_first=(False, True, True, False),
        relaxation_rank=(1, 1, 3, 0),
    )
    errors, state = fill(model, source).errors, source.state_dict()
    places = {f'layer{i}.{j}.conv{k}' for i, k in ((1, 2), (1, 3), (4, 2), (4, 3)) for j in (1, 2)}
    assert errors.keys() == places | {f'layer3.{j}.conv2' for j in range(6)}
    for stage, blocks, conv, rank in (
        (1, (1, 2), 'conv3', 1),
        (3, range(6), 'conv2', 3),
        (4, (1, 2), 'conv2', 0),
    ):
        weights = {f'layer{stage}.{j}.{conv}': state[f'layer{stage}.{j}.{conv}.weight'] for j in blocks}
        mean = torch.stack([*weights.values()]).mean(0)
        torch.testing.assert_close(model.get_submodule(f'layer{stage}.basis.{conv}').weight, mean)
        for place, weight in weights.items():
            left = torch.linalg.svdvals((weight - mean).flatten(1))[rank:].square().sum().sqrt()
            assert errors[place] == pytest.approx((left / weight.norm()).item(), rel=1e-4)
            off = model.get_submodule(place).filters() - weight
            assert errors[place] == pytest.approx((off.norm() / weight.norm()).item(), rel=1e-4)


def loops(**arguments) -> DRResNet:
    torch.manual_seed(2)
    return DRResNet(None, (1, 2, 3, 2), (1, 1, 2, 2), base_channels=4, **arguments)


@torch.no_grad()
@pytest.mark.parametrize('images', [None, image(2, 3, 32, 32)], ids=['weights', 'images'])
@pytest.mark.parametrize('gated', [False, True])
def test_loops_are_exact_at_full_rank(gated: bool, images: Tensor | None) -> None:
    source = plain(DRResNet, depth=None, blocks=(1, 2, 5, 3), loops=(1, 1, 1, 1), base_channels=4)
    model = loops(gated=gated, relaxation_rank=FULL)
    report = fill(model, source, images)
    assert report.errors.keys() == {'layer3.1', 'layer3.2', 'layer4.1'} and max(report.errors.values()) < 1e-5
    for loop in model.loop_blocks().values() if gated else ():
        loop.gate.fc2.bias.copy_(torch.tensor([-100.0, 100.0]))  # every sample passes
    x = image(3, 3, 33, 48)
    assert_close(model(x), source(x), 1e-5)
    model.switch_to_deploy()
    assert_close(model(x), source(x), 1e-4)


@torch.no_grad()
def test_cifar_loops_are_exact_at_full_rank() -> None:
    source = plain(DRResNet, depth=None, blocks=(2, 3, 3), loops=(1, 1, 1), stem='cifar', base_channels=4)
    model = DRResNet(
        None, (2, 2, 2), (1, 2, 2), stem='cifar', gated=False, base_channels=4, relaxation_rank=FULL
    )
    fill(model, source)
    x = image(2, 3, 16, 16)
    assert_close(model(x), source(x), 1e-5)


def test_errors_of_loops_fall_with_the_rank() -> None:
    source = plain(DRResNet, depth=None, blocks=(1, 2, 5, 3), loops=(1, 1, 1, 1), base_channels=4)
    errors = [fill(loops(relaxation_rank=(0, 0, rank, 0)), source).errors for rank in (0, 2, 8)]
    for loop in ('layer3.1', 'layer3.2'):
        assert errors[0][loop] > errors[1][loop] > errors[2][loop] > 0
    assert errors[0]['layer4.1'] == errors[2]['layer4.1']


def test_the_error_of_a_loop_is_that_of_its_weights() -> None:
    source = plain(DRResNet, depth=None, blocks=(1, 2, 5, 3), loops=(1, 1, 1, 1), base_channels=4)
    make_alike(source)
    model = loops(relaxation_rank=2)
    errors, state = fill(model, source).errors, source.state_dict()
    off, whole = 0.0, 0.0
    for name in ('conv1', 'conv2', 'conv3'):
        conv = model.layer4[1].block.get_submodule(name)
        for iteration in (0, 1):
            weight = state[f'layer4.{iteration + 1}.{name}.weight']
            off += (conv.materialise(iteration).weight - weight).square().sum().item()
            whole += weight.square().sum().item()
    assert errors['layer4.1'] == pytest.approx((off / whole) ** 0.5, rel=1e-4)


def test_depthwise_convolutions_of_loops_stay_the_average() -> None:
    source = make_alike(plain(RLAMobileNetV2, width_mult=0.25, rla_channels=0, out_indices=(4,)))
    model = DRMobileNetV2(0.25, relaxation_rank=FULL, out_indices=(4,))
    report, state = fill(model, source), source.state_dict()
    assert min(report.errors.values()) > 0.05
    block = model.layer4[1].block
    assert type(block.conv2) is nn.Conv2d
    mean = torch.stack([state[f'layer4.{i}.conv2.weight'] for i in (1, 2, 3)]).mean(0)
    torch.testing.assert_close(block.conv2.weight, mean)
    for iteration in range(3):
        expected = state[f'layer4.{iteration + 1}.conv1.weight']
        torch.testing.assert_close(block.conv1.materialise(iteration).weight, expected)


def test_a_relaxed_network_is_taken_as_it_is() -> None:
    for make in (
        lambda: loops(relaxation_rank=2),
        lambda: ResNetShared(50, base_channels=4, share='double', relaxation_rank=2),
    ):
        model, source = make(), make()
        report = fill(model, source)
        assert not report.transformed and not report.initial
