"""Auxiliary losses of backbones in classifiers and detectors; tests/tools/ runs several processes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmrecur.engine import CPUAmpOptimWrapper
from mmrecur.engine.hooks.auxiliary_loss import collect_auxiliary_losses, merge_auxiliary_losses
from mmrecur.models.backbones import MobileNetV2Shared, ResNetShared

ROOT = Path(__file__).resolve().parents[2]
#: Losses that a training of the SCNN-R logs.
LOGGED = ('loss', 'loss_path', 'loss_recurrence')
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
    """Compute the objective from the state dict; the two bases of a stage form one matrix."""
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
    """Accumulating two halves of a batch gives the step on the whole batch."""
    whole, parts = prepared(build), prepared(build)
    if build is detector:  # its losses are averages over boxes, so both halves are the same image
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
    # some callers pass the mode by position
    losses = model.train()(data['inputs'], data['data_samples'], 'loss')
    assert losses['loss_ortho'].item() == pytest.approx(penalty(model).item(), rel=1e-5)


def test_the_mode_may_be_one_of_many_keywords() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = ResNetShared(20, base_channels=8)

        def forward(self, inputs: Tensor, **kwargs: Any) -> dict[str, Tensor]:
            return dict(loss=self.backbone(inputs)[-1].mean())

    model = Model()
    model.register_forward_hook(merge_auxiliary_losses, with_kwargs=True)
    assert 'loss_ortho' in model(torch.randn(2, 3, 32, 32), mode='loss')
    assert 'loss_ortho' not in model(torch.randn(2, 3, 32, 32), mode='predict')


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

    count, last = 0, ''

    def emit(self, record: logging.LogRecord) -> None:
        if "dict(type='mmrecur.AuxiliaryLossHook')" in record.getMessage():
            self.count, self.last = self.count + 1, record.getMessage()


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


#: A backbone of each family with an objective, and a part of its warning.
ON_THEIR_OWN = {
    'the orthogonality of its filter bases': dict(type='mmrecur.ResNetShared', depth=20, base_channels=8),
    'the target rate of its gates': dict(type='mmrecur.DRResNet', depth=16, base_channels=4),
    'the recurrence of its layers': dict(
        type='mmrecur.SWRN', depth=16, width=1, loss_recurrence=dict(type='mmrecur.RecurrenceLoss')
    ),
}


def train_bare(backbone: dict[str, Any], collect: bool = False, **options: Any) -> nn.Module:
    """Train a backbone for three steps without collecting its auxiliary losses."""
    model = MODELS.build(backbone).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, **options)
    for _ in range(3):
        loss = model(torch.randn(2, 3, 16, 16))[-1].square().mean()
        extra = collect_auxiliary_losses(model).values() if collect else ()
        sum(extra, loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize('aim', ON_THEIR_OWN)
@pytest.mark.parametrize('fused', [False, True])  # writes that do not increase the version counter
def test_every_family_warns_once_where_nothing_collects(aim: str, fused: bool, warned: Warnings) -> None:
    train_bare(ON_THEIR_OWN[aim], collect=True, fused=fused)
    assert warned.count == 0
    train_bare(ON_THEIR_OWN[aim], fused=fused)
    assert warned.count == 1 and f'trains without {aim}' in warned.last


@pytest.mark.parametrize('aim', ON_THEIR_OWN)
def test_an_objective_without_weight_is_none(aim: str, warned: Warnings) -> None:
    cfg = ON_THEIR_OWN[aim]
    name = MODELS.get(cfg['type']).loss_name
    loss = getattr(MODELS.build(cfg), name)
    without = {'type': f'mmrecur.{type(loss).__name__}', 'loss_weight': 0}
    model = train_bare({**cfg, name: without})
    assert model.auxiliary_losses() == {} and warned.count == 0
    assert dict(type='mmrecur.AuxiliaryLossHook') not in model.required_hooks
    assert dict(type='mmrecur.AuxiliaryLossHook') in MODELS.build(cfg).required_hooks
    with pytest.raises(TypeError, match=f'{name}=3, allowed: None, or a dict with a type, e.g. .*mmrecur'):
        MODELS.build({**cfg, name: 3})


def scnn_r(tmp_path: Path, **kwargs: Any) -> Runner:
    """Train a small network for two steps with the SCNN-R config."""
    cfg = Config.fromfile(ROOT / 'configs/swrn/shortest-path_scnn-r.py')
    cfg.model.update(num_layers=4, num_templates=3, channels=4)
    cfg.model.loss_recurrence.loss_weight = 0.5
    cfg.train_dataloader.update(batch_size=4)
    cfg.train_dataloader.dataset.update(num_examples=8)
    cfg.val_dataloader.dataset.update(num_examples=2)
    cfg.train_cfg.max_epochs = 1
    cfg.update(work_dir=str(tmp_path), experiment_name='scnn-r', **kwargs)
    return Runner.from_cfg(cfg)


def test_the_recurrence_of_scnn_r_is_logged_and_learned(tmp_path: Path) -> None:
    runner = scnn_r(tmp_path)
    # other coefficients than the initial ones, which make layers orthogonal
    start = torch.tensor([[1.0, 0.2, 0.0], [-0.5, 1.0, 0.3], [0.1, 0.1, -1.0], [2.0, 1.0, 0.5]])
    runner.model.bank.coefficients.data.copy_(start)
    runner.train()
    logged = {key: runner.message_hub.get_scalar(f'train/{key}').data[0] for key in LOGGED}
    rows = start.double().numpy()
    expected = -0.5 * sum(abs(a @ b) / (a @ a) ** 0.5 / (b @ b) ** 0.5 for a in rows for b in rows)
    assert len(logged['loss_recurrence']) == 2
    assert logged['loss_recurrence'][0] == pytest.approx(expected, rel=1e-5)
    assert logged['loss_recurrence'][1] < logged['loss_recurrence'][0]
    total = logged['loss_path'] + logged['loss_recurrence']
    assert logged['loss'] == pytest.approx(total, rel=1e-5)


def test_scnn_r_without_the_hook_is_warned_once(tmp_path: Path, warned: Warnings) -> None:
    hooks = [dict(type='mmrecur.CurriculumHook', epochs_per_phase=1)]
    runner = scnn_r(tmp_path, custom_hooks=hooks)
    runner.logger.addHandler(warned)
    runner.train()
    assert warned.count == 1 and 'ShortestPathNet trains without the recurrence' in warned.last


@pytest.mark.parametrize('options', [dict(loss_ortho=None), dict(share=None), dict(frozen_stages=4)])
def test_nothing_to_collect_nothing_to_warn_of(warned: Warnings, options: dict) -> None:
    model = prepared(classifier, hook=False, **options)
    wrapper = sgd(model)
    for _ in range(3):
        step(model, wrapper)
    assert warned.count == 0


def test_frozen_bases_are_no_objective(warned: Warnings) -> None:
    # all stages that share are frozen, the last one and the head are not
    bare = MobileNetV2Shared(width_mult=0.25, frozen_stages=6).train()
    assert not bare.required_hooks and bare.auxiliary_losses() == {}
    optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], 0.01)
    for _ in range(3):
        bare(torch.randn(2, 3, 32, 32))[-1].sum().backward()
        optimizer.step()
    assert warned.count == 0
    # frozen later, like the teacher of a student
    model = prepared(classifier)
    with torch.no_grad():
        assert model.backbone.auxiliary_losses()['loss_ortho'] > 0
    model.backbone.requires_grad_(False)
    assert model.backbone.auxiliary_losses() == {}


def test_no_warning_where_the_losses_are_collected(warned: Warnings) -> None:
    model = prepared(classifier)
    wrapper = sgd(model)
    for _ in range(3):
        step(model, wrapper)
    # two passes in one iteration, and passes in evaluation, do not count as a second iteration
    bare = ResNetShared(20, base_channels=8).train()
    for _ in range(2):
        bare(torch.randn(2, 3, 32, 32))
    bare.auxiliary_losses()
    with torch.no_grad():
        bare.eval()(torch.randn(2, 3, 32, 32))
    assert warned.count == 0
