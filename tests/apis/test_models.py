"""Models by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmrecur.apis import get_model, list_models
from mmrecur.errors import ToolError

ROOT = Path(__file__).parents[2]


def test_every_config_of_a_family_has_a_name() -> None:
    configs = {
        path.stem
        for path in (ROOT / 'configs').rglob('*.py')
        if not {'_base_', 'demo'} & set(path.parts)
        and 'jpeg' not in path.stem  # the demo and JPEG configs are for experiments
    }
    assert set(list_models()) == configs
    assert list_models('rla-eca-resnet50') == [
        'rla-eca-resnet50-d_4xb64-tricks-200e_in1k',
        'rla-eca-resnet50_4xb64_in1k',
    ]
    assert all(name.startswith('mask') for name in list_models(task='Instance Segmentation'))
    assert len(list_models('faster-rcnn_rla*', 'Object Detection')) == 4
    kinds = ('cnn', 'scnn', 'scnn-r')
    assert list_models(task='Shortest Paths') == [f'shortest-path_{kind}' for kind in kinds]
    with pytest.raises(ValueError, match="task='Tracking', allowed: None, .*'Object Detection'"):
        list_models(task='Tracking')


def test_models_build_and_take_weights(tmp_path: Path) -> None:
    options = {'model.backbone.base_channels': 8, 'model.head.in_channels': 8 * 32 + 32}
    model = get_model('rla-resnet50_4xb64_in1k', options=options)
    assert model.head.fc.in_features == 8 * 32 + 32
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    path = str(tmp_path / 'weights.pth')
    again = get_model('rla-resnet50_4xb64_in1k', path, options=options)
    backbone = get_model('rla-resnet50_4xb64_in1k', path, backbone_only=True, options=options)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
        if key.startswith('backbone.'):
            assert torch.equal(backbone.state_dict()[key.removeprefix('backbone.')], value)


def test_models_that_are_no_classifiers_or_detectors_build_too() -> None:
    model = get_model('shortest-path_scnn', options={'model.num_layers': 3, 'model.num_templates': 2})
    assert model(torch.rand(2, 2, 9, 9)).shape == (2, 9, 9)
    with pytest.raises(ToolError, match='shortest-path_scnn.py.* has no backbone'):
        get_model('shortest-path_scnn', backbone_only=True)


def test_wrong_names_and_missing_weights_are_named() -> None:
    with pytest.raises(ValueError, match="name='resnet50', allowed: .*rla-resnet50_4xb64_in1k"):
        get_model('resnet50')
    with pytest.raises(ValueError, match='no weights are published for .*rla-resnet50_4xb64_in1k'):
        get_model('rla-resnet50_4xb64_in1k', pretrained=True)
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        get_model('rla-resnet50_4xb64_in1k', 'nowhere.pth', backbone_only=True)
