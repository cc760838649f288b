"""Swaps in unusual models: trials, refusals and notes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmdet.models.detectors import FasterRCNN
from mmengine.config import Config

from mmrecur.apis.runner import load_config
from mmrecur.apis.specs import build_model
from mmrecur.apis.swap import plan_swap
from mmrecur.apis.swap.trial import Trial, try_swap
from mmrecur.errors import ToolError

NARROW = dict(type='mmrecur.RLAResNet', depth=50, base_channels=8, rla_channels=4)
FPN = [32, 64, 128, 256]
QDTRACK = 'mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py'
NARROW_DETECTOR = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=FPN, out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32), bbox_head=dict(in_channels=32, fc_out_channels=64)
    ),
)


def tried(base: Config, **kwargs: Any) -> tuple[Trial, list[str]]:
    swap = plan_swap(base, NARROW, 'none', **kwargs)
    return try_swap(swap, (64, 96)), swap.notes


def test_a_tracker_is_tried_on_images() -> None:
    base = load_config(QDTRACK)
    base.merge_from_dict(dict(model=dict(detector=NARROW_DETECTOR)))
    swap = plan_swap(base, NARROW, 'none', 'model.detector')
    assert 'data_preprocessor' not in swap.config.model.detector  # the tracker has it
    trial = try_swap(swap, (64, 96))
    assert trial.step.gradients > 200 and {'loss_rpn_cls', 'loss_cls'} <= trial.step.losses.keys()


def test_the_detector_in_a_trackers_checkpoint() -> None:
    base = load_config(QDTRACK)
    base.merge_from_dict(dict(model=dict(detector=NARROW_DETECTOR)))
    detector = plan_swap(base, NARROW, 'none').target
    before = base.model.detector
    state = build_model({**before, 'data_preprocessor': detector.data_preprocessor}, 'mmdet').state_dict()
    whole = {f'detector.{key}': value for key, value in state.items()} | {'track_head.w': torch.ones(1)}
    swap = plan_swap(base, 'rla-resnet', at='model.detector', load_from='grafted.pth')
    trial = try_swap(swap, (64, 96), {'state_dict': whole})
    assert trial.grafted.difference < 1e-6 and 'backbone.conv1.weight' in trial.grafted.state
    assert 'of the checkpoint only detector is grafted, not track_head' in trial.grafted.notes


def test_rtmdet_takes_masks_as_tensors() -> None:
    trial, _ = tried(load_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'))
    assert trial.skipped is None and {'loss_cls', 'loss_bbox'} <= trial.step.losses.keys()


@pytest.mark.slow
def test_crowddet_needs_no_operators_of_torchvision() -> None:
    base = load_config('mmdet::crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py')
    trial, _ = tried(base)
    assert trial.skipped is None and 'loss_rcnn_emd' in trial.step.losses


class NeedsText(FasterRCNN):
    """A detector that fails on made-up inputs."""

    def loss(self, inputs: torch.Tensor, samples: list) -> dict:
        """See the class."""
        return super().loss(inputs, samples) if samples[0].text else {}


class DislikesOurs(FasterRCNN):
    """A detector that works with the replaced backbone only."""

    def loss(self, inputs: torch.Tensor, samples: list) -> dict:
        """See the class."""
        assert hasattr(self.backbone, 'norm1_name')
        return dict(loss_any=self.backbone(inputs)[-1].mean())


def test_a_trial_is_skipped_where_the_base_fails_too() -> None:
    base = load_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    base.merge_from_dict(dict(model=NARROW_DETECTOR))
    base.model.type = NeedsText
    trial, _ = tried(base)
    assert trial.step is None
    assert trial.skipped.startswith('The base itself fails on made-up images: ') and 'text' in trial.skipped
    base.model.type = DislikesOurs
    with pytest.raises(ToolError, match='a training step on images of 64x96 fails: AssertionError'):
        tried(base)


def test_windows_want_larger_images() -> None:
    swap = plan_swap('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 'rla-resnet50', 'none')
    assert swap.config.model.backbone.out_indices == (3,)


@pytest.mark.parametrize(
    'base, message',
    [
        ('tridentnet/tridentnet_r50-caffe_1x_coco.py', 'maps of 3 branches .*TridentFasterRCNN expects'),
        ('detectors/detectors_cascade-rcnn_r50_1x_coco.py', 'image itself before its maps.*the neck, RFP'),
    ],
)
def test_the_true_reasons_of_refusals(base: str, message: str) -> None:
    for init in ('base', 'none'):
        with pytest.raises(ToolError, match=message):
            plan_swap(f'mmdet::{base}', 'rla-resnet', init)


def test_a_resnet_with_other_convolutions_is_one() -> None:
    base = load_config('mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py')
    base.model.backbone.sac.use_deform = False
    base.merge_from_dict(dict(model=dict(backbone=dict(base_channels=8), neck=dict(in_channels=FPN))))
    swap = plan_swap(base, 'rla-resnet')
    assert swap.config.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50' and swap.fit.is_exact
    assert any('sac=' in note for note in swap.notes)


def test_a_cifar_network_keeps_its_stem_where_there_is_one() -> None:
    base = load_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py')
    swap = plan_swap(base, 'resnet-shared', 'none')
    backbone = swap.config.model.backbone
    assert (backbone.depth, backbone.stem, swap.notes) == (18, 'cifar', ())
    # without a CIFAR stem, an early stage has the map of that size
    swap = plan_swap(base, 'rla-resnet50', 'none')
    assert swap.config.model.backbone.out_indices == (1,)
    assert 'RLAResNet ends with stage 2 of 4' in swap.notes[0] and '(-86 %)' in swap.notes[0]
    assert 'no counterpart: stem=cifar' in swap.notes[-1]


def test_what_a_detector_loses_is_said() -> None:
    swap = plan_swap('mmdet::ssd/ssd300_coco.py', NARROW, 'none')
    assert 'ends with stage 3 of 4' in swap.notes[0] and '(-99 %)' in swap.notes[0]
    assert swap.notes[1] == 'maps have [64, 128] channels instead of [512, 1024]'
    assert plan_swap('mmdet::ssd/ssd300_coco.py', {**NARROW, 'base_channels': 64}, 'none').notes != ()


def test_wide_resnets_of_mmpretrain() -> None:
    base = load_config('mmpretrain::wrn/wide-resnet50_8xb32_in1k.py')
    base.model.backbone.update(base_channels=16, stem_channels=8)
    base.model.head.in_channels = 256
    base.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='https://wide.pth', prefix='backbone')
    swap = plan_swap(base, 'rla-resnet')
    backbone = swap.config.model.backbone
    assert (backbone.base_channels, backbone.base_width) == (8, 128) and swap.fit.is_exact


def test_loops_start_from_a_network_that_exists() -> None:
    base = load_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    base.merge_from_dict(dict(model=NARROW_DETECTOR))
    swap = plan_swap(base, dict(type='mmrecur.DRResNet', depth=53, base_channels=8))
    assert swap.config.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    assert not swap.fit.is_exact and 'norm_eval' not in swap.config.model.backbone
