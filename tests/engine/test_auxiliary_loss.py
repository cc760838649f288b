"""Objectives of a backbone inside classifiers and detectors; with processes: tests/tools/."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmrecur.engine import CPUAmpOptimWrapper
from mmrecur.engine.hooks.auxiliary_loss import collect_auxiliary_losses, merge_auxiliary_losses
from mmrecur.models.backbones import ResNetShared

BACKBONE = dict(
    type='mmrecur.ResNetShared',
    depth=18,
    base_channels=8,
    shared_rank=3,
    unique_rank=1,
    norm_cfg=dict(type='GN', num_groups=2),
)


def classifier(**backbone: Any) -> nn.Module:
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(
            dict(
                type='ImageClassifier',
                backbone={**BACKBONE, **backbone},
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
                data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=5),
            )
        )


def detector(**backbone: Any) -> nn.Module:
    pytest.importorskip('mmdet')
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(
            dict(
                type='FCOS',
                data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
                backbone={**BACKBONE, **backbone},
                neck=dict(
                    type='FPN',
                    in_channels=[8, 16, 32, 64],
                    out_channels=8,
                    start_level=1,
                    add_extra_convs='on_output',
                    num_outs=5,
                ),
                bbox_head=dict(
                    type='FCOSHead',
                    in_channels=8,
                    feat_channels=8,
                    stacked_convs=1,
                    num_classes=5,
                    norm_cfg=None,
                ),
            )
        )


def batch(model: nn.Module, images: slice = slice(None)) -> dict[str, Any]:
    """Two images with their labels or boxes."""
    pixels = torch.randint(0, 255, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    if type(model).__name__ == 'ImageClassifier':
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(label) for label in (0, 4)]
    else:
        from mmdet.structures import DetDataSample

        meta = dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0), pad_shape=(64, 64))
        found = InstanceData(bboxes=torch.tensor([[4.0, 6.0, 40.0, 50.0]]), labels=torch.tensor([1]))
        samples = [DetDataSample(metainfo=meta, gt_instances=found) for _ in range(2)]
    return dict(inputs=list(pixels.byte())[images], data_samples=samples[images])


def prepared(build: Any, hook: bool = True, **backbone: Any) -> nn.Module:
    """A model in training whose bases are not orthonormal."""
    torch.manual_seed(0)
    model = build(**backbone).train()
    for group in model.backbone.basis_groups():
        for matrix in group.shared:
            matrix.data.mul_(1.5)
    if hook:
        model.register_forward_hook(merge_auxiliary_losses, with_kwargs=True)
    return model


def penalty(model: nn.Module, weight: float = 10.0) -> Tensor:
    """The objective from the state dict, written out: two bases in each stage are one matrix."""
    state = {k: v.double() for k, v in model.backbone.named_parameters() if '.basis.' in k}
    total, entries = 0.0, 0
    for stage in range(1, 5):
        pair = [state[f'layer{stage}.basis.conv{i}.weight'].flatten(1) for i in (1, 2)]
        matrix = torch.cat(pair)
        total += (matrix @ matrix.T - torch.eye(len(matrix)).double()).square().sum()
        entries += len(matrix) ** 2
    return weight * total / entries


def step(model: nn.Module, wrapper: OptimWrapper, images: slice = slice(None)) -> dict[str, Tensor]:
    return model.train_step(batch(model, images), wrapper)


def sgd(model: nn.Module, kind: type = OptimWrapper, **options: Any) -> OptimWrapper:
    return kind(optimizer=torch.optim.SGD(model.parameters(), 0.01), **options)


@pytest.mark.parametrize('build', [classifier, detector])
@pytest.mark.parametrize('kind', [OptimWrapper, CPUAmpOptimWrapper])
def test_loss_and_gradient_are_those_of_an_independent_computation(build: Any, kind: type) -> None:
    model = prepared(build)
    without = prepared(build, hook=False)
    totals, logs = [], []
    for each in (model, without):
        with sgd(each, kind).optim_context(each):
            data = each.data_preprocessor(batch(each), training=True)
            total, log = each.parse_losses(each(**data, mode='loss'))
        total.backward()
        totals.append(total)
        logs.append(log)
    expected = penalty(model)
    # float32 also under autocast
    assert logs[0]['loss_ortho'].item() == pytest.approx(expected.item(), rel=1e-5)
    assert 'loss_ortho' not in logs[1]
    assert totals[0].item() == pytest.approx((totals[1] + expected).item(), rel=1e-5)
    names = [name for name, _ in model.backbone.named_parameters() if '.basis.' in name]
    parameters = [model.backbone.get_parameter(name) for name in names]
    for name, grad in zip(names, torch.autograd.grad(expected, parameters)):
        added = model.backbone.get_parameter(name).grad - without.backbone.get_parameter(name).grad
        torch.testing.assert_close(added, grad, rtol=1e-3, atol=1e-4 * grad.abs().max().item())
    others = [(n, p) for n, p in model.named_parameters() if '.basis.' not in n]
    assert all(torch.equal(p.grad, without.get_parameter(n).grad) for n, p in others)


@pytest.mark.parametrize('build', [classifier, detector])
def test_accumulated_gradients_hold_the_objective_once(build: Any) -> None:
    """Two halves of a batch, accumulated, are the step on the batch."""
    whole, parts = prepared(build), prepared(build)
    if build is detector:  # its losses are averages over boxes, not images: the same image twice
        images = [slice(0, 1), slice(0, 1)], slice(0, 1)
    else:
        images = [slice(0, 1), slice(1, 2)], slice(None)
    step(whole, sgd(whole), images[1])
    wrapper = sgd(parts, accumulative_counts=2)
    wrapper.initialize_count_status(parts, 0, 2)
    for part in images[0]:
        step(parts, wrapper, part)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f'{n}: {text}')


def test_other_modes_are_left_alone() -> None:
    model = prepared(classifier)
    data = model.data_preprocessor(batch(model), training=True)
    assert torch.is_tensor(model(**data, mode='tensor')[0])
    with torch.no_grad():
        assert len(model.eval()(**data, mode='predict')) == 2
        # evaluation: a teacher, a deployed backbone
        assert 'loss_ortho' not in model(**data, mode='loss')
    # by position, as a caller may
    losses = model.train()(data['inputs'], data['data_samples'], 'loss')
    assert losses['loss_ortho'].item() == pytest.approx(penalty(model).item(), rel=1e-5)


def test_several_modules_are_added_up_and_clashes_named() -> None:
    model = nn.Module()
    model.student = ResNetShared(20, base_channels=8, shared_rank=4)
    model.other = copy.deepcopy(model.student)
    for part in (model.student, model.other):
        part.layer1.basis['conv1'].weight.data.mul_(2)
    single = model.student.auxiliary_losses()['loss_ortho']
    assert torch.allclose(collect_auxiliary_losses(model)['loss_ortho'], 2 * single)
    model.other.eval()
    assert torch.equal(collect_auxiliary_losses(model)['loss_ortho'], single)

    twice = prepared(classifier)
    twice.register_forward_hook(merge_auxiliary_losses, with_kwargs=True)
    with pytest.raises(ValueError, match='already has loss_ortho; allowed: one AuxiliaryLossHook'):
        step(twice, sgd(twice))
    twice.backbone.auxiliary_losses = lambda: dict(penalty=torch.zeros(()))
    with pytest.raises(ValueError, match="names 'penalty', allowed: names that start with 'loss_'"):
        step(twice, sgd(twice))


class Warnings(logging.Handler):
    """Counts the warnings of losses that are not collected."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "dict(type='mmrecur.AuxiliaryLossHook')" in record.getMessage()


