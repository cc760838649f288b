"""A training that matches the feature maps of a teacher, on MMEngine's runner."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.engine import CPUAmpOptimWrapper, FeatureMatchingHook, ResumableRandomnessHook
from mmrecur.errors import CheckpointError, ToolError
from mmrecur.models.losses import matching_error, matching_errors
from mmrecur.models.losses.feature_matching import OutputRecorder
from tests.helpers import image, randomise_norms

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

PLAIN = dict(type='mmrecur.RLAResNet', depth=50, base_channels=4, rla_channels=0, norm_eval=False)
SHARED = dict(type='mmrecur.ResNetShared', depth=50, base_channels=4, loss_ortho=None, norm_eval=False)
TASKS = ('classifier', 'detector')


def config(task: str, backbone: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Config of a model with its scope, as in a file."""
    if task == 'classifier':
        model = dict(
            type='ImageClassifier',
            backbone=dict(backbone, out_indices=(2, 3)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=128),
            data_preprocessor=dict(type='ClsDataPreprocessor', mean=[128] * 3, std=[64] * 3),
        )
        return dict(default_scope='mmpretrain', model={**model, **options})
    model = dict(
        type='FCOS',
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[128] * 3, std=[64] * 3),
        backbone=backbone,
        neck=dict(type='FPN', in_channels=[16, 32, 64, 128], out_channels=8, start_level=1, num_outs=3),
        bbox_head=dict(
            type='FCOSHead',
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            num_classes=3,
            strides=[8, 16, 32],
            regress_ranges=((-1, 64), (64, 128), (128, 1e8)),
            norm_cfg=None,
        ),
    )
    return dict(default_scope='mmdet', model={**model, **options})


def built(cfg: dict[str, Any], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope(cfg['default_scope']):
        return MODELS.build(cfg['model'])


def samples(task: str, count: int = 4) -> list[dict[str, Any]]:
    # patches of one colour: images of noise all give the same features
    patches = torch.randint(0, 255, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    pixels = patches.repeat_interleave(8, 2).repeat_interleave(8, 3)
    if task == 'classifier':
        from mmpretrain.structures import DataSample

        labels = [DataSample().set_gt_label(i % 3) for i in range(count)]
    else:
        from mmdet.structures import DetDataSample

        meta = dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0), pad_shape=(64, 64))
        boxes = InstanceData(bboxes=torch.tensor([[4.0, 6.0, 20.0, 30.0]]), labels=torch.tensor([1]))
        labels = [DetDataSample(metainfo=meta, gt_instances=boxes) for _ in range(count)]
    return [dict(inputs=x.byte(), data_samples=label) for x, label in zip(pixels, labels)]


def batch(task: str, images: slice = slice(None)) -> dict[str, list]:
    chosen = samples(task)[images]
    return {key: [sample[key] for sample in chosen] for key in chosen[0]}


@pytest.fixture(scope='module', params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configs and checkpoints of the teachers."""
    root = tmp_path_factory.mktemp('teachers')
    for name in TASKS:
        cfg = config(name, PLAIN)
        model = built(cfg, seed=1)
        randomise_norms(model)
        # as in a trained network, maps have about the same size in all stages
        model.train()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
        model.data_preprocessor(batch(name), training=True)
        model.extract_feat(model.data_preprocessor(batch(name), training=True)['inputs'])
        torch.save(dict(state_dict=model.state_dict(), meta={}), root / f'{name}.pth')
        Config(cfg).dump(root / f'{name}.py')
    return root


def hook_config(folder: Path, task: str, **options: Any) -> dict[str, Any]:
    files = dict(teacher=str(folder / f'{task}.py'), teacher_checkpoint=str(folder / f'{task}.pth'))
    return dict(type='mmrecur.FeatureMatchingHook', **{**files, **options})


class Spy(Hook):
    """Keeps the teacher's weights of every iteration, and the dtype of its maps."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.dtypes: set[torch.dtype] = set()

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, FeatureMatchingHook))
        teacher = hook._matching.teacher
        self.states.append({key: value.clone() for key, value in teacher.state_dict().items()})
        if not self.dtypes:
            teacher.backbone.conv1.register_forward_hook(lambda m, a, output: self.dtypes.add(output.dtype))

    after_train_iter = before_train_iter


def train(work_dir: Path, task: str, hooks: list, epochs: int = 2, **options: Any) -> Runner:
    wrapper = dict(optimizer=dict(type='AdamW', lr=0.01), **options.pop('wrapper', {}))
    runner = Runner(
        model=built(config(task, SHARED)),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=options.pop('batch_size', 2),
            num_workers=0,
            dataset=samples(task),
            sampler=dict(type='DefaultSampler'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=wrapper,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=epochs)),
        randomness=dict(seed=5),
        experiment_name=f'{work_dir.name}_{task}_{epochs}_{bool(options.get("resume"))}',
        log_level='ERROR',
        custom_hooks=[ResumableRandomnessHook(), *hooks],
        **options,
    )
    runner.train()
    return runner


def logged(runner: Runner, name: str = 'loss_match') -> list[float]:
    return runner.message_hub.get_scalar(f'train/{name}').data[0].tolist()


