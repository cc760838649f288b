"""The authors' ResNet-Shared networks, replayed through ``convert``."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrecur.checkpoint import Report, convert
from mmrecur.errors import TransferError
from mmrecur.models.backbones import ResNetShared, RLAResNet
from tests import golden
from tests.checkpoint.net_rl2_networks import MobileNetV2SharedDouble, ResNeXtSingleShared
from tests.helpers import randomise_norms

NETWORKS = {
    'resnet34_s48u1': dict(type='ResNetShared', depth=34, shared_rank=48, unique_rank=1, bases=2),
    'resnet50_shared': dict(type='ResNetShared', depth=50, share='single'),
    'resnet50_shared_pp': dict(type='ResNetShared', depth=50, share='double'),
    'cifar10_resnet32_s16u1_double': dict(type='ResNetShared', depth=32, bases=2),
    'cifar10_resnet56_s16u1': dict(type='ResNetShared', depth=56, bases=1),
    'mobilenetv2_shared': dict(type='MobileNetV2Shared'),
    'cifar100_densenet121_s16u1': dict(type='DenseNetShared', last_basis='third'),
    'cifar100_resnet34_s32u1': dict(type='ResNetShared', depth=34, stem='cifar'),
}


class Classifier(nn.Module):
    """Laid out as an mmpretrain classifier: ``backbone``, pooling, ``head.fc``."""

    def __init__(self, num_classes: int, **backbone) -> None:
        super().__init__()
        self.backbone = MODELS.build({**backbone, 'type': 'mmrecur.' + backbone['type']})
        self.head = nn.Module()
        self.head.fc = nn.Linear(self.backbone.out_channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.backbone(x)[-1].mean((2, 3)))


def classifier_of(fixture: golden.Golden, **options) -> Classifier:
    classes = fixture.outputs['eval_0'].size(1)
    return Classifier(classes, **{**NETWORKS[fixture.name], **options})


def source_gradients(model: nn.Module, report: Report) -> dict[str, float]:
    """Norms of the gradients by every key that the source has for a parameter."""
    parameters = dict(model.named_parameters())
    norms = {
        source: parameters[target].grad.double().norm().item()
        for target, source in report.copied.items()
        if target in parameters
    }
    for key, why in report.unused.items():
        if match := re.fullmatch('the same tensor as (.*)', why):
            norms[key] = norms[match[1]]
    return norms


@pytest.mark.parametrize('name', NETWORKS)
def test_network_equals_the_authors(name: str) -> None:
    fixture = golden.load(name)
    model = classifier_of(fixture)
    state, report = convert(fixture.state_dict, 'net_rl2', model)
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        for form in ('dense', 'factorized'):
            deployed = copy.deepcopy(model)
            deployed.backbone.switch_to_deploy(form=form)
            assert golden.relative_error(deployed(fixture.input), fixture.outputs['eval_0']) < 1e-4
    golden.replay(fixture, model, lambda model: source_gradients(model, report))


#: Networks of the authors without stored outputs: theirs, ours, the exact count of parameters.
WRITTEN_OUT = {
    'mobilenetv2-shared++': (
        MobileNetV2SharedDouble,
        dict(type='MobileNetV2Shared', share='double', attention='eca'),
        dict(num_classes=1000),
        2_978_905,
    ),
    'resnext50-s64u4': (ResNeXtSingleShared, dict(type='ResNeXtShared'), dict(num_classes=100), 19_333_380),
    'resnext50': (
        ResNeXtSingleShared,
        dict(type='ResNeXtShared', shared_rank=0),
        dict(num_classes=100, shared_rank=0),
        23_177_124,
    ),
}


@pytest.mark.parametrize('name', WRITTEN_OUT)
def test_networks_written_out_have_the_authors_size(name: str) -> None:
    theirs, ours, arguments, expected = WRITTEN_OUT[name]
    with torch.device('meta'):
        models = theirs(**arguments), Classifier(arguments['num_classes'], **ours)
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [expected] * 2


@pytest.mark.parametrize('name', WRITTEN_OUT)
def test_network_equals_one_written_out(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours, arguments, _ = WRITTEN_OUT[name]
    if theirs is ResNeXtSingleShared:  # the same at another width
        narrow = dict(groups=4, base_width=4, shared_rank=arguments.get('shared_rank', 8))
        source = theirs(**narrow, channels=8, num_classes=7)
        model = Classifier(7, **{**ours, **narrow, 'base_channels': 8})
    else:
        source, model = theirs(7), Classifier(7, **ours)
        # an attention that differs from channel to channel
        for block in source.modules():
            if hasattr(block, 'chan_attention'):
                nn.init.normal_(block.chan_attention.conv.weight, std=3.0)
    randomise_norms(source)
    state, report = convert({'state_dict': source.state_dict()}, 'net_rl2', model)
    model.load_state_dict(state)
    assert not report.transformed and not report.initial
    accounted = [*report.copied.values(), *report.unused]
    assert sorted(accounted) == sorted(source.state_dict())
    x = torch.randn(2, 3, 40, 48)
    with torch.no_grad():
        expected = source.eval()(x)
        assert golden.relative_error(model.eval()(x), expected) < 1e-4
        model.backbone.switch_to_deploy()
        assert golden.relative_error(model(x), expected) < 1e-4


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_every_key_is_accounted_for_once_and_duplicates_are_named(prefix: str) -> None:
    fixture = golden.load('cifar10_resnet32_s16u1_double')
    model = classifier_of(fixture)
    source = {prefix + key: value for key, value in fixture.state_dict.items()}
    state, report = convert({'state_dict': source}, 'net_rl2', model)
    assert not report.transformed and not report.initial
    assert sorted(report.copied) == sorted(model.state_dict())
    accounted = [*report.copied.values(), *report.unused]
    assert sorted(accounted) == sorted(fixture.state_dict)
    # the last of a shared tensor's keys is the one that their code would keep
    last = 'layer2.4.shared_basis_2.weight'
    assert torch.equal(state['backbone.layer2.basis.conv2.weight'], fixture.state_dict[last])
    assert report.unused['shared_basis_2_2.weight'] == f'the same tensor as {last}'
    assert any(last in note and 'layer2.3.shared_basis_2.weight' in note for note in report.notes)
    # in a checkpoint that their code saved they agree
    saved = dict(fixture.state_dict)
    for key in saved:
        if match := re.search(r'layer(\d)\.\d\.shared_basis_(\d)', key):
            saved[key] = saved[f'shared_basis_{match[1]}_{match[2]}.weight']
    assert not convert(saved, 'net_rl2', model)[1].notes


def test_fourth_dense_block_gets_what_the_authors_one_reads() -> None:
    fixture = golden.load('cifar100_densenet121_s16u1')
    model = classifier_of(fixture, last_basis='own')
    assert sum(p.numel() for p in model.parameters()) == fixture.parameters
    state, report = convert(fixture.state_dict, 'net_rl2', model)
    model.load_state_dict(state)
    assert 'no block' in report.unused['shared_basis_4.weight']
    with torch.no_grad():
        assert golden.relative_error(model.eval()(fixture.input), fixture.outputs['eval_0']) < 1e-4


@pytest.mark.parametrize('name', ['resnet50_shared', 'mobilenetv2_shared', 'cifar100_densenet121_s16u1'])
def test_backbones_without_their_last_stages_take_what_they_have(name: str) -> None:
    fixture = golden.load(name)
    arguments = {**NETWORKS[name], 'type': f'mmrecur.{NETWORKS[name]["type"]}', 'out_indices': (2,)}
    model = MODELS.build(arguments)
    state, report = convert(fixture.state_dict, 'net_rl2', model)
    model.load_state_dict(state)
    assert not report.initial
    assert sorted([*report.copied.values(), *report.unused]) == sorted(fixture.state_dict)


def test_misfits_are_named() -> None:
    fixture = golden.load('cifar10_resnet32_s16u1_double')
    source = dict(fixture.state_dict)
    del source['layer2.1.coeff_conv1.weight']
    source['layer2.1.extra.weight'] = torch.zeros(1)
    with pytest.raises(TransferError) as error:
        convert(source, 'net_rl2', classifier_of(fixture))
    for part in ('layer2.1.conv1.coefficients.weight', 'layer2.1.extra.weight'):
        assert part in str(error.value)
    with pytest.raises(TransferError, match=r'conv1.coefficients.weight has shape \(16, 9, 1, 1\)'):
        convert(fixture.state_dict, 'net_rl2', classifier_of(fixture, shared_rank=8))
    with pytest.raises(TransferError, match='missing in the source: .*basis.conv2'):
        convert(golden.load('cifar10_resnet56_s16u1').state_dict, 'net_rl2', ResNetShared(56))
    # all shapes fit a network with one basis a stage, but half of the convolutions would read the wrong one
    with pytest.raises(TransferError, match='unexpected in the source: shared_basis_1_2.weight'):
        convert(fixture.state_dict, 'net_rl2', classifier_of(fixture, bases=1))
    with pytest.raises(ValueError, match="'net_rl2' with a backbone of type RLAResNet, allowed: one with"):
        convert(fixture.state_dict, 'net_rl2', RLAResNet(50, base_channels=8))
    # their network with attention into one without, which would compute something else
    attending = MobileNetV2SharedDouble(7).state_dict()
    with pytest.raises(TransferError, match='unexpected in the source: stage3.1.chan_attention.conv.weight'):
        convert(attending, 'net_rl2', Classifier(7, type='MobileNetV2Shared', share='double'))
    dense = golden.load('cifar100_densenet121_s16u1')
    with pytest.raises(TransferError, match='wrong shapes: .* has shape'):
        convert(dense.state_dict, 'net_rl2', classifier_of(dense, shared_rank=8, last_basis='own'))
