"""State dicts contain every tensor once, so formats without aliases (safetensors) can store them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import mmrecur.registry  # noqa: F401
from mmrecur.models.backbones import RecNet, RLAXception
from mmrecur.models.layers import share_convs
from mmrecur.models.shortest_path import ShortestPathNet
from tests.models.zoo import BACKBONES


def tensors_with_several_names(model: nn.Module) -> list[list[str]]:
    """Names in the state dict that share memory, which includes views of one tensor."""
    names = defaultdict(list)
    for name, value in model.state_dict().items():
        if value.numel():
            names[value.untyped_storage().data_ptr()].append(name)
    return [group for group in names.values() if len(group) > 1]


@pytest.mark.parametrize('name', BACKBONES)
def test_every_tensor_has_one_name(name: str) -> None:
    model = MODELS.build(BACKBONES[name]).eval()
    assert tensors_with_several_names(model) == []
    model.switch_to_deploy()
    assert tensors_with_several_names(model) == []


@pytest.mark.parametrize('options', [{}, dict(norm_cfg=dict(type='GN', num_groups=2))])
@pytest.mark.parametrize('activation', ['relu', 'shared_bn', 'separate_bn', 'linear'])
def test_steps_that_share_both_convolutions_share_them_under_one_name(activation: str, options: dict) -> None:
    """Kernels of two sizes cannot be joined, so the inference form keeps W_x for all steps."""
    torch.manual_seed(0)
    model = RecNet(
        expansion=2, segments=(2, 4), steps=(3, 2), activation=activation, kernel_size_x=1, **options
    ).eval()
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        model.switch_to_deploy()
        assert tensors_with_several_names(model) == []
        for ours, expected in zip(model(x), before):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_other_modules_name_their_tensors_once() -> None:
    from torchvision.models import resnet18

    network = resnet18()
    share_convs(network, num_templates=1)
    assert tensors_with_several_names(network) == []
    assert tensors_with_several_names(ShortestPathNet()) == []


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('through', ['torch', 'mmengine'])
def test_xception_takes_checkpoints_with_a_w_r_in_every_cell(through: str, deploy: bool) -> None:
    model = RLAXception(base_channels=4, rla_channels=4).eval()
    if deploy:
        model.switch_to_deploy()
    state = model.state_dict()
    names = [name for name in state if name.endswith('rla.recurrent_conv.weight')]
    assert len(names) == 2
    old = {name: value.clone() for name, value in state.items()}
    for name in names:
        weight = torch.randn_like(old.pop(name))
        stage = name.split('.')[0]
        for index in range(len(getattr(model, stage).rla.cells)):
            old[f'{stage}.rla.cells.{index}.recurrent_conv.weight'] = weight
    given = set(old)
    if through == 'torch':
        model.load_state_dict(old, strict=True)
    else:
        load_state_dict(model, old, strict=True)
    assert set(old) == given
    for name in names:
        key = f'{name.split(".")[0]}.rla.cells.0.recurrent_conv.weight'
        assert torch.equal(model.state_dict()[name], old[key])


def test_safetensors_takes_every_form(tmp_path: Path) -> None:
    safetensors = pytest.importorskip('safetensors.torch')
    for name in ('rla-xception', 'recnet-linear', 'shared-r18', 'rla-mobilenet-network'):
        model = MODELS.build(BACKBONES[name])
        for deploy in (False, True):
            if deploy:
                # in rows, as the format stores them: convolutions of the inference form lie channels last
                model.switch_to_deploy(memory_format=torch.contiguous_format)
            safetensors.save_file(model.state_dict(), str(tmp_path / 'weights.safetensors'))
            loaded = safetensors.load_file(str(tmp_path / 'weights.safetensors'))
            model.load_state_dict(loaded)