def test_the_error_falls_and_the_teacher_stays_outside(tmp_path: Path, folder: Path, task: str) -> None:
    spy = Spy()
    # a weight that exceeds the losses of the untrained head
    hook = hook_config(folder, task, loss_weight=1000.0)
    runner = train(tmp_path, task, [hook, spy], epochs=24, batch_size=4)
    errors = logged(runner)
    assert len(errors) == 24 and sum(errors[-4:]) < 0.8 * sum(errors[:4])
    if task == 'detector':  # the log of a classifier has its own loss under this name
        parts = [name for name in runner.message_hub.log_scalars if name.startswith('train/loss_')]
        total = sum(logged(runner, name.removeprefix('train/'))[0] for name in parts)
        assert logged(runner, 'loss')[0] == pytest.approx(total, rel=1e-4)
    stored = load_checkpoint_file(folder / f'{task}.pth')['state_dict']
    assert all(torch.equal(state[key], stored[key]) for state in spy.states for key in stored)
    saved = load_checkpoint_file(tmp_path / 'epoch_24.pth')
    assert saved['state_dict'].keys() == built(config(task, SHARED)).state_dict().keys()
    assert len(saved['optimizer']['param_groups'][0]['params']) == len(list(runner.model.parameters()))
    # nothing is left behind
    assert not runner.model._forward_hooks and not runner.model.backbone._forward_pre_hooks


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, folder: Path, task: str) -> None:
    hook = hook_config(folder, task)
    whole = train(tmp_path / 'whole', task, [hook])
    train(tmp_path / 'parts', task, [hook], epochs=1)
    resumed = train(tmp_path / 'parts', task, [hook], resume=True)
    without = train(tmp_path / 'without', task, [])
    states = [runner.model.state_dict() for runner in (whole, resumed, without)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_mixed_precision(tmp_path: Path, folder: Path) -> None:
    spies = Spy(), Spy()
    runs = [
        train(tmp_path / str(i), 'classifier', [hook_config(folder, 'classifier'), spy], wrapper=wrapper)
        for i, (spy, wrapper) in enumerate(zip(spies, ({}, dict(type=CPUAmpOptimWrapper))))
    ]
    assert spies[0].dtypes == {torch.float32} and spies[1].dtypes == {torch.bfloat16}
    assert logged(runs[1])[0] == pytest.approx(logged(runs[0])[0], rel=0.05)


def matched(folder: Path, task: str, model: nn.Module, **options: Any) -> FeatureMatchingHook:
    """A hook that is attached to a model without a runner."""
    options = hook_config(folder, task, **options)
    options.pop('type')
    hook = FeatureMatchingHook(**options)
    hook.before_train(type('Runner', (), dict(model=model)))
    return hook


def losses(task: str, model: nn.Module, images: slice = slice(None)) -> dict[str, Any]:
    return model(**model.data_preprocessor(batch(task, images), training=True), mode='loss')


def student(task: str, **options: Any) -> nn.Module:
    return built(config(task, dict(SHARED, **options))).train()


def test_the_error_is_that_of_the_definition(folder: Path, task: str) -> None:
    model = student(task)
    hook = matched(folder, task, model, loss_weight=3.0)
    found = losses(task, model)['loss_match']
    hook.after_train(None)
    assert 'loss_match' not in losses(task, model)
    teacher = built(config(task, PLAIN)).eval()
    teacher.load_state_dict(load_checkpoint_file(folder / f'{task}.pth')['state_dict'])
    outputs = []
    for each in (model, teacher):
        maps = each.backbone(each.data_preprocessor(batch(task), training=True)['inputs'])
        outputs.append([*maps, *each.neck(maps)])
    errors = [(s - t).square().sum() / t.square().sum() for s, t in zip(*outputs)]
    assert len(errors) == (4 if task == 'classifier' else 7)
    assert found.item() == pytest.approx(3 * (sum(errors) / len(errors)).item(), rel=1e-5)


def test_the_teacher_sees_the_inputs_of_the_student(folder: Path, task: str) -> None:
    """A student that is the teacher has no error."""
    model = built(config(task, dict(PLAIN, norm_eval=True)))
    model.load_state_dict(load_checkpoint_file(folder / f'{task}.pth')['state_dict'])
    model.train()
    matched(folder, task, model)
    assert losses(task, model)['loss_match'].item() == 0
    model.backbone.conv1.weight.data.mul_(1.1)
    assert losses(task, model)['loss_match'].item() > 0
    # no error in other modes, nor in evaluation
    inputs = model.data_preprocessor(batch(task), training=True)
    assert not isinstance(model(inputs['inputs'], mode='tensor'), dict)
    assert 'loss_match' not in model.eval()(**inputs, mode='loss')


def test_chosen_modules_checkpointing_and_accumulation(folder: Path) -> None:
    gradients = []
    for with_cp in (False, True):
        model = student('classifier', with_cp=with_cp)
        match = ['backbone.layer3.0.conv2', 'backbone.layer4']
        hook = matched(folder, 'classifier', model, match=match, loss_weight=100.0)
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1), accumulative_counts=2)
        wrapper.initialize_count_status(model, 0, 4)
        for part in (slice(0, 2), slice(2, 4)):
            log = model.train_step(batch('classifier', part), wrapper)
            # recomputed activations are not kept
            assert all(not calls for r in hook._matching.recorders for calls in r.outputs().values())
        assert math.isfinite(log['loss_match'].item())
        gradients.append({key: value.clone() for key, value in model.state_dict().items()})
    for key, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][key], rtol=1e-4, atol=1e-5)


