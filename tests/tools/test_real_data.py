"""Detectors on photographs: a few COCO images under ``$MMRECUR_DATA/coco_mini``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get('MMRECUR_DATA', 'unset')) / 'coco_mini'
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason='$MMRECUR_DATA/coco_mini is not there')

#: A narrow version of a COCO config. Eight images serve for training and validation.
CONFIG = """
_base_ = '{base}'
backbone_norm = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(base_channels=16, rla_channels=8, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, norm_cfg=backbone_norm),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256){mask}),
    train_cfg=dict(rpn_proposal=dict(max_per_img=200), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(max_per_img=200), rcnn=dict(score_thr=0.0)))
resize = dict(type='Resize', scale=(320, 320), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={with_mask}),
    resize, dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), resize,
    dict(type='LoadAnnotations', with_bbox=True, with_mask={with_mask}),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
data = dict(data_root='{data}/', ann_file='{annotations}', data_prefix=dict(img='train2017/'))
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False,
                        dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(num_workers=0, persistent_workers=False,
                      dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{annotations}')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3), clip_grad=dict(max_norm=10))
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=10)]
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval={epochs}))
randomness = dict(seed=0)
"""


def train(base: str, directory: Path, epochs: int) -> tuple[list[float], dict[str, float], Path]:
    """Train on eight images; return the loss of every step, the metrics and the work directory."""
    with_mask = base.startswith('mask')
    whole = json.loads((DATA / 'annotations/instances_train2017.json').read_text())
    # images with a few large objects, which a detector can memorise in minutes
    areas = {image['id']: image['width'] * image['height'] for image in whole['images']}
    objects: dict[int, list[float]] = {key: [] for key in areas}
    for item in whole['annotations']:
        objects[item['image_id']].append(1.0 if item['iscrowd'] else item['area'] / areas[item['image_id']])
    chosen = [key for key, sizes in sorted(objects.items()) if 0 < len(sizes) < 5 and max(sizes) < 0.9][:8]
    whole['images'] = [image for image in whole['images'] if image['id'] in chosen]
    whole['annotations'] = [item for item in whole['annotations'] if item['image_id'] in chosen]
    annotations = directory / 'eight.json'
    annotations.write_text(json.dumps(whole))
    config = directory / 'config.py'
    mask = ''
    if with_mask:
        mask = (
            ', mask_roi_extractor=dict(out_channels=64),'
            ' mask_head=dict(in_channels=64, conv_out_channels=32, num_convs=2)'
        )
    config.write_text(
        CONFIG.format(
            base=ROOT / 'configs/rla' / base, mask=mask, with_mask=with_mask, data=DATA,
            annotations=annotations, epochs=epochs,
        )
    )  # fmt: skip
    work_dir = directory / 'work'
    run = subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir)],
        capture_output=True, text=True, cwd=directory,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    scalars = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    rows = [json.loads(line) for line in scalars]
    losses = [row['loss'] for row in rows if 'loss' in row]
    return losses, rows[-1], work_dir


@pytest.mark.parametrize('base', ['faster-rcnn_rla-r50_fpn_1x_coco.py', 'mask-rcnn_rla-r50_fpn_1x_coco.py'])
def test_loss_falls_on_photographs(base: str, tmp_path: Path) -> None:
    losses, metrics, work_dir = train(base, tmp_path, epochs=10)
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    kinds = ['bbox', 'segm'] if base.startswith('mask') else ['bbox']
    assert all(f'coco/{kind}_mAP_50' in metrics for kind in kinds)
    assert len(list((work_dir / 'predictions').glob('*.png'))) == 8


@pytest.mark.slow
def test_eight_photographs_are_learnt_by_heart(tmp_path: Path) -> None:
    losses, metrics, _ = train('faster-rcnn_rla-r50_fpn_1x_coco.py', tmp_path, epochs=120)
    assert losses[-1] < losses[0]
    assert metrics['coco/bbox_mAP_50'] > 0.5
