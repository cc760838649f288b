"""Every config builds, takes a training step, predicts, and has no unused key."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .config_keys import dicts, unused_keys

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts
)
RLA = [name for name in CONFIGS if '/rla/' in name]
MOBILE = [name for name in RLA if 'mobilenetv2' in name]
DETECTORS = [name for name in RLA if '_fpn_1x_coco' in name and name not in MOBILE]
CLASSIFIERS = [name for name in RLA if '_in1k' in name and name not in MOBILE]
CIFAR = [name for name in RLA if '_1xb128_cifar10' in name]
RECNET = [name for name in CONFIGS if '/recnet/' in name]
#: All configs but the ablations, which only change a few arguments of another config's model.
RECIPES = [name for name in CONFIGS if 'ablations' not in name]
#: Wide configs that differ from another config only in numbers or data; only the slow tests train them.
ALIKE = re.compile(
    r'/swrn/(.*(_cifar100|-(dropout|cutout)_|-28-1[48])|wrn-50)|/recnet/.*(_cifar100|-(90|120)-|-1280|mask|large)'
    r'|/dr_resnet/(.*(lvbn|-t6|-(58|65|66|74|47|44)_|180e|shared|mask|retina|lr1e)|resnet(110|50|101)|mobile)'
    r'|/rla/ablations/(.*(resnet1(01|52|64)|_coco)|(eca-)?mobilenetv2)'
    r'|/resnet_shared/.*-graft|/swrn/(mask|retinanet)'
)
TRAINED = [pytest.param(n, marks=pytest.mark.slow) if ALIKE.search(n) else n for n in CONFIGS]
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


@cache
def loaded(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def load(name: str) -> Config:
    return copy.deepcopy(loaded(name))


def without_checkpoints(model: dict) -> dict:
    """The model's config without the checkpoints it would download."""
    for _, value in dicts(model):
        if value.get('init_cfg', {}).get('type') in ('Pretrained', 'mmrecur.Graft'):
            value['init_cfg'] = None
    return model


def images(batch_size: int = 2, height: int = 64, width: int = 96) -> list[Tensor]:
    rng = np.random.RandomState(0)
    pictures = rng.randint(0, 255, (batch_size, 3, height, width), dtype=np.uint8)
    return list(torch.from_numpy(pictures))


def detection_inputs(with_mask: bool) -> dict[str, Any]:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    samples = []
    for index, image in enumerate(images()):
        height, width = image.shape[-2:]
        boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [50.0, 8.0, 90.0, 30.0]])
        instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 4]))
        if with_mask:
            masks = np.zeros((2, height, width), np.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y1:y2, x1:x2] = 1
            instances.masks = BitmapMasks(masks, height, width)
        meta = dict(
            img_id=index,
            img_shape=(height, width),
            ori_shape=(height, width),
            scale_factor=(1.0, 1.0),
        )
        samples.append(DetDataSample(metainfo=meta, gt_instances=instances))
    return dict(inputs=images(), data_samples=samples)


def classification_inputs(side: int = 64) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in (0, 4)]
    return dict(inputs=torch.stack(images(height=side, width=side)), data_samples=samples)


def inputs_for(cfg: Config) -> dict[str, Any]:
    if cfg.default_scope == 'mmdet':
        return detection_inputs(with_mask=cfg.model.type == 'MaskRCNN')
    if cfg.default_scope == 'mmengine':
        from mmrecur.datasets import ShortestPaths

        return torch.utils.data.default_collate(list(map(ShortestPaths(2).__getitem__, range(2))))
    # networks for small images hardly reduce them: an image of their size would take them minutes
    return classification_inputs(64 if cfg.model.head.num_classes == 1000 else 16)


def check_prediction(cfg: Config, prediction: Any) -> None:
    if cfg.default_scope == 'mmpretrain':
        assert prediction.pred_score.shape == (cfg.model.head.num_classes,)
        assert prediction.pred_score.sum().item() == pytest.approx(1, abs=1e-4)
        return
    if cfg.default_scope == 'mmengine':
        assert prediction['prediction'].shape == (32, 32) and prediction['prediction'].dtype == torch.bool
        return
    found = prediction.pred_instances
    head = cfg.model.get('bbox_head') or cfg.model.roi_head.bbox_head
    assert found.bboxes.shape == (len(found), 4) and torch.isfinite(found.bboxes).all()
    assert ((found.labels >= 0) & (found.labels < head.num_classes)).all()
    if cfg.model.type == 'MaskRCNN':
        assert found.masks.shape == (len(found), 64, 96)


