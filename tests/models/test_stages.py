"""Stages as lists of blocks, blocks as one map, and the layers of layer-wise learning rates."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmrecur.models.backbones import Backbone
from mmrecur.registry import MODELS
from tests.helpers import build, image
from tests.models.zoo import BACKBONES, DISTINCT


def stages(model: Backbone) -> list[nn.Module]:
    """The stages that have blocks."""
    names = ('layer{}', 'denseblock{}')
    found = [getattr(model, n.format(i + 1), None) for i in range(model.num_stages) for n in names]
    return [stage for stage in found if stage is not None]


@pytest.mark.parametrize('name', DISTINCT)
@pytest.mark.parametrize('deploy', [False, True])
def test_stages_are_lists_of_blocks(name: str, deploy: bool) -> None:
    model = build(name)
    if deploy:
        model.switch_to_deploy()
    assert stages(model)
    for stage in stages(model):
        blocks = [module for key, module in stage.named_children() if key.isdigit() or 'denselayer' in key]
        blocks = blocks or [*stage.blocks]
        assert len(stage) == len(blocks) > 0
        assert all(a is b for a, b in zip([*stage], blocks, strict=True))
        assert stage[0] is blocks[0] and stage[-1] is blocks[-1] and stage[len(stage) - 1] is blocks[-1]
        assert all(a is b for a, b in zip(stage[1:], blocks[1:], strict=True))
        with pytest.raises(IndexError):
            stage[len(stage)]


@pytest.mark.parametrize('name', DISTINCT)
@pytest.mark.parametrize('deploy', [False, True])
def test_class_activation_maps_of_every_stage(name: str, deploy: bool) -> None:
    """As Grad-CAM tools take them: hooks on the last block of a stage see one map and its gradient."""
    model, maps, grads = build(name).eval(), [], []
    if deploy:
        # not channels last: with 8 channels, PyTorch 2.13 on CPUs with AVX-512 writes beyond a buffer in the
        # backward pass of a strided 1x1 convolution
        model.switch_to_deploy(torch.contiguous_format)

    def record(block: nn.Module, inputs: tuple, output: Tensor) -> None:
        index = len(maps)
        maps.append(output)
        output.register_hook(lambda grad: grads.append((index, grad)))

    for stage in stages(model):
        stage[-1].register_forward_hook(record)
    outputs = model(image(1, 3, 64, 96))
    assert len(maps) == len(stages(model))
    seen = [map_.detach().clone() for map_ in maps]
    sum(output.square().sum() for output in outputs).backward()
    for index, grad in grads:
        cam = torch.relu((grad.mean((2, 3), keepdim=True) * maps[index]).sum(1))
        assert cam.shape == (1, *maps[index].shape[2:]) and grad.abs().sum() > 0
    assert sorted({index for index, _ in grads}) == [*range(len(maps))]
    # tools keep the map without a copy, so later layers must not write into it
    assert all(torch.equal(map_, before) for map_, before in zip(maps, seen))


def first_uses(model: Backbone) -> list[str]:
    """Modules with parameters of their own, in the order in which a forward pass calls them first."""
    order: dict[str, None] = {}
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda *call, name=name: order.setdefault(name))
    with torch.no_grad():
        model(image(2, 3, 64, 64))
    return [*order]


@pytest.mark.parametrize('name', BACKBONES)
def test_layers_follow_the_order_of_computation(name: str) -> None:
    """Layers are ordered from the stem to the last norms; shared ones belong to their first block."""
    model = build(name).eval()
    for module in model.modules():  # every loop to its end
        if hasattr(module, 'skip'):
            module.skip = False
    layers, count = model.parameter_layers()
    assert layers.keys() == {n for n, _ in model.named_parameters(remove_duplicate=False)}
    parameters = {name: [n for n, _ in m.named_parameters(name, False)] for name, m in model.named_modules()}
    order = [layers[n] for name in first_uses(model) for n in parameters[name]]
    assert order == sorted(order) and order[0] == 0
    ends = {n.split('.')[0] for n, layer in layers.items() if layer == count - 1}
    assert ends <= {'final_norm', 'hidden_norm', 'norm'}
    # a layer for the stem, each block, the convolution after them, the head
    has_conv = any(n.startswith('conv2') for n in layers) and 'MobileNet' in type(model).__name__
    assert count == 2 + sum(map(len, stages(model))) + has_conv
    assert set(layers.values()) | {count - 1} == {*range(count)}


@pytest.mark.parametrize(
    'name, names',
    {
        'rla-r50': {'layer2.rla.conv_out.weight': 'layer2.0', 'layer2.rla.norms.2.weight': 'layer2.2'},
        'rla-r50-unshared': {'layer2.rla.steps.2.conv_out.weight': 'layer2.2'},
        'rla-r50-lstm': {'layer3.rla.unit.gates.weight': 'layer3.0'},
        'rla-mobilenet': {'recurrent_convs.3.weight': 'layer4.0', 'layer4.rla.norms.1.bias': 'layer4.1'},
        'rla-mobilenet-network': {'recurrent_convs.0.weight': 'layer1.0'},
        'rla-xception': {
            'layer2.rla.recurrent_conv.weight': 'layer2.blocks.0',
            'layer2.rla.cells.1.conv_out.weight': 'layer2.blocks.8',
        },
        'lag-densenet-bc': {
            'denseblock2.shared_conv1.weight': 'denseblock2.denselayer1',
            'transition1.conv.weight': 'denseblock2.denselayer1',
        },
        'shared-r18': {'layer3.basis.conv1.weight': 'layer3.0'},
        'shared-densenet-third': {
            'layer3.basis.conv2.weight': 'layer3.0',
            'transition3.conv.weight': 'layer4.0',
        },
        'swrn-50-2': {'layer3.bank2.templates': 'layer3.0', 'layer3.bank2.coefficients': 'layer3.0'},
        'dr-r': {'layer3.1.gate.fc2.bias': 'layer3.1', 'layer3.1.block.bn1.2.weight': 'layer3.1'},
        'recnet': {'layer2.1.crc.conv_h.weight': 'layer2.1'},
    }.items(),
)
def test_shared_parts_belong_to_the_first_block_that_uses_them(name: str, names: dict[str, str]) -> None:
    layers, _ = build(name).parameter_layers()
    for parameter, block in names.items():
        of_block = {layers[n] for n in layers if n.startswith(f'{block}.') and n != parameter}
        assert {layers[parameter]} == of_block, parameter


@pytest.mark.parametrize('name', DISTINCT)
def test_layer_wise_learning_rates_of_mmpretrain(name: str) -> None:
    classifiers = pytest.importorskip('mmpretrain.models.classifiers')
    optimizers = pytest.importorskip('mmpretrain.engine.optimizers')
    backbone = build(name)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = classifiers.ImageClassifier(
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=backbone.out_channels[-1]),
        )
    constructor = optimizers.LearningRateDecayOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1)),
        dict(layer_decay_rate=0.5, norm_decay_mult=0.0),
    )
    wrapper = constructor(model)
    assert isinstance(wrapper, OptimWrapper)
    groups = {group['param_name']: group for group in wrapper.optimizer.param_groups}
    assert groups.keys() == {n for n, _ in model.named_parameters()}
    assert len(groups) == len(wrapper.optimizer.param_groups)
    layers, count = backbone.parameter_layers()
    for parameter, group in groups.items():
        layer = layers.get(parameter.removeprefix('backbone.'), count - 1)
        assert group['lr'] == 0.5 ** (count - 1 - layer)
    assert groups['head.fc.weight']['lr'] == 1.0


def test_every_backbone_is_in_the_suite() -> None:
    kinds = {name: kind for name, kind in MODELS.module_dict.items() if isinstance(kind, type)}
    registered = {name for name, kind in kinds.items() if issubclass(kind, Backbone)}
    assert registered == {cfg['type'].removeprefix('mmrecur.') for cfg in BACKBONES.values()}
