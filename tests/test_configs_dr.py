"""The configs of DR-ResNet: the paper's networks, recipes, counts and results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from tests.helpers.configs import CONFIGS, load, optimizer_of

ROOT = Path(__file__).parents[1]
DR = [name for name in CONFIGS if '/dr_resnet/' in name]
DETECTORS = [name for name in DR if '_fpn_1x_coco' in name]
IMAGENET = [name for name in DR if '_in1k' in name]
CIFAR = [name for name in DR if '_cifar10' in name]
#: Tables 2 and 3: top-1 and top-5 accuracy, target rate, multiply-adds in 10^9.
RESULTS = {
    'dr-resnet65_4xb64_in1k': ((78.12, 93.90), 0.7, 5.49),
    'dr-resnet53_4xb64_in1k': ((77.96, 93.86), 0.7, 4.92),
    'dr-resnet53-t65_4xb64_in1k': ((77.14, 93.52), 0.65, 4.62),
    'dr-resnet53-t60_4xb64_in1k': ((76.91, 93.51), 0.6, 4.35),
    'dr-resnet53-lvbn_4xb64_in1k': ((77.52,), 0.7, 4.92),
    'dr-resnet47_4xb64_in1k': ((77.41, 93.54), 0.7, 4.56),
    'dr-resnet44_4xb64_in1k': ((77.27, 93.53), 0.7, 4.25),
    'dr-resnet35_4xb64_in1k': ((76.48, 92.92), 0.8, 3.12),
    'dr-mobilenetv2_4xb64-400e_in1k': ((71.8, 90.28), 0.9, None),  # without norms, see test_dr_resnet.py
    'r-resnet53_4xb64_in1k': ((77.22,), None, 7.6),
    'r-resnet53_4xb64-180e_in1k': ((78.38,), None, 7.6),
    'r-resnet53-shared_4xb64_in1k': ((), None, 7.6),
    'r-resnet53-shared-lr1e-2_4xb64_in1k': ((), None, 7.6),
    'resnet101_4xb64-photometric_in1k': ((77.95, 93.86), None, 7.6),
    'resnet50_4xb64-photometric_in1k': ((76.45, 92.90), None, 3.8),
    'mobilenetv2_4xb64-400e_in1k': ((71.8, 90.27), None, None),  # without norms
}
#: Table 1: error on CIFAR-10.
ERRORS = {
    'dr-resnet74': 5.21,
    'dr-resnet66': 5.66,
    'dr-resnet58': 5.79,
    'dr-resnet54': 5.97,
    'dr-resnet40': 6.51,
    'dr-resnet32': 6.73,
    'dr-resnet16': 8.14,
    'resnet110': 6.61,
    'resnet56': 6.97,
    'resnet20': 8.75,
}


def backbone_of(cfg: Config) -> torch.nn.Module:
    with torch.device('meta'):
        return MODELS.build(dict(cfg.model.backbone, init_cfg=None))


@pytest.mark.parametrize('name', DR)
def test_gates_have_the_papers_target_and_their_hooks(name: str) -> None:
    """Section 4.2."""
    cfg, stem = load(name), Path(name).stem
    backbone = backbone_of(cfg)
    hooks = {hook['type'] for hook in cfg.get('custom_hooks', ())}
    assert {hook['type'] for hook in backbone.required_hooks} == hooks & {
        'mmrecur.AuxiliaryLossHook', 'mmrecur.GateRateHook'
    }  # fmt: skip
    assert backbone.has_gates == ('dr-' in stem)
    if backbone.has_gates:
        rate = RESULTS[stem][1] if stem in RESULTS else 0.8 if 'r35' in stem else 0.7
        assert backbone.loss_gate.target_rate == rate
        assert backbone.initial_rate == 0.85
        assert backbone.gate_channels == (0 if 'mobilenet' in stem else 16)
    if backbone.loop_blocks():  # not a plain counterpart
        expected = 'shared' if 'shared' in stem else 'i-lvbn' if backbone.has_gates else 'lvbn'
        assert backbone.loop_norm == ('lvbn' if '-lvbn' in stem else expected)


@pytest.mark.parametrize('name', IMAGENET)
def test_imagenet_follows_the_paper(name: str) -> None:
    """Section 4.2; the R-ResNet 53* of Table 3 under "LVBN is crucial"."""
    cfg = load(name)
    lr, decay, epochs, milestones = 0.1, 1e-4, 100, [30, 60, 90]
    if 'mobilenet' in name:
        lr, epochs, milestones = 0.01, 400, [200, 300]
    if 'lr1e-2' in name:  # Figure 6
        lr = 0.01
    if '180e' in name:
        lr, decay, epochs, milestones = 0.01, 5e-4, 180, [100, 130, 160]
    assert cfg.auto_scale_lr.base_batch_size == 256 and cfg.train_dataloader.batch_size == 64
    assert optimizer_of(cfg) == dict(type='SGD', lr=lr, momentum=0.9, weight_decay=decay)
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler.milestones == milestones and cfg.param_scheduler.gamma == 0.1
    train = [t.type for t in cfg.train_dataloader.dataset.pipeline]
    assert {'RandomResizedCrop', 'ColorJitter', 'RandomFlip'} <= set(train)
    for part in (cfg.val_dataloader, cfg.test_dataloader):
        resize, crop = part.dataset.pipeline[1:3]
        assert (resize.type, resize.scale) == ('Resize', (256, 256))
        assert (crop.type, crop.crop_size) == ('CenterCrop', 224)


@pytest.mark.parametrize('name', CIFAR)
def test_cifar_follows_the_paper(name: str) -> None:
    """Section 4.1."""
    cfg = load(name)
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size == 256
    assert optimizer_of(cfg) == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4)
    assert cfg.train_cfg.max_epochs == 350
    assert cfg.param_scheduler.milestones == [150, 250] and cfg.param_scheduler.gamma == 0.1
    crop, flip = cfg.train_dataloader.dataset.pipeline[:2]
    assert (crop.type, crop.crop_size, crop.padding) == ('RandomCrop', 32, 4)
    assert (flip.type, flip.prob) == ('RandomFlip', 0.5)
    splits = [cfg[f'{part}_dataloader'].dataset.split for part in ('train', 'val', 'test')]
    assert splits == ['train', 'test', 'test']


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_start_from_the_counterpart_of_their_backbone(name: str) -> None:
    cfg = load(name)
    backbone = cfg.model.backbone
    assert backbone.frozen_stages == 1 and backbone.norm_eval
    plain = {53: 'torchvision://resnet101', 35: 'torchvision://resnet50'}[backbone.depth]
    assert backbone.init_cfg == dict(type='mmrecur.Graft', checkpoint=plain)
    # torchvision's networks have the stride on the 3x3 convolution
    assert backbone.get('style', 'pytorch') == 'pytorch' and cfg.model.data_preprocessor.bgr_to_rgb


def reported(name: str) -> dict[str, float]:
    """The paper's results of a config."""
    stem = Path(name).stem
    depth, _, rest = stem.partition('_')
    if rest == '1xb256_cifar10' and depth in ERRORS:
        return {'Top 1 Accuracy (reported by the paper)': round(100 - ERRORS[depth], 2)}
    found = RESULTS.get(stem, ((), None, None))[0]
    return {f'Top {k} Accuracy (reported by the paper)': value for k, value in zip((1, 5), found)}


def index() -> dict[str, Any]:
    from modelindex.load_model_index import load as load_index

    models = load_index('model-index.yml')
    models.build_models_with_collections()
    return {model.config: model for model in models.models if '/dr_resnet/' in model.config}


def test_the_model_index_has_the_papers_results(monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    models = index()
    assert sorted(models) == DR
    for name, model in models.items():
        assert model.name == Path(name).stem and model.in_collection == 'DR-ResNet'
        assert {k: v for result in model.results for k, v in result.metrics.items()} == reported(name)
        assert model.metadata.data['Epochs'] == load(name).train_cfg.max_epochs


@pytest.mark.parametrize('name', [name for name in IMAGENET if RESULTS.get(Path(name).stem, (0, 0, None))[2]])
def test_average_multiply_adds_are_the_papers(name: str, monkeypatch: Any) -> None:
    """The metafile's counts, which tests/apis/test_model_zoo.py compares with the configs."""
    monkeypatch.chdir(ROOT)
    assert index()[name].metadata.flops / 1e9 == pytest.approx(RESULTS[Path(name).stem][2], rel=0.03)
