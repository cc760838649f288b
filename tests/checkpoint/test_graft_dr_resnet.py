"""Plain networks made into ones with loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmrecur.checkpoint import graft
from mmrecur.checkpoint.grafts.dr_resnet import assign_blocks
from mmrecur.errors import TransferError
from mmrecur.models.backbones import DRMobileNetV2, DRResNet, RLAMobileNetV2
from tests.helpers import randomise_norms

SMALL = dict(depth=None, base_channels=4)


def plain(blocks: tuple[int, ...] = (1, 2, 7, 3)) -> DRResNet:
    torch.manual_seed(0)
    model = DRResNet(blocks=blocks, loops=(1, 1, 1, 1), **SMALL).eval()
    model.init_weights()
    randomise_norms(model)
    return model


def looped(**arguments) -> DRResNet:
    torch.manual_seed(1)
    shape = dict(blocks=(1, 2, 3, 2), loops=(1, 1, 3, 2))
    return DRResNet(**{**shape, 'gated': False, **SMALL, **arguments}).eval()


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 48, 48, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def with_equal_convolutions(model: DRResNet, *groups: tuple) -> DRResNet:
    """Give blocks that one loop stands for the convolutions of the first."""
    for stage, first, *others in groups:
        blocks = getattr(model, stage)
        for index in others:
            for conv in ('conv1', 'conv2', 'conv3'):
                getattr(blocks[index], conv).weight.copy_(getattr(blocks[first], conv).weight)
    return model


@pytest.mark.parametrize('fit', [False, True])
def test_blocks_with_equal_convolutions_become_a_loop_that_computes_the_same(fit: bool) -> None:
    source = with_equal_convolutions(plain(), ('layer3', 1, 2, 3), ('layer3', 4, 5, 6), ('layer4', 1, 2))
    model = looped()
    state, report = graft(source.state_dict(), model, images=images() if fit else None)
    model.load_state_dict(state)
    with torch.no_grad():
        for ours, theirs in zip(model(images()), source(images())):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert 'layer3.1 0.0%' in report.notes[0] and 'layer4.1 0.0%' in report.notes[0]


def test_without_images_a_loop_starts_as_its_first_block() -> None:
    source, model = plain().state_dict(), looped(gated=True)
    state, report = graft(source, model)
    for conv in ('conv1', 'conv2', 'conv3'):
        assert torch.equal(state[f'layer3.2.block.{conv}.weight'], source[f'layer3.4.{conv}.weight'])
    for index, block in enumerate((4, 5, 6)):
        for leaf in ('weight', 'running_var', 'num_batches_tracked'):
            ours, theirs = state[f'layer3.2.block.bn3.{index}.{leaf}'], source[f'layer3.{block}.bn3.{leaf}']
            # the other iterations are the identity
            assert torch.equal(ours, torch.zeros_like(theirs) if index and leaf == 'weight' else theirs)
    assert torch.equal(state['layer3.0.conv1.weight'], source['layer3.0.conv1.weight'])
    assert all('.gate.' in key for key in report.initial) and len(report.initial) == 3 * 4
    assert '||W - W' in report.notes[0]


def test_a_loop_whose_iterations_share_norms_is_the_average() -> None:
    source, model = plain().state_dict(), looped(loop_norm='shared')
    state, _ = graft(source, model)
    mean = torch.stack([source[f'layer4.{i}.bn3.running_mean'] for i in (1, 2)]).mean(0)
    torch.testing.assert_close(state['layer4.1.block.bn3.running_mean'], mean)
    # the mean over inner channels does not depend on their order
    mean = torch.stack([source[f'layer4.{i}.conv1.weight'].mean(0) for i in (1, 2)]).mean(0)
    torch.testing.assert_close(state['layer4.1.block.conv1.weight'].mean(0), mean)


@pytest.mark.parametrize('batch', [None, images()])
def test_as_many_loops_as_blocks_are_exact(batch: Tensor | None) -> None:
    source, model = plain((1, 2, 3, 2)), looped(blocks=(1, 2, 5, 2), loops=(1, 1, 3, 2))
    state, report = graft(source.state_dict(), model, images=batch)
    model.load_state_dict(state)
    with torch.no_grad():
        for ours, theirs in zip(model(images()), source(images())):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert set(report.errors.values()) == {0.0}


def test_images_choose_what_reconstructs_better() -> None:
    source, batch = plain(), images(8)
    first, _ = graft(source.state_dict(), looped())
    average, (fitted, report) = dict(first), graft(source.state_dict(), looped(), images=batch)
    for name, value in source.state_dict().items():
        for index, block in enumerate(('layer3.1.', 'layer3.2.', 'layer3.3.')):
            leaf = name.removeprefix(block)
            if leaf.startswith('conv') and leaf != name:
                own = [source.state_dict()[f'layer3.{i}.{leaf}'] for i in (1, 2, 3)]
                average[f'layer3.1.block.{leaf}'] = torch.stack(own).mean(0)
            elif leaf != name:
                average[f'layer3.1.block.{leaf.replace(".", f".{index}.")}'] = value
    wholes = []
    for state in (first, average, fitted):
        model = looped()
        model.load_state_dict(state)
        with torch.no_grad():
            x = source.maxpool(source.relu(source.bn1(source.conv1(batch))))
            x = source.layer3[0](source.layer2(source.layer1(x)))
            wanted = source.layer3[3](source.layer3[2](source.layer3[1](x)))
            wholes.append(((model.layer3[1](x) - wanted).norm() / wanted.norm()).item())
    assert wholes[2] < min(wholes[:2])
    assert report.errors['layer3.1'] == pytest.approx(wholes[2], rel=1e-3)
    assert 'least squares' in report.notes[0] and "||y - y'||" in report.notes[0]


def test_resnet_101_has_a_block_for_each_iteration_of_dr_53() -> None:
    with torch.device('meta'):
        source = DRResNet(depth=None, blocks=(3, 4, 23, 3), loops=(1, 1, 1, 1)).state_dict()
        places = assign_blocks(DRResNet(53), {name: name for name in source})
    assert places['layer4.1'] == ['layer4.1', 'layer4.2']
    used = [block for loop, blocks in places.items() if loop.startswith('layer3') for block in blocks]
    assert len(used) == len(set(used)) == 21 and used[0] == 'layer3.1' and used[-1] == 'layer3.22'


def test_blocks_nobody_stands_for_are_explained_and_few_blocks_repeat() -> None:
    source = plain((1, 2, 9, 2)).state_dict()
    state, report = graft(source, looped(gated=True))
    assert set(report.unused.values()) == {'a block that no iteration stands for'}
    assert {key.split('.')[0] for key in report.unused} == {'layer3'}
    assert torch.equal(state['layer4.1.block.bn1.0.weight'], state['layer4.1.block.bn1.1.weight'])
    assert not state['layer4.1.block.bn3.1.weight'].any() and report.errors['layer4.1'] == 0


@pytest.mark.parametrize('batch', [None, images()])
def test_a_stage_without_loops_may_have_fewer_blocks(batch: Tensor | None) -> None:
    """As DR-ResNet-35's second stage has fewer than ResNet-50's."""
    source = with_equal_convolutions(plain((1, 4, 7, 3)), ('layer4', 1, 2))
    model = looped(blocks=(1, 3, 3, 2))
    state, report = graft(source.state_dict(), model, images=batch)
    model.load_state_dict(state)
    assert {key.rsplit('.', 2)[0] for key in report.unused} == {'layer2.3'}
    with torch.no_grad():
        x = source.layer4[0](images()[:, :, :6, :6].mean(1, keepdim=True).expand(-1, 64, -1, -1))
        wanted = source.layer4[2](source.layer4[1](x))
        torch.testing.assert_close(model.layer4[1](x), wanted, rtol=1e-3, atol=1e-4)


def test_loops_are_fitted_on_the_device_of_the_model() -> None:
    source, model, batch = plain().state_dict(), looped(), images()
    with torch.device('meta'):  # where tensors of no stated device would lie
        state, _ = graft(source, model, images=batch)
    assert {tensor.device.type for tensor in state.values()} == {'cpu'}


@pytest.mark.parametrize('batch', [None, images()])
def test_other_blocks_are_named(batch: Tensor | None) -> None:
    source = plain().state_dict()
    basic = {key: value for key, value in source.items() if '.conv3.' not in key and '.bn3.' not in key}
    with pytest.raises(TransferError, match=r'no layer3.1.conv3.weight, allowed for layer3.1: .* shape'):
        graft(basic, looped(), images=batch)
    shapes = r'\(16, 64, 1, 1\) layer3.1.conv1.weight, allowed .* \(32, 128, 1, 1\)'
    with pytest.raises(TransferError, match=shapes):
        graft(source, looped(base_channels=8), images=batch)


def test_a_network_with_loops_is_taken_as_it_is() -> None:
    source = looped(gated=True)
    state, report = graft(source.state_dict(), looped(gated=True))
    assert len(report.copied) == len(state) and not report.initial


def test_mobilenet() -> None:
    source = RLAMobileNetV2(0.25, rla_channels=0, out_indices=(7,))
    model = DRMobileNetV2(0.25, out_indices=(7,))
    state, report = graft(source.state_dict(), model)
    model.load_state_dict(state)
    assert torch.equal(state['layer4.1.block.bn2.2.weight'], source.state_dict()['layer4.3.bn2.weight'])
    state, report = graft(source.state_dict(), model, images=images())
    assert isinstance(model.layer4[1].block, nn.Module) and "||y - y'||" in report.notes[0]
