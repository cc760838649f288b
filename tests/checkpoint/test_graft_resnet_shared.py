"""Plain networks brought into shared bases: exact at full rank, least squares below it."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrecur.checkpoint import graft
from mmrecur.errors import TransferError
from mmrecur.models.backbones import (
    DenseNetShared,
    MobileNetV2Shared,
    ResNetShared,
    ResNeXtShared,
    SharedBasisBackbone,
)
from tests.helpers import randomise_norms
from tests.helpers.shared_bases import FULL_RANK, SMALL, error, plain
from tests.helpers.transfer import assert_complete, features


def grafted(model: SharedBasisBackbone, source: dict[str, Tensor]) -> dict[str, float]:
    """Graft, load, check the account; the errors that the report names, by layer."""
    randomise_norms(model, seed=5)
    state, report = graft(source, model)
    assert_complete(report, source, model, splits=True)
    model.load_state_dict(state)
    notes = [note for note in report.notes if note.startswith('relative error')]
    return {name: float(value) / 100 for name, value in re.findall(r'(layer\S+) ([\d.]+)%', ''.join(notes))}


@pytest.mark.parametrize('name', FULL_RANK)
def test_exact_where_the_rank_suffices(name: str) -> None:
    kind, arguments, small = FULL_RANK[name]
    off = dict(shared_rank=0) if kind is DenseNetShared else dict(share=None)
    source = plain(kind, **small, **off)
    model = kind(**arguments)
    errors = grafted(model, source.state_dict())
    assert errors and max(errors.values()) == 0
    assert error(features(model, (32, 48)), features(source, (32, 48))) < 1e-5
    for group in model.basis_groups():
        for matrix in group.shared:
            eye = torch.eye(len(matrix))
            torch.testing.assert_close(matrix @ matrix.T, eye, rtol=0, atol=1e-5)


def test_below_it_the_basis_is_the_best_and_the_report_says_how_far_off() -> None:
    source = plain(ResNetShared, depth=34, base_channels=8, share=None)
    model = ResNetShared(34, base_channels=8, bases=1, shared_rank=5, unique_rank=2)
    errors = grafted(model, source.state_dict())
    assert errors.keys() == {
        f'layer{i}.{j}.conv{k}' for i, n in enumerate((3, 4, 6, 3), 1) for j in range(1, n) for k in (1, 2)
    }
    kernels = {
        place: source.get_submodule(place).weight.flatten(1).double()
        for place in errors
        if place.startswith('layer3')
    }
    stacked = torch.cat([*kernels.values()])
    values = torch.linalg.svdvals(stacked)
    basis = model.layer3.basis['conv'].weight.flatten(1).double()
    rest = {place: kernel - kernel @ basis.T @ basis for place, kernel in kernels.items()}
    # Eckart and Young: the smallest error of any basis of this rank
    assert sum(r.square().sum() for r in rest.values()).item() == pytest.approx(
        values[20:].square().sum().item(), rel=1e-4
    )
    for place, kernel in kernels.items():
        conv = model.get_submodule(place)
        product = conv.coefficients.weight.flatten(1) @ conv.filters().flatten(1)
        off = ((product.double() - kernel).norm() / kernel.norm()).item()
        assert errors[place] == pytest.approx(off, abs=6e-4)
        # ... and the error that remains with 8 unique filters
        left = torch.linalg.svdvals(rest[place])[8:].square().sum().sqrt()
        assert off == pytest.approx((left / kernel.norm()).item(), rel=1e-4)


@pytest.mark.parametrize('ranks', [dict(shared_rank=37), dict(shared_rank=2, unique_rank=37)])
def test_more_filters_than_entries_in_one_are_named(ranks: dict) -> None:
    source = plain(ResNetShared, share=None, **SMALL).state_dict()
    with pytest.raises(TransferError, match='a basis of 37 filters, allowed for a fit: at most 36'):
        graft(source, ResNetShared(**SMALL, **ranks))


@pytest.mark.parametrize('share', ['single', 'double', 'all'])
def test_what_is_shared_as_a_whole_is_the_average(share: str) -> None:
    source = plain(ResNetShared, depth=50, base_channels=8, share=None)
    state = source.state_dict()
    model = ResNetShared(50, base_channels=8, share=share)
    errors = grafted(model, state)
    names = dict(single=['conv2'], double=['conv2', 'conv3'], all=['conv1', 'conv2', 'conv3'])[share]
    for name in names:
        mean = model.layer2.basis[name].weight
        # the orders of inner channels differ, sums over them do not
        inner = dict(conv1=[0], conv2=[0, 1], conv3=[1])[name]
        sums = torch.stack([state[f'layer2.{i}.{name}.weight'].sum(inner) for i in (1, 2, 3)])
        torch.testing.assert_close(mean.sum(inner), sums.mean(0), rtol=1e-4, atol=1e-4)
        first = state[f'layer2.1.{name}.weight']  # the first block keeps its order
        expected = ((first - mean).norm() / first.norm()).item()
        assert errors[f'layer2.1.{name}'] == pytest.approx(expected, abs=6e-4)
    assert torch.equal(getattr(model.layer2, '1').bn2.weight, state['layer2.1.bn2.weight'])
    # a network whose blocks have equal filters is grafted exactly
    for key in state:
        if match := re.fullmatch(rf'(layer\d)\.([2-9])\.({"|".join(names)})\.weight', key):
            state[key].copy_(state[f'{match[1]}.1.{match[3]}.weight'])
    assert max(grafted(model, state).values()) == 0
    assert error(features(model), features(source)) < 1e-5


def test_mobilenet_and_resnext() -> None:
    source = plain(MobileNetV2Shared, share=None, width_mult=0.25)
    model = MobileNetV2Shared(width_mult=0.25, out_indices=(5,))
    errors = grafted(model, source.state_dict())
    assert len(errors) == 2 + 3 + 2 + 2
    source = plain(ResNeXtShared, shared_rank=0, base_channels=8, groups=4)
    model = ResNeXtShared(shared_rank=8, base_channels=8, groups=4)
    before = {k: v.clone() for k, v in model.state_dict().items() if '.unique.' in k or '.basis.' in k}
    assert not grafted(model, source.state_dict())
    after = model.state_dict()
    assert before and all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(after['layer2.0.conv2.weight'], source.state_dict()['layer2.0.conv2.weight'])


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
def test_other_libraries_mobilenets(scope: str) -> None:
    pytest.importorskip(scope)
    torch.manual_seed(1)
    stages = (1, 4, 7)
    source = MODELS.build(dict(type=f'{scope}.MobileNetV2', widen_factor=0.25, out_indices=stages))
    randomise_norms(source)
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.mul_(100)  # maps stay below 6, where ReLU and ReLU6 are the same
    model = MobileNetV2Shared(None, width_mult=0.25, out_indices=stages)
    assert not grafted(model, source.state_dict())
    assert error(features(model), features(source)) < 1e-5
    model = MobileNetV2Shared(width_mult=0.25, out_indices=stages)
    assert len(grafted(model, source.state_dict())) == 2 + 3 + 2 + 2
    report = graft(source.state_dict(), model)[1]
    assert 'ReLU6' in report.notes[0]
    assert list(report.initial) == ['layer1.0.bn1.num_batches_tracked']
    # a network of this package has all
    report = graft(plain(MobileNetV2Shared, width_mult=0.25).state_dict(), model)[1]
    assert not report.notes and not report.transformed and not report.initial


def test_new_channel_attention_has_no_say_at_first() -> None:
    source = plain(MobileNetV2Shared, share=None, width_mult=0.25)
    state = source.state_dict()
    # sharing does not change blocks with equal filters
    for key in state:
        if match := re.fullmatch(r'layer([3-6])\.([23])\.(conv[13])\.weight', key):
            state[key].copy_(state[f'layer{match[1]}.1.{match[3]}.weight'])
    model = MobileNetV2Shared('double', 'eca', 0.25)
    errors = grafted(model, state)
    assert len(errors) == 2 * (2 + 3 + 2 + 2) and max(errors.values()) == 0
    assert error(features(model), features(source)) < 1e-5
    # every tensor of a network of the same class is copied
    again = MobileNetV2Shared('double', 'eca', 0.25)
    report = graft(model.state_dict(), again)[1]
    assert not report.transformed and not report.initial


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
def test_other_libraries_networks_in_a_detectors_state(scope: str) -> None:
    pytest.importorskip(scope)
    torch.manual_seed(1)
    source = nn.Module()
    source.backbone = MODELS.build(
        dict(type=f'{scope}.ResNet', depth=18, base_channels=4, stem_channels=4, out_indices=(0, 1, 2, 3))
    )
    source.neck = nn.Conv2d(4, 2, 1)
    randomise_norms(source)
    model = nn.Module()
    model.backbone = ResNetShared(bases=1, shared_rank=8, unique_rank=0, **SMALL)
    model.neck = nn.Conv2d(4, 2, 1)
    state, report = graft(source.state_dict(), model)
    assert_complete(report, source.state_dict(), model, splits=True)
    model.load_state_dict(state)
    assert error(features(model.backbone), features(source.backbone)) < 1e-5
    assert torch.equal(model.neck.weight, source.neck.weight)


def test_weights_of_a_shared_network_are_taken_as_they_are() -> None:
    for kind, arguments in (
        (ResNetShared, dict(shared_rank=3, **SMALL)),
        (ResNeXtShared, dict(shared_rank=8, base_channels=8, groups=4)),
        (DenseNetShared, dict(growth_rate=2, stem_channels=8)),
    ):
        source, model = plain(kind, **arguments), kind(**arguments)
        state, report = graft(source.state_dict(), model)
        assert not report.transformed and not report.initial
        assert all(torch.equal(state[key], value) for key, value in source.state_dict().items())
