"""The configs of RLA and RecNet: the papers' recipes, counts and ablations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import CONFIGS, ROOT, load, optimizer_of

RLA = [name for name in CONFIGS if '/rla/' in name]

MOBILE = [name for name in RLA if 'mobilenetv2' in name]

DETECTORS = [name for name in RLA if '_fpn_1x_coco' in name and name not in MOBILE]

CLASSIFIERS = [name for name in RLA if '_in1k' in name and name not in MOBILE]

CIFAR = [name for name in RLA if '_1xb128_cifar10' in name]

RECNET = [name for name in CONFIGS if '/recnet/' in name]


#: Counts of the authors' implementations. The ResNet-Ds have 19,232 more in their stem; the MobileNetV2s
#: one depthwise 3x3 convolution for each of five stages, where the authors' code has one for all; CBAM's is
#: in Table 3.
PARAMETERS = {
    'rla-resnet50_4xb64_in1k': 25_870_696,
    'rla-resnet101_4xb64_in1k': 45_003_176,
    'rla-resnet152_4xb64_in1k': 60_770_792,
    'rla-eca-resnet50_4xb64_in1k': 25_870_782,
    'rla-eca-resnet101_4xb64_in1k': 45_003_347,
    'rla-eca-resnet152_4xb64_in1k': 60_771_048,
    'rla-resnet50-d_4xb64-tricks-200e_in1k': 25_870_696 + 19_232,
    'rla-eca-resnet50-d_4xb64-tricks-200e_in1k': 25_870_782 + 19_232,
    'rla-mobilenetv2_2xb48_in1k': 3_624_168 + 4 * 32 * 9,
    'rla-eca-mobilenetv2_2xb48_in1k': 3_624_199 + 4 * 32 * 9,
    **{f'rla-resnet50-v{i}_4xb64_in1k': 25_870_696 for i in range(2, 7)},
    'rla-resnet50-unshared_4xb64_in1k': 26_341_736,
    'rla-resnet50-no-exchange_4xb64_in1k': 25_749_864,
    'rla-resnet50-convlstm_4xb64_in1k': 26_128_680,
    'rla-resnet50-postact_4xb64_in1k': 25_870_632,
    'resnet50_4xb64_in1k': 25_557_032,
    'resnet50-plus32_4xb64_in1k': 26_794_280,
    'se-resnet50_4xb64_in1k': 28_071_976,
    'cbam-resnet50_4xb64_in1k': 28_073_544,
    'eca-resnet50_4xb64_in1k': 25_557_118,
    'rla-resnet101-unshared_4xb64_in1k': 46_187_944,
    'resnet101_4xb64_in1k': 44_549_160,
    'resnet152_4xb64_in1k': 60_192_808,
    # ECA has 5 or 7 weights a block, where the authors' RLA network with it has them too
    'eca-resnet101_4xb64_in1k': 44_549_160 + 45_003_347 - 45_003_176,
    'eca-resnet152_4xb64_in1k': 60_192_808 + 60_771_048 - 60_770_792,
    'mobilenetv2_2xb48_in1k': 3_504_872,
    'eca-mobilenetv2_2xb48_in1k': 3_504_903,
}


#: Counts of our code; tests/models compares them with the paper's tables.
PARAMETERS |= {
    'preact-resnet110_1xb128_cifar10': 1_730_554,
    'preact-resnet110_1xb128_cifar100': 1_736_404,
    'rla-preact-resnet110_1xb128_cifar10': 1_804_922,
    'rla-preact-resnet110_1xb128_cifar100': 1_811_132,
    'preact-resnet164_1xb128_cifar10': 1_703_290,
    'preact-resnet164_1xb128_cifar100': 1_726_420,
    'rla-preact-resnet164_1xb128_cifar10': 1_739_482,
    'rla-preact-resnet164_1xb128_cifar100': 1_763_692,
    'xception_1xb128_cifar10': 2_701_882,
    'xception_1xb128_cifar100': 2_748_052,
    'rla-xception_1xb128_cifar10': 2_767_534,
    'rla-xception_1xb128_cifar100': 2_814_784,
    'densenet-bc100_1xb128_cifar10': 769_162,
    'lag-densenet-bc100_1xb128_cifar10': 587_722,
    'ordinal-densenet-bc100_1xb128_cifar10': 587_722,
    'dpn-resnet164_1xb128_cifar10': 2_127_826,
    'preact-resnet164-plus12_1xb128_cifar10': 1_925_692,
    'rla-preact-resnet164-unshared_1xb128_cifar10': 1_896_970,
    'rla-preact-resnet164-no-exchange_1xb128_cifar10': 1_713_994,
    'rla-preact-resnet164-convlstm_1xb128_cifar10': 1_766_674,
    'rla-preact-resnet164-postact_1xb128_cifar10': 1_739_458,
    **{f'rla-preact-resnet164-v{i}_1xb128_cifar10': 1_739_482 for i in range(2, 7)},
    'rla-preact-resnet164-k8_1xb128_cifar10': 1_726_554,
    'rla-preact-resnet164-k16_1xb128_cifar10': 1_753_274,
    'rla-preact-resnet164-k24_1xb128_cifar10': 1_783_450,
    'se-resnet101_4xb64_in1k': 49_292_328,
    'cbam-resnet101_4xb64_in1k': 49_295_562,
    'se-resnet152_4xb64_in1k': 66_770_984,
    'se-mobilenetv2_2xb48_in1k': 3_533_288,
}


#: The same as Tables 3 and 11 print it: in 2^20 and in 10^6.
PRINTED = {
    **{f'{a}resnet101_4xb64_in1k': n for a, n in (('', 42.49), ('eca-', 42.49))},
    **{f'{a}resnet101_4xb64_in1k': 47.01 for a in ('se-', 'cbam-')},
    **{f'{a}resnet152_4xb64_in1k': n for a, n in (('', 57.40), ('se-', 63.68))},
    **{f'{a}mobilenetv2_2xb48_in1k': 3.34 for a in ('', 'eca-')},
    'rla-resnet101-unshared_4xb64_in1k': 44.05,
    'preact-resnet164-plus12_1xb128_cifar10': 1.93,
    'rla-preact-resnet164-unshared_1xb128_cifar10': 1.90,
    'rla-preact-resnet164-convlstm_1xb128_cifar10': 1.77,
    'rla-preact-resnet164-postact_1xb128_cifar10': 1.74,
    'rla-preact-resnet164-k8_1xb128_cifar10': 1.73,
    'rla-preact-resnet164-k16_1xb128_cifar10': 1.75,
    'rla-preact-resnet164-k24_1xb128_cifar10': 1.78,
}


def recipe_of(name: str) -> str:
    """Return the config whose recipe an ablation or baseline must have."""
    if name in RECNET:
        return f'configs/recnet/recnet-60-1280_{name.split("_", 1)[1]}'
    stem, rest = Path(name).stem.split('_', 1)
    if name in DETECTORS:
        return f'configs/rla/{stem}_rla-r50_fpn_1x_coco.py'
    network = {'_2xb48': 'mobilenetv2', '_1xb12': 'preact-resnet164'}.get(f'_{rest}'[:6], 'resnet50')
    return f'configs/rla/rla-{network}_{rest}.py'


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'ablations' in name])
def test_ablations_change_the_model_only(name: str) -> None:
    cfg, base = load(name), load(recipe_of(name))
    ours, theirs = cfg.model.pop('backbone'), base.model.pop('backbone')
    assert ours != theirs and ours.type == theirs.type
    # frozen and normed alike, too
    for key in ('frozen_stages', 'norm_eval', 'norm_cfg', 'out_indices'):
        assert ours.get(key) == theirs.get(key)
    if 'head' in cfg.model:
        cfg.model.head.pop('in_channels')
        base.model.head.pop('in_channels')
    # variables of the config files
    rest = {key: value for key, value in cfg.to_dict().items() if key not in ('context', 'non_local')}
    assert rest == base.to_dict()


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_follow_the_paper(name: str) -> None:
    cfg = load(name)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=8)
    assert cfg.train_dataloader.batch_size == 2  # 4 GPUs x 2 images
    assert optimizer_of(cfg) == dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
    steps = cfg.param_scheduler[-1]
    assert steps.milestones == [8, 11] and steps.gamma == 0.1 and steps.by_epoch
    resize = [t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'Resize']
    assert [t.scale for t in resize] == [(1333, 800)]
    assert cfg.model.data_preprocessor.bgr_to_rgb

    backbone = cfg.model.backbone
    depth = 101 if 'r101' in name else 50
    assert backbone.depth == depth
    assert backbone.init_cfg == dict(type='mmrecur.Graft', checkpoint=f'torchvision://resnet{depth}')
    attention = [kind for kind in ('se', 'eca') if f'{kind}-r' in name]
    assert backbone.get('attention') == (attention[0] if attention else None)
    assert backbone.get('rla_channels', 32) == (0 if 'ablations' in name else 32)
    assert 'with_hidden' not in backbone  # FPN reads the main network only
    # the stem only: see "Initial weights" in configs/rla/README.md
    assert backbone.frozen_stages == 0 and backbone.norm_eval


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifiers_follow_the_paper(name: str) -> None:
    cfg = load(name)
    assert cfg.auto_scale_lr.base_batch_size == 256
    assert cfg.train_dataloader.batch_size == 64  # on 4 GPUs
    assert optimizer_of(cfg) == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
    if 'tricks' not in name:
        assert cfg.train_cfg.max_epochs == 120
        assert cfg.param_scheduler.milestones == [30, 60, 90]
        assert cfg.param_scheduler.gamma == 0.1
        return
    assert cfg.train_cfg.max_epochs == 200
    warmup, cosine = cfg.param_scheduler
    assert (warmup.type, warmup.begin, warmup.end) == ('LinearLR', 0, 5)
    assert (cosine.type, cosine.begin, cosine.end) == ('CosineAnnealingLR', 5, 200)
    assert cfg.model.head.loss == dict(type='LabelSmoothLoss', label_smooth_val=0.1)
    assert cfg.model.train_cfg.augments == dict(type='Mixup', alpha=0.2)
    assert cfg.model.backbone.deep_stem and cfg.model.backbone.avg_down


@pytest.mark.parametrize('name', CIFAR)
def test_cifar_follows_the_paper(name: str) -> None:
    """Section 4.1."""
    cfg = load(name)
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size == 128
    assert optimizer_of(cfg) == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    assert cfg.train_cfg.max_epochs == 300
    assert cfg.param_scheduler.milestones == [150, 225] and cfg.param_scheduler.gamma == 0.1
    assert cfg.default_hooks.checkpoint.save_best
    data = {part: cfg[f'{part}_dataloader'].dataset for part in ('train', 'val', 'test')}
    assert [data[part].split for part in data] == ['train', 'train', 'test']
    # the first and the last of the 50,000; images that validate do not train
    assert [data[part].get('indices') for part in data] == [45_000, -5_000, None]
    assert dict(data['val'].pipeline[0])['type'] == 'PackInputs'  # nothing random


@pytest.mark.parametrize('name', [name for name in MOBILE if '_in1k' in name])
def test_mobile_classifiers_follow_the_paper(name: str) -> None:
    cfg = load(name)
    assert cfg.auto_scale_lr.base_batch_size == 96
    assert cfg.train_dataloader.batch_size == 48  # on 2 GPUs
    assert optimizer_of(cfg) == dict(type='SGD', lr=0.045, momentum=0.9, weight_decay=4e-5)
    assert cfg.train_cfg.max_epochs == 400
    schedule = cfg.param_scheduler
    assert (schedule.type, schedule.step_size, schedule.gamma) == ('StepLR', 1, 0.98)
    assert schedule.by_epoch


@pytest.mark.parametrize('name', PRINTED)
def test_counts_round_to_what_the_paper_prints(name: str) -> None:
    unit = 1e6 if 'cifar' in name else 2**20
    assert f'{PARAMETERS[name] / unit:.2f}' == f'{PRINTED[name]:.2f}'


def test_the_model_index_lists_every_published_config(monkeypatch: Any) -> None:
    from modelindex.load_model_index import load as load_index

    monkeypatch.chdir(ROOT)
    index = load_index(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    names = [model.name for model in index.models]
    assert len(set(names)) == len(names)  # get_model finds models by name
    models = {model.config: model for model in index.models if re.search('/(rla|recnet)/', model.config)}
    assert sorted(models) == sorted(DETECTORS + CLASSIFIERS + CIFAR + MOBILE + RECNET)
    for name, model in models.items():
        collection = 'RLA-MobileNetV2' if name in MOBILE else 'RLA-ResNet'
        collection = 'RecNet' if name in RECNET else collection
        assert model.name == Path(name).stem and model.in_collection == collection
        for result in model.results:
            # nothing here was measured with this package
            assert all('(reported by the paper)' in metric for metric in result.metrics)
    counts = {m.name: m.metadata.parameters for m in index.models if m.name in PARAMETERS}
    assert counts == PARAMETERS
