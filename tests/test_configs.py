"""Every config builds, takes a training step, predicts, and has no unused key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from tests.config_keys import unused_keys
from tests.helpers.configs import CONFIGS, ROOT, build_model, build_schedulers, load

#: All configs but the ablations, which only change a few arguments of another config's model.
RECIPES = [name for name in CONFIGS if 'ablations' not in name]
#: By family: configs that differ from another one of the family only in numbers, data or the head; only the
#: slow tests train them.
ALIKE = {
    'swrn': r'.*(cifar100|-(dropout|cutout)_|-28-1\d|-28-6|-40-|-28-4-4_)|wrn-50|mask|retinanet',
    'recnet': r'.*(cifar100|-(90|120)-|-60-(480|960)|-1280|large|-medium_4xb64)|mask|retinanet',
    'recnet/ablations': '',
    'dr_resnet': r'.*(lvbn|-t6|net(4[047]|5[348]|6[56]|74)_|r53_|180e|shared|lr1e)'
    r'|resnet(56|110|50|101)|mobile|mask|retinanet',
    'resnet_shared': r'.*(-graft|r101|resnet101|resnet56|-plain|(u1|double|shared)-no-ortho_|no-norm_)'
    r'|(densenet121|resnet34|resnext50|mobilenetv2)_|.*s32u1|faster-rcnn_r50-shared-double|mask|retinanet',
    'rla': r'.*(cifar100|r101|resnet1(01|52)_)|preact-resnet110|(faster-rcnn|retinanet)_rla-eca-r50'
    r'|mask-rcnn_rla-r50|rla-eca-resnet50_|rla-resnet50-d_',
    'rla/ablations': r'.*(resnet1(01|52|64)|_coco|-v[2356]_)|(eca-)?(mobilenetv2|resnet50)_',
}


def is_alike(name: str) -> bool:
    """Return whether only the slow tests train a config."""
    path = Path(name)
    pattern = ALIKE.get(path.parent.relative_to('configs').as_posix())
    return pattern is not None and re.match(pattern, path.stem + '_') is not None


TRAINED = [pytest.param(n, marks=pytest.mark.slow) if is_alike(n) else n for n in CONFIGS]


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


@pytest.mark.parametrize('name', CONFIGS)
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


@pytest.mark.parametrize(
    'name', [n for n in RECIPES if '-r50' in n or 'resnet50' in n or '/rla/' in n and 'mobilenetv2' in n]
)
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