@pytest.fixture
def warned() -> Iterator[Warnings]:
    logger, handler = MMLogger.get_current_instance(), Warnings()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_training_on_without_the_hook_warns_once(warned: Warnings) -> None:
    model = prepared(classifier, hook=False)
    wrapper = sgd(model)
    counts = []
    for _ in range(3):
        step(model, wrapper)
        counts.append(warned.count)
    assert counts == [0, 1, 1]


@pytest.mark.parametrize('options', [dict(loss_ortho=None), dict(share=None), dict(frozen_stages=4)])
def test_nothing_to_collect_nothing_to_warn_of(warned: Warnings, options: dict) -> None:
    model = prepared(classifier, hook=False, **options)
    wrapper = sgd(model)
    for _ in range(3):
        step(model, wrapper)
    assert warned.count == 0


def test_no_warning_where_the_losses_are_collected(warned: Warnings) -> None:
    model = prepared(classifier)
    wrapper = sgd(model)
    for _ in range(3):
        step(model, wrapper)
    # two passes in one iteration and passes in evaluation are no second iteration
    bare = ResNetShared(20, base_channels=8).train()
    for _ in range(2):
        bare(torch.randn(2, 3, 32, 32))
    bare.auxiliary_losses()
    with torch.no_grad():
        bare.eval()(torch.randn(2, 3, 32, 32))
    assert warned.count == 0
