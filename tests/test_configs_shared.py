"""The configs of ResNet-Shared: the paper's recipes and counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmrecur.analysis.complexity import count_parameters, image_inputs, measure
from tests.helpers.configs import CONFIGS, build_model, load, optimizer_of

SHARED = [name for name in CONFIGS if '/resnet_shared/' in name]
DETECTORS = [name for name in SHARED if '_fpn_1x_coco' in name]
GRAFTED = [name for name in DETECTORS if '-graft_' in name]
PRETRAINED = [name for name in DETECTORS if name not in GRAFTED]
IMAGENET = [name for name in SHARED if '_in1k' in name]
PLAIN = [n for n in IMAGENET if '-' not in Path(n).stem.split('_')[0].removesuffix('-plain')]
CIFAR = [name for name in SHARED if '_cifar' in name]
#: Parameters in 10^6 and multiply-adds in 10^9 of Table 4, the paper's own models.
TABLE_4 = {
    'faster-rcnn_r50-shared_fpn_1x_coco': (36.70, 206.87),
    'faster-rcnn_r50-shared-double_fpn_1x_coco': (34.46, 206.87),
    'faster-rcnn_r101-shared_fpn_1x_coco': (45.67, 282.84),
    'mask-rcnn_r50-shared_fpn_1x_coco': (39.35, 259.94),
    'mask-rcnn_r50-shared-double_fpn_1x_coco': (37.10, 259.94),
    'mask-rcnn_r101-shared_fpn_1x_coco': (48.31, 335.91),
    'retinanet_r50-shared_fpn_1x_coco': (32.92, 239.12),
    'retinanet_r50-shared-double_fpn_1x_coco': (30.67, 239.12),
    'retinanet_r101-shared_fpn_1x_coco': (41.88, 315.09),
}


def backbone_of(cfg: Config) -> torch.nn.Module:
    with torch.device('meta'):
        return MODELS.build(dict(cfg.model.backbone, init_cfg=None))


def on_meta(cfg: Config) -> torch.nn.Module:
    with torch.device('meta'):
        return build_model(cfg)


@pytest.mark.parametrize('name', SHARED)
def test_the_objective_is_collected(name: str) -> None:
    cfg = load(name)
    assert dict(type='mmrecur.AuxiliaryLossHook') in cfg.custom_hooks
    backbone = MODELS.build(dict(cfg.model.backbone, init_cfg=None))
    is_plain = cfg.model.backbone.get('share', '') is None or cfg.model.backbone.get('shared_rank') == 0
    assert bool(backbone.auxiliary_losses()) == (not is_plain and 'no-ortho' not in name)


@pytest.mark.parametrize('name', IMAGENET)
def test_imagenet_follows_the_paper(name: str) -> None:
    """Section 4.1."""
    cfg = load(name)
    mobile = 'mobilenet' in name
    assert cfg.auto_scale_lr.base_batch_size == 256 and cfg.train_dataloader.batch_size == 64
    decay = 1e-5 if mobile else 1e-4
    assert optimizer_of(cfg) == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=decay)
    assert cfg.train_cfg.max_epochs == (300 if mobile else 150)
    assert cfg.param_scheduler.milestones == ([150, 225, 285] if mobile else [60, 100, 140])
    assert cfg.param_scheduler.gamma == 0.1


@pytest.mark.parametrize('name', CIFAR)
def test_cifar_follows_the_paper(name: str) -> None:
    """Section 4.2."""
    cfg = load(name)
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size == 128
    assert optimizer_of(cfg) == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4)
    assert cfg.train_cfg.max_epochs == 300
    assert cfg.param_scheduler.milestones == [150, 225] and cfg.param_scheduler.gamma == 0.1
    splits = [cfg[f'{part}_dataloader'].dataset.split for part in ('train', 'val', 'test')]
    assert splits == ['train', 'test', 'test']
    loss = cfg.model.backbone.get('loss_ortho')
    if loss is not None:
        assert loss.get('with_unique', False) == ('cifar10.' in name)


@pytest.mark.parametrize('name', PLAIN)
def test_baselines_differ_from_what_they_are_compared_with_in_the_backbone_only(name: str) -> None:
    shares = {'resnet34': 'resnet34-s48u1', 'mobilenetv2': 'mobilenetv2-shared'}
    kind, _, rest = Path(name).stem.replace('-plain', '').partition('_')
    plain = load(name).to_dict()
    sharing = load(f'configs/resnet_shared/{shares.get(kind, kind + "-shared")}_{rest}.py').to_dict()
    backbones = [cfg['model'].pop('backbone') for cfg in (plain, sharing)]
    assert plain == sharing
    for own in ('share', 'shared_rank', 'unique_rank', 'bases'):
        for backbone in backbones:
            backbone.pop(own, None)
    assert backbones[0] == backbones[1]


def test_all_networks_of_table_1_have_their_baseline() -> None:
    plain = {Path(name).stem.split('_')[0] for name in IMAGENET if backbone_of(load(name)).share is None}
    assert plain == {'resnet34-plain', 'resnet50-plain', 'resnet101-plain', 'mobilenetv2'}


def test_the_four_runs_of_figure_3() -> None:
    runs = {}
    for name in CIFAR:
        if 'resnet34-s16u1' in name:
            cfg = load(name)
            assert dict(type='mmrecur.GradientFlowHook', interval=10) in cfg.custom_hooks
            backbone = backbone_of(cfg)
            stages = backbone.shared_stages()
            (has_norm,) = {conv.norm is not None for stage in stages for _, conv in stage.factorized()}
            assert len(stages) == 4  # the bases of the figure
            runs[Path(name).stem] = (has_norm, bool(backbone.auxiliary_losses()))
    rest = '_1xb128_cifar100'
    assert runs == {
        f'resnet34-s16u1-no-norm-no-ortho{rest}': (False, False),
        f'resnet34-s16u1-no-ortho{rest}': (True, False),
        f'resnet34-s16u1-no-norm{rest}': (False, True),
        f'resnet34-s16u1{rest}': (True, True),
    }


@pytest.mark.parametrize('name', GRAFTED)
def test_grafted_detectors_differ_in_their_start_only(name: str) -> None:
    cfg, pretrained = load(name).to_dict(), load(name.replace('-graft_', '_')).to_dict()
    backbone, other = cfg['model']['backbone'], pretrained['model']['backbone']
    checkpoint = f'torchvision://resnet{backbone["depth"]}'
    assert backbone.pop('init_cfg') == dict(type='mmrecur.Graft', checkpoint=checkpoint)
    assert other.pop('init_cfg')['type'] == 'Pretrained'
    # an inexact start: everything learns, norms with the statistics of more images than one process has
    assert (backbone.pop('frozen_stages'), backbone.pop('norm_eval')) == (-1, False)
    assert cfg.pop('sync_bn') == 'torch'
    assert (other.pop('frozen_stages'), other.pop('norm_eval')) == (1, True)
    assert cfg == pretrained


def test_every_detector_starts_from_a_graft_too() -> None:
    assert sorted(name.replace('-graft_', '_') for name in GRAFTED) == PRETRAINED


@pytest.mark.parametrize('name', PRETRAINED)
def test_detectors_follow_the_paper(name: str) -> None:
    """Section 4.3; the paper's learning rate, batch and initial weights."""
    cfg = load(name)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=8)
    assert optimizer_of(cfg) == dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
    steps = cfg.param_scheduler[-1]
    assert steps.milestones == [8, 11] and steps.gamma == 0.1 and steps.by_epoch
    backbone = cfg.model.backbone
    assert backbone.frozen_stages == 1 and backbone.norm_eval
    # in the style of one of the classification configs
    folder = Path(backbone.init_cfg.checkpoint).parent.name
    classifier = load(f'configs/resnet_shared/{folder}.py')
    assert f'epoch_{classifier.train_cfg.max_epochs}.pth' in backbone.init_cfg.checkpoint
    for key in ('depth', 'share'):
        defaults = dict(share='single')
        assert classifier.model.backbone.get(key, defaults.get(key)) == backbone.get(key)


