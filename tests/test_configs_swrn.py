"""The SWRN configs follow the paper."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs' / 'swrn'
CIFAR = sorted(p.stem for p in FOLDER.glob('*_cifar10.py')) + sorted(
    p.stem for p in FOLDER.glob('*_cifar100.py')
)
METAFILE = {
    model['Name']: model['Metadata']['Parameters']
    for model in yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
}
COUNTS = json.loads((ROOT / 'tests/data/parameters.json').read_text())['swrn (author implementation)']


def load(name: str) -> Config:
    return Config.fromfile(FOLDER / f'{name}.py')


def build(cfg: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', CIFAR)
def test_names_say_what_the_configs_are(name: str) -> None:
    kind, depth, width, templates, way, classes = re.fullmatch(
        r'(s?wrn)-(\d+)-(\d+)(?:-(\d+))?_1xb128(?:-(\w+))?_cifar(\d+)', name
    ).groups()
    cfg = load(name)
    backbone, head = cfg.model.backbone, cfg.model.head
    assert (backbone.depth, backbone.width) == (int(depth), int(width))
    expected = int(templates) if templates else 'per_layer' if kind == 'swrn' else None
    assert backbone.get('num_templates', 'per_layer') == expected
    assert backbone.get('dropout', 0) == (0.3 if way == 'dropout' else 0)
    assert (head.num_classes, head.in_channels) == (int(classes), 64 * int(width))
    pipeline = [t.type for t in cfg.train_dataloader.dataset.pipeline]
    assert ('mmrecur.CenteredCutout' in pipeline) == (way == 'cutout')
    assert cfg.train_dataloader.dataset.type == f'CIFAR{classes}'
    assert f'cifar{classes}' in cfg.train_dataloader.dataset.data_root.split('/')
    optimizer = {k: v for k, v in cfg.optim_wrapper.optimizer.items() if k != '_scope_'}
    assert optimizer == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    assert cfg.train_dataloader.batch_size == 128 and cfg.train_cfg.max_epochs == 200
    assert cfg.param_scheduler.milestones == [60, 120, 160] and cfg.param_scheduler.gamma == 0.2


@pytest.mark.parametrize('name', CIFAR)
def test_parameters_are_the_authors(name: str) -> None:
    cfg = load(name)
    count = sum(p.numel() for p in build(cfg).parameters())
    assert METAFILE[name] == count
    network = name.split('_')[0]
    classes = cfg.model.head.num_classes
    if network.startswith('wrn'):
        # the count of one template per layer without the 36 coefficients of each stage
        assert count == COUNTS[f's{network}-6 ({classes} classes)'] - 3 * 36
        return
    key = network if network.count('-') == 3 else f'{network}-6'
    ten = COUNTS[f'{key} (10 classes)']
    assert count == ten + (classes - 10) * (cfg.model.head.in_channels + 1)
    assert COUNTS.get(f'{key} ({classes} classes)', count) == count


def test_imagenet_network_has_69_million_parameters() -> None:
    # torchvision's wide_resnet50_2, and the coefficients of the layers of each kind
    coefficients = sum((n - 1) ** 2 + 2 * n**2 for n in (3, 4, 6, 3))
    cfg = load('swrn-50-2_4xb64_in1k')
    assert sum(p.numel() for p in build(cfg).parameters()) == 68_883_240 + coefficients
    assert METAFILE['swrn-50-2_4xb64_in1k'] == 68_883_240 + coefficients
    assert cfg.train_dataloader.batch_size == 64 and cfg.auto_scale_lr.base_batch_size == 256
    assert cfg.train_cfg.max_epochs == 90 and cfg.param_scheduler.milestones == [30, 60]


DETECTORS = sorted(p.stem for p in FOLDER.glob('*_coco.py'))


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_start_from_torchvisions_network(name: str) -> None:
    cfg = load(name)
    assert cfg.model.backbone.init_cfg == dict(
        type='mmrecur.Graft', checkpoint='torchvision://wide_resnet50_2'
    )
    assert cfg.model.backbone.get('num_templates', 'per_layer') == 'per_layer'  # so that it is exact
    assert METAFILE[name] == sum(p.numel() for p in build(cfg).parameters())


@pytest.mark.parametrize(
    'name',
    [
        CIFAR[0],
        'swrn-50-2_4xb64_in1k',
        'mask-rcnn_swrn-50-2_fpn_1x_coco',
        'retinanet_swrn-50-2_fpn_1x_coco',
    ],
)
def test_coefficients_have_no_weight_decay(name: str) -> None:
    cfg = load(name)
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): key for key, p in model.named_parameters()}
    decays = {names[id(g['params'][0])]: g['weight_decay'] for g in wrapper.optimizer.param_groups}
    free = {key for key, decay in decays.items() if decay == 0}
    assert free and free == {key for key in decays if key.endswith('.coefficients')}
    # the rule that the backbone declares is the one that the config has
    rule = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert rule == type(getattr(model, 'backbone', model)).required_paramwise_cfg['custom_keys']


def test_shortest_path_models_differ_in_what_the_paper_says() -> None:
    cnn, scnn, regularised = (load(f'shortest-path_{kind}') for kind in ('cnn', 'scnn', 'scnn-r'))
    assert cnn.model == dict(type='mmrecur.ShortestPathNet')
    assert scnn.model == dict(type='mmrecur.ShortestPathNet', num_templates=20)
    assert regularised.model.loss_recurrence.loss_weight == 0.01
    for cfg in (cnn, scnn, regularised):
        assert cfg.train_cfg.max_epochs == 250 and cfg.optim_wrapper.optimizer == dict(type='Adam', lr=0.01)
        (curriculum,) = (h for h in cfg.custom_hooks if h.type == 'mmrecur.CurriculumHook')
        assert curriculum.epochs_per_phase == 50 and cfg.train_dataloader.dataset.num_examples == 5000
    assert 'mmrecur.AuxiliaryLossHook' in [hook.type for hook in regularised.custom_hooks]