def test_wrong_input_is_named(tmp_path: Path, folder: Path) -> None:
    model = student('classifier')
    for options, error, message in (
        (dict(loss_weight=-1), ValueError, 'loss_weight=-1, allowed: a number of at least 0'),
        (dict(teacher=None), TypeError, 'teacher=None, allowed: a config file'),
        (dict(teacher_checkpoint=None), TypeError, 'teacher_checkpoint=None, allowed: a file or a URL'),
        (dict(match=['head']), ValueError, r"match=\['head'\], allowed: None, or names that start with"),
        (
            dict(match='backbone.layer9'),
            ValueError,
            "has no module 'backbone.layer9', allowed",
        ),
        (dict(teacher='nothing.py'), ToolError, "config 'nothing.py' does not exist"),
        (dict(teacher_checkpoint='nothing.pth'), FileNotFoundError, 'nothing.pth'),
        (dict(teacher_checkpoint=str(folder / 'detector.pth')), CheckpointError, 'does not fit the teacher'),
    ):
        with pytest.raises(error, match=message):
            matched(folder, 'classifier', model, **options)
    other = built(config('classifier', SHARED, data_preprocessor=dict(mean=[1] * 3, std=[64] * 3)))
    with pytest.raises(ValueError, match='mean of the data preprocessor is .* in the student and'):
        matched(folder, 'classifier', other)
    narrow = built(config('classifier', dict(SHARED, base_channels=2), head=dict(
        type='LinearClsHead', num_classes=3, in_channels=64)))  # fmt: skip
    matched(folder, 'classifier', narrow.train())
    with pytest.raises(ValueError, match=r"output 'backbone.0': the student has shape \(4, 32, 4, 4\)"):
        losses('classifier', narrow)


def test_errors_of_nested_outputs() -> None:
    x = image(2, 3, 4, 4)
    half = matching_errors(dict(a=(x, 0 * x)), dict(a=[x, x.half()]))
    assert list(half) == ['a.0', 'a.1'] and half['a.1'].dtype == torch.float32
    assert matching_error((x, 0 * x), (x, x)).item() == 0.5
    assert matching_error(x, 0 * x) > 1e6 and matching_error(0 * x, 0 * x) == 0
    large = (x.half() * 1e4).requires_grad_()  # whose squares overflow
    matching_error(large, -large).backward()
    assert torch.isfinite(large.grad).all()
    with pytest.raises(ValueError, match=r"student has 1 outputs \(''\), the teacher has 2 \('0', '1'\)"):
        matching_error([x], [x, x])
    with pytest.raises(TypeError, match="output '1' is of type str, allowed: a tensor"):
        matching_error([x, 'x'], [x, x])
    # a stage with a recurrent state that is not there, and one without
    assert matching_error(dict(stage=(x, None)), dict(stage=x)) == 0


def test_a_recorder_keeps_every_call() -> None:
    layer = nn.ReLU()
    model = nn.Sequential(layer, layer)
    recorder = OutputRecorder(model, ['0'])
    model(image(1, 2))
    assert recorder.outputs() == {'0': []}
    recorder.active = True
    model(image(1, 2))
    assert len(recorder.outputs()['0']) == 2
    recorder.remove()
    assert not layer._forward_hooks and recorder.outputs() == {'0': []}


def _two_processes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=2)
    norm = dict(type='GN', num_groups=2)  # batch norms would see the batch of their process
    options = dict(teacher=f'{folder}/teacher.py', teacher_checkpoint=f'{folder}/teacher.pth')
    errors, states = [], []
    for wrap in (False, True):
        model = student('classifier', norm_cfg=norm)
        wrapped = MMDistributedDataParallel(model) if wrap else model
        hook = FeatureMatchingHook(loss_weight=10.0, **options)
        hook.before_train(type('Runner', (), dict(model=wrapped)))
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
        # the error is relative to the batch: the same images in both processes
        log = wrapped.train_step(batch('classifier', slice(0, 2)), optimizer)
        errors.append(log['loss_match'])
        states.append(model.state_dict())
    assert errors[0] == errors[1]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-5, atol=1e-6)
    dist.destroy_process_group()


def test_two_processes_match_as_one(tmp_path: Path) -> None:
    cfg = config('classifier', dict(PLAIN, norm_cfg=dict(type='GN', num_groups=2)))
    Config(cfg).dump(tmp_path / 'teacher.py')
    torch.save(built(cfg).state_dict(), tmp_path / 'teacher.pth')
    mp.spawn(_two_processes, (str(tmp_path),), nprocs=2)