@pytest.mark.parametrize('name', PRETRAINED)
def test_detectors_have_the_papers_parameters(name: str, scope: Any) -> None:
    model = on_meta(scope(load(name)))
    assert round(count_parameters(model)[0] / 1e6, 2) == TABLE_4[Path(name).stem][0]


@pytest.mark.slow
@pytest.mark.parametrize('name', PRETRAINED)
def test_detectors_do_the_papers_work(name: str, scope: Any) -> None:
    model = build_model(scope(load(name)))
    work = measure(model, *image_inputs(model, (800, 1280)))[''].multiply_adds
    assert work / 1e9 == pytest.approx(TABLE_4[Path(name).stem][1], rel=1e-3)


def test_the_model_index_and_the_readme_list_every_config(monkeypatch: Any) -> None:
    from modelindex.load_model_index import load as load_index

    monkeypatch.chdir(Path(__file__).parents[1])
    index = load_index('model-index.yml')
    index.build_models_with_collections()
    models = {model.config: model for model in index.models if '/resnet_shared/' in model.config}
    assert sorted(models) == SHARED
    readme = Path('configs/resnet_shared/README.md').read_text()
    for name, model in models.items():
        assert model.name == Path(name).stem and model.in_collection == 'ResNet-Shared'
        for result in model.results:
            # nothing here was measured with this package
            assert all('(reported by the paper)' in metric for metric in result.metrics)
        assert f'(./{Path(name).name})' in readme or name.endswith('s16u1-double-no-ortho_1xb128_cifar10.py')
