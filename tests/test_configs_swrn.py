"""The SWRN configs follow the paper."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs' / 'swrn'
CIFAR = sorted(p.stem for p in FOLDER.glob('*_cifar10.py')) + sorted(
    p.stem for p in FOLDER.glob('*_cifar100.py')
)
ENTRIES = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
METAFILE = {model['Name']: model['Metadata']['Parameters'] for model in ENTRIES}
RESULTS = {model['Name']: model['Results'][0]['Metrics'] for model in ENTRIES}
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
    plain = load('wrn-50-2_4xb64_in1k')
    assert sum(p.numel() for p in build(plain).parameters()) == METAFILE['wrn-50-2_4xb64_in1k'] == 68_883_240


@pytest.mark.parametrize('name', ['swrn-50-2_4xb64_in1k', 'wrn-50-2_4xb64_in1k'])
def test_imagenet_follows_gross_and_wilber(name: str) -> None:
    """Section 4.2. The plain network has the same schedule, so that gains are due to the sharing."""
    cfg = load(name)
    assert cfg.train_dataloader.batch_size == 64 and cfg.auto_scale_lr.base_batch_size == 256
    optimizer = {k: v for k, v in cfg.optim_wrapper.optimizer.items() if k != '_scope_'}
    assert optimizer == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    assert cfg.train_cfg.max_epochs == 90
    assert cfg.param_scheduler.milestones == [30, 60] and cfg.param_scheduler.gamma == 0.1
    transforms = {t.type: t for t in cfg.train_dataloader.dataset.pipeline}
    kinds = ['LoadImageFromFile', 'RandomResizedCrop', 'ColorJitter', 'Lighting', 'RandomFlip', 'PackInputs']
    assert list(transforms) == kinds
    crop, jitter, lighting = (transforms[kind] for kind in kinds[1:4])
    assert (crop.scale, crop.crop_ratio_range) == (224, (0.08, 1.0))
    assert (jitter.brightness, jitter.contrast, jitter.saturation) == (0.4, 0.4, 0.4)
    assert lighting.alphastd == 0.1
    for part in (cfg.val_dataloader, cfg.test_dataloader):
        resize, crop = part.dataset.pipeline[1:3]
        assert (resize.type, resize.scale, resize.edge) == ('ResizeEdge', 256, 'short')
        assert (crop.type, crop.crop_size) == ('CenterCrop', 224)


def test_lighting_moves_every_pixel_by_the_same_colour(tmp_path: Path) -> None:
    """Also the darkest and the brightest ones, which would wrap around in 8 bits."""
    pipeline = load('swrn-50-2_4xb64_in1k').train_dataloader.dataset.pipeline
    still = [dict(t) for t in pipeline if t.type not in ('RandomResizedCrop', 'ColorJitter', 'RandomFlip')]
    path = tmp_path / 'image.png'
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4] = 255
    mmcv.imwrite(picture, str(path))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        compose = Compose(still)
        shifts = []
        np.random.seed(0)
        for _ in range(1000):
            sample = compose(dict(img_path=str(path), gt_label=0))
            change = sample['inputs'].double() - torch.from_numpy(picture).permute(2, 0, 1)
            assert (change - change[:, :1, :1]).abs().max() < 1e-3
            shifts.append(change[:, 0, 0])
    # ImageNet's colours, as AlexNet's authors describe them: eigenvectors times eigenvalues times a tenth
    values = 255 * np.array([0.2175, 0.0188, 0.0045])
    red, green, blue = [-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]
    vectors = np.array([blue, green, red])
    covariance = torch.from_numpy((vectors * (0.1 * values) ** 2) @ vectors.T)
    torch.testing.assert_close(torch.stack(shifts).T.cov(), covariance, rtol=0.15, atol=0.15)


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


def test_dropout_results_are_those_of_tables_1_and_2() -> None:
    """Errors of the rows with an asterisk, CIFAR-10 and CIFAR-100."""
    table = {
        'wrn-28-10': (3.89, 18.85),
        'swrn-28-10': (3.88, 18.43),
        'swrn-28-10-2': (3.75, 18.66),
        'swrn-28-14': (3.67, 18.25),
        'swrn-28-14-2': (3.69, 18.37),
        'swrn-28-18': (3.48, 17.43),
        'swrn-28-18-2': (3.43, 17.75),
    }
    readme = (FOLDER / 'README.md').read_text()
    for network, errors in table.items():
        for classes, error in zip((10, 100), errors, strict=True):
            name = f'{network}_1xb128-dropout_cifar{classes}'
            assert RESULTS[name]['Top 1 Accuracy (reported by the paper)'] == pytest.approx(100 - error)
            row = next(line for line in readme.splitlines() if f'./{name}.py' in line)
            assert f'| {errors[0]:.2f} | {errors[1]:.2f} |' in row


@pytest.mark.parametrize('kind', ['cnn', 'scnn', 'scnn-r'])
def test_shortest_path_models_are_in_the_index(kind: str) -> None:
    name = f'shortest-path_{kind}'
    count = sum(p.numel() for p in build(load(name)).parameters())
    row = next(line for line in (FOLDER / 'README.md').read_text().splitlines() if f'./{name}.py' in line)
    assert METAFILE[name] == count and f'{count:,}' in row
    assert RESULTS[name] == {}  # the paper has curves


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