@pytest.fixture
def scope():
    """Opens a config's default scope as the runner does and closes it after the test."""
    opened = []

    def enter(cfg: Config) -> Config:
        manager = DefaultScope.overwrite_default_scope(cfg.default_scope)
        manager.__enter__()
        opened.append(manager)
        return cfg

    yield enter
    for manager in reversed(opened):
        manager.__exit__(None, None, None)


def build_model(cfg: Config) -> nn.Module:
    model = without_checkpoints(cfg.model)
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    torch.manual_seed(0)
    model = MODELS.build(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # after one step the running statistics are that batch's, not close to 0 and 1, with
            # which the activations of 152 random layers overflow
            module.momentum = 1.0
    return model


def build_schedulers(cfg: Config, optim_wrapper: OptimWrapper) -> list:
    found = cfg.get('param_scheduler', [])
    schedulers = []
    for item in [found] if isinstance(found, dict) else found:
        item = dict(item, optimizer=optim_wrapper)
        if item.pop('convert_to_iter_based', False):
            item.pop('_scope_', None)
            kind = PARAM_SCHEDULERS.get(item.pop('type'))
            schedulers.append(kind.build_iter_from_epoch(**item, epoch_length=10))
        else:
            schedulers.append(PARAM_SCHEDULERS.build(item))
    return schedulers


# another test shows that the RLA paper's many ablations differ only in the backbone
@pytest.mark.parametrize(
    'name',
    [p for p, n in zip(TRAINED, CONFIGS, strict=True) if '/rla/ablations/' in n]
    + [n for n in CONFIGS if '/rla/ablations/' not in n],
)
def test_no_key_is_unused(name: str) -> None:
    assert unused_keys(load(name)) == []


@pytest.mark.parametrize('name', TRAINED)
def test_trains_and_predicts(name: str, scope: Any) -> None:
    cfg = scope(load(name))
    model = build_model(cfg)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    schedulers = build_schedulers(cfg, optim_wrapper)
    # a warm-up starts close to zero, but not at it
    assert all(group['lr'] > 0 for group in optim_wrapper.optimizer.param_groups)

    model.train()
    data = model.data_preprocessor(inputs_for(cfg), training=True)
    loss, logs = model.parse_losses(model(**data, mode='loss'))
    assert all(torch.isfinite(value).all() for value in logs.values()) and loss > 0
    optim_wrapper.backward(loss)
    left = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert left == []

    model.eval()
    with torch.no_grad():
        predictions = model.test_step(inputs_for(cfg))
    assert len(predictions) == 2
    for prediction in predictions:
        check_prediction(cfg, prediction)

    optim_wrapper.step()
    for scheduler in schedulers:
        scheduler.step()


def recipe_of(name: str) -> str:
    """Return the config whose recipe an ablation or baseline must have."""
    if name in RECNET:
        return f'configs/recnet/recnet-60-1280_{name.split("_", 1)[1]}'
    stem, rest = Path(name).stem.split('_', 1)
    if name in DETECTORS:
        return f'configs/rla/{stem}_rla-r50_fpn_1x_coco.py'
    network = {'_2xb48': 'mobilenetv2', '_1xb12': 'preact-resnet164'}.get(f'_{rest}'[:6], 'resnet50')
    return f'configs/rla/rla-{network}_{rest}.py'


@pytest.mark.parametrize('name', [name for name in CONFIGS if name not in RECIPES])
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


@pytest.mark.parametrize('name', RECIPES)
def test_data_and_metrics_build(name: str, scope: Any) -> None:
    cfg = scope(load(name))
    for part in ('train', 'val', 'test'):
        dataset_cfg = cfg[f'{part}_dataloader'].dataset
        if dataset_cfg.type.endswith('RepeatDataset'):
            dataset_cfg = dataset_cfg.dataset
        # lazily: the transforms are built, the annotations are not read
        dataset = DATASETS.build(dict(dataset_cfg, lazy_init=True))
        if 'pipeline' in dataset_cfg:
            assert len(dataset.pipeline.transforms) == len(dataset_cfg.pipeline)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        METRICS.build({k: v for k, v in evaluator.items() if k != 'ann_file'})


@pytest.mark.parametrize('name', [n for n in RECIPES if '-r50' in n or 'resnet50' in n or n in MOBILE])
def test_the_runner_takes_the_config(name: str, scope: Any, tmp_path: Path) -> None:
    cfg = scope(load(name))
    # another test covers the model; this one covers hooks, visualizer and the rest
    cfg.model = dict(type='BaseDataPreprocessor', _scope_='mmengine')
    cfg.pop('data_preprocessor', None)
    cfg.update(work_dir=str(tmp_path), experiment_name=Path(name).stem, log_level='WARNING')
    cfg.visualizer.name = str(tmp_path)  # a name that no other test uses
    runner = Runner.from_cfg(cfg)
    hooks = {type(hook).__name__: hook for hook in runner.hooks}
    assert {hook['type'] for hook in cfg.default_hooks.values()} <= set(hooks)
    assert hooks['LoggerHook'].interval == cfg.default_hooks.logger.interval
    assert runner.visualizer.get_backend('LocalVisBackend') is not None


def optimizer_of(cfg: Config) -> dict:
    return {key: value for key, value in cfg.optim_wrapper.optimizer.items() if key != '_scope_'}


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


def test_learning_rates_follow_the_schedule(scope: Any) -> None:
    cfg = scope(load('configs/rla/faster-rcnn_rla-r50_fpn_1x_coco.py'))
    layer = nn.Linear(1, 1)
    optim_wrapper = build_optim_wrapper(layer, cfg.optim_wrapper)
    warmup, steps = build_schedulers(cfg, optim_wrapper)
    rates = []
    for _ in range(12):
        for _ in range(500):
            warmup.step()
        rates.append(optim_wrapper.optimizer.param_groups[0]['lr'])
        steps.step()
    assert rates == pytest.approx([1e-2] * 8 + [1e-3] * 3 + [1e-4])


PLANTED = {
    'optim_wraper': dict(type='OptimWrapper'),
    'train_dataloder': dict(batch_size=2),
    'learning_rate': 0.125,
    'train_dataloader.batchsize': 2,
    'train_dataloader.dataset.filter_cfg.min_siz': 32,
    'optim_wrapper.optimizer.momentun': 0.9,
    'optim_wrapper.clip_grad.norm': 10,
    'model.backbone.frozen_stage': 0,
    'model.neck.out_chanels': 64,
    # these two go into **kwargs or into a dict that the head reads at will
    'model.roi_head.bbox_head.num_clases': 5,
    'model.train_cfg.rpn.samplr': dict(num=64),
    'default_hooks.checkpoint.max_keep_ckpt': 2,
    'default_hooks.logging': dict(interval=20),
    'val_evaluator.metrics': 'bbox',
}


@pytest.mark.parametrize('place', PLANTED)
def test_a_planted_key_is_found(place: str, tmp_path: Path) -> None:
    base = ROOT / 'configs/demo/faster-rcnn_rla-r50-mini_fpn_shapes.py'
    *parents, last = place.split('.')
    value: Any = PLANTED[place]
    for key in reversed([*parents[1:], last] if parents else []):
        value = {key: value}
    path = tmp_path / 'planted.py'
    path.write_text(f'_base_ = {str(base)!r}\n{(parents or [last])[0]} = {value!r}\n')
    found = unused_keys(Config.fromfile(path))
    # and, where the planted value is a dict, the keys in it
    assert found and all(f'{item.split()[0]}.'.startswith(f'{place}.') for item in found)


def test_a_variable_that_config_files_share_is_no_unused_key(tmp_path: Path) -> None:
    path = tmp_path / 'derived.py'
    base = ROOT / 'configs/rla/rla-resnet50_4xb64_in1k.py'
    lines = [f'_base_ = {str(base)!r}', 'width = 96']
    lines.append('model = dict(backbone=dict(base_channels=width))')
    path.write_text('\n'.join(lines))
    assert unused_keys(Config.fromfile(path)) == []


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
