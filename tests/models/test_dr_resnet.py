"""DR-ResNet and DR-MobileNetV2: counts of the paper, and checks beyond those for every backbone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmrecur.analysis.loop_complexity import LoopComplexity, LoopWork, measure_loops
from mmrecur.models.backbones import DRMobileNetV2, DRResNet
from mmrecur.models.layers.loop import expected_iterations
from tests.helpers import assert_close, build, gradients, halve_batches, image

#: Depth -> parameters of a classifier, millions in Tables 1 and 2, relative tolerance.
PARAMETERS = {
    35: (17_540_798, 17.61, 0.005),
    44: (20_131_106, 20.21, 0.005),
    47: (21_261_652, 21.34, 0.005),
    53: (23_525_816, 23.60, 0.005),
    65: (28_051_072, 28.12, 0.005),
    16: (179_198, 0.18, 0.03),
    32: (303_330, 0.31, 0.03),
    40: (490_922, 0.50, 0.03),
    54: (441_862, 0.45, 0.03),
    58: (536_042, 0.55, 0.03),
    66: (724_402, 0.73, 0.03),
    74: (911_226, 0.92, 0.03),
}


def parameters(backbone: nn.Module, classes: int) -> int:
    return sum(p.numel() for p in backbone.parameters()) + classes * (backbone.out_channels[-1] + 1)


@pytest.mark.parametrize('depth', PARAMETERS)
def test_parameters_are_those_of_the_paper(depth: int) -> None:
    exact, table, tolerance = PARAMETERS[depth]
    with torch.device('meta'):
        model = DRResNet(depth)
    count = parameters(model, 10 if model.stem_kind == 'cifar' else 1000)
    assert count == exact
    assert count / 1e6 == pytest.approx(table, rel=tolerance)


def test_parameters_of_the_other_rows() -> None:
    with torch.device('meta'):
        looped = parameters(DRResNet(53, gated=False), 1000)
        mobile = parameters(DRMobileNetV2(out_indices=(7,)), 1000)
    assert looped == 23_377_960
    assert looped / 1e6 == pytest.approx(23.39, rel=0.001)
    assert mobile == 2_954_736
    assert mobile / 1e6 == pytest.approx(2.96, rel=0.005)


TABLE_2 = [
    (65, 0.7, 5.49),
    (53, 0.7, 4.92),
    (53, 0.65, 4.62),
    (53, 0.6, 4.35),
    (47, 0.7, 4.56),
    (44, 0.7, 4.25),
    (35, 0.8, 3.12),
]


@pytest.mark.parametrize('depth, rate, table', TABLE_2)
def test_average_multiply_adds_are_those_of_table_2(depth: int, rate: float, table: float) -> None:
    work = measure_loops(DRResNet(depth, style='caffe'), torch.zeros(1, 3, 224, 224))
    assert work.average(rate) / 1e9 == pytest.approx(table, rel=0.02)


def test_average_multiply_adds_of_mobilenet() -> None:
    model = DRMobileNetV2(out_indices=(7,))
    model.switch_to_deploy()  # the paper does not count norms, which matter more in this network
    work = measure_loops(model, torch.zeros(1, 3, 224, 224))
    assert work.average(0.9) / 1e9 == pytest.approx(0.275, rel=0.03)


def test_average_is_the_sum_over_samples() -> None:
    work = LoopComplexity(1000, {'a': LoopWork(3, 100, 1), 'b': LoopWork(1, 50, 2)})
    # of ten samples, 5, 4 and 1 pass the gates of a, and 3 pass that of b
    gates, passes = 10 + 5 + 4, 5 + 4 + 1
    expected = 1000 + (gates + 100 * passes + 2 * 10 + 50 * 3) / 10
    assert work.average({'a': [0.5, 0.8, 0.25], 'b': [0.3]}) == pytest.approx(expected)
    assert work.maximum == 1000 + 303 + 52
    assert work.average(0.5) == pytest.approx(1000 + 1.75 + 87.5 + 2 + 25)
    with pytest.raises(ValueError, match=r'rates of b are \[\], allowed: 1 numbers'):
        work.average({'a': [1, 1, 1]})
    assert 7 * expected_iterations(0.7, 3) + expected_iterations(0.7, 2) == pytest.approx(11.921)


@pytest.mark.parametrize('name', ['dr-r', 'dr-r16', 'dr-mobilenet'])
@pytest.mark.parametrize('deploy', [False, True])
def test_skipping_gives_the_features_of_masking(name: str, deploy: bool) -> None:
    model, counts = build(name).double().eval(), []
    x = image(9, 3, 33, 32).double()
    halve_batches(model, x)
    for block in model.loop_blocks().values():
        block.gate.register_forward_hook(lambda *call: counts.append((int(call[2].sum()), len(call[2]))))
    if deploy:
        model.switch_to_deploy()
    masking = copy.deepcopy(model)
    for block in masking.loop_blocks().values():
        block.skip = False
    with torch.no_grad():
        assert_close(model(x), masking(x), 1e-12)
        assert_close(tuple(torch.cat(maps) for maps in zip(*map(model, x.split(1)))), model(x), 1e-12)
    assert any(0 < passed < reached for passed, reached in counts)


@pytest.mark.parametrize('name', ['dr-r', 'dr-mobilenet'])
def test_syncbn_conversion_keeps_the_function(name: str) -> None:
    model, x = build(name).eval(), image(3, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
        assert not any(type(m) is nn.BatchNorm2d for m in converted.modules())
        assert_close(converted(x), expected, 1e-6)
        converted.switch_to_deploy()
        assert_close(converted(x), expected, 1e-4)


@pytest.mark.parametrize('deploy', [False, True])
def test_onnx_export_gives_the_same_features(tmp_path: Path, deploy: bool) -> None:
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    model = build('dr-r').eval()
    halve_batches(model, image(6, 3, 33, 48))
    if deploy:
        model.switch_to_deploy()
    path, x = tmp_path / 'model.onnx', image(6, 3, 33, 48)
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert_close([torch.from_numpy(output) for output in outputs], model(x), 1e-4)


def test_norm_eval_and_frozen_stages_keep_statistics() -> None:
    model = build('dr-r', norm_eval=True, frozen_stages=3).train()
    before = copy.deepcopy(dict(model.named_buffers()))
    grads = gradients(model, image(3, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    assert 'layer4.1.gate.fc2.weight' in grads and 'layer3.1.gate.fc2.weight' not in grads
    # frozen gates decide without noise and take no part in the objective
    assert {name.rsplit('.', 1)[0] for name in model.gate_rates()} == {'layer4.1'}
    assert model.auxiliary_losses()['loss_gate'].requires_grad


def test_rates_and_their_loss_describe_the_last_pass() -> None:
    model = build('dr-r', loss_gate=dict(type='mmrecur.GateRateLoss', target_rate=0.6)).train()
    model(image(8, 3, 32, 32))
    rates = model.gate_rates()
    assert set(rates) <= {f'{block}.{i}' for block in ('layer3.1', 'layer3.2', 'layer4.1') for i in range(3)}
    loss = model.auxiliary_losses()['loss_gate']
    assert loss.item() == pytest.approx(sum((rate - 0.6) ** 2 for rate in rates.values()), rel=1e-5)
    loss.backward()
    assert model.layer3[1].gate.fc2.weight.grad.abs().sum() > 0
    assert build('r-r').train().auxiliary_losses() == {}
    assert build('dr-r', loss_gate=None).train().auxiliary_losses() == {}


def test_gates_frozen_in_the_middle_of_training_leave_the_objective() -> None:
    model = build('dr-r').train()
    model(image(2, 3, 32, 32))
    model.auxiliary_losses()['loss_gate'].backward()
    model.layer3.requires_grad_(False).eval()
    model(image(2, 3, 32, 32))
    loss = model.auxiliary_losses()['loss_gate']
    assert loss.item() == pytest.approx(build('dr-r').loss_gate(model.layer4[1].decisions).item())
    loss.backward()  # fails if it reaches the freed graph of the first pass


def test_named_architectures_have_the_target_rates_of_the_paper() -> None:
    named = {**DRResNet.architectures, **DRMobileNetV2.architectures}
    special = {'dr-resnet35': 0.8, 'dr-mobilenetv2': 0.9}
    assert special.keys() < named.keys() and 'dr-resnet53' in named
    for name, arguments in named.items():
        with torch.device('meta'):
            model = (DRMobileNetV2 if 'mobilenet' in name else DRResNet)(**arguments)
        assert model.loss_gate.target_rate == special.get(name, 0.7)


@pytest.mark.parametrize('kwargs, rate', [
    (dict(depth=35), 0.8),
    (dict(depth=35, loss_gate=dict(type='mmrecur.GateRateLoss', loss_weight=2.0)), 0.8),
    (dict(depth=35, loss_gate=dict(type='mmrecur.GateRateLoss', target_rate=0.6)), 0.6),
    (dict(depth=53), 0.7),
])  # fmt: skip
def test_the_target_rate_defaults_to_that_of_the_paper(kwargs: dict, rate: float) -> None:
    with torch.device('meta'):
        assert DRResNet(**kwargs).loss_gate.target_rate == rate


def test_a_gate_after_the_iterations_lets_all_samples_run_the_first() -> None:
    model = build('dr-r', gate_position='after').train()
    model(image(4, 3, 32, 32))
    names = {name for name in model.gate_rates()}
    assert names <= {'layer3.1.1', 'layer3.1.2', 'layer3.2.1', 'layer3.2.2', 'layer4.1.1', 'layer4.1.2'}
    assert 'layer3.1.1' in names
    work = measure_loops(model, image(1, 3, 32, 32))
    loop = work.loops['layer3.1']
    without = work.average({n: [1.0] + [0.0] * (own.iterations - 1) for n, own in work.loops.items()})
    first = sum(own.iteration + own.gate for own in work.loops.values())
    assert without == work.fixed + first and loop.first_gated == 1


def test_required_hooks_depend_on_the_arguments() -> None:
    def hooks(name: str, **kwargs) -> list[str]:
        return [hook['type'] for hook in build(name, **kwargs).required_hooks]

    collect, rates = 'mmrecur.AuxiliaryLossHook', 'mmrecur.GateRateHook'
    assert hooks('dr-r') == [collect, rates]
    assert hooks('dr-r', loss_gate=None) == [rates]
    assert hooks('dr-r', loss_gate=dict(type='mmrecur.GateRateLoss', loss_weight=0)) == [rates]
    assert hooks('r-r') == []


def test_the_hook_adds_the_loss_and_the_log_has_rates(tmp_path: Path) -> None:
    pytest.importorskip('mmrecur.engine.hooks.auxiliary_loss')
    pytest.importorskip('mmpretrain')
    from mmengine.runner import Runner
    from mmpretrain.structures import DataSample

    backbone = dict(type='mmrecur.DRResNet', depth=16, base_channels=4)
    head = dict(type='mmpretrain.LinearClsHead', num_classes=2, in_channels=16)
    neck = dict(type='mmpretrain.GlobalAveragePooling')
    data = [dict(inputs=image(3, 16, 16), data_samples=DataSample().set_gt_label(i % 2)) for i in range(8)]
    runner = Runner(
        model=dict(type='mmpretrain.ImageClassifier', backbone=backbone, neck=neck, head=head),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=4,
            dataset=data,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None),
        custom_hooks=[dict(hook, **({'interval': 1} if 'Rate' in hook['type'] else {}))
                      for hook in DRResNet(16, base_channels=4).required_hooks],
        experiment_name='gates',
        default_scope='mmpretrain',
        log_level='WARNING',
    )  # fmt: skip
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert len(scalars['train/loss_gate'].data[0]) == 2
    assert 0 <= scalars['train/gate_rate/layer2.1.0'].current() <= 1


def _train_in_a_process(rank: int, path: str) -> None:
    dist.init_process_group('gloo', f'file://{path}/store', rank=rank, world_size=2)
    model = build('dr-r', out_indices=(3,), norm_eval=True).train()
    with torch.no_grad():
        for block in model.loop_blocks().values():
            if rank == 0:
                block.gate.fc2.bias[0] = 1e4  # no sample of this process enters a loop
    ddp = DistributedDataParallel(model, broadcast_buffers=False, init_sync=False)
    for _ in range(2):
        ddp.zero_grad()
        (ddp(image(2, 3, 32, 32))[0].mean() + model.auxiliary_losses()['loss_gate']).backward()
    torch.save([p.grad for p in model.parameters()], f'{path}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_needs_no_find_unused_parameters(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_in_a_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert len(first) == len(second) > 0
    assert all(torch.equal(a, b) and torch.isfinite(a).all() for a, b in zip(first, second))


WRONG = [
    (dict(depth=50), 'depth=50, allowed: 35, 44, 47, 53, 65'),
    (dict(depth=None), 'depth=None with blocks=None, loops=None, allowed: both given'),
    (dict(blocks=(3, 4, 8)), r'loops=\(1, 1, 3, 2\), allowed: a positive integer for each of 3 stages'),
    (dict(loops=(1, 1, 0, 2)), r'loops=\(1, 1, 0, 2\), allowed'),
    (dict(blocks=8), 'blocks=8, allowed'),
    (dict(stem=1), "stem=1, allowed: 'imagenet', 'cifar'"),
    (dict(style='tf'), "style='tf', allowed: 'pytorch', 'caffe'"),
    (dict(gated=1), 'gated=1.*allowed: True or False'),
    (dict(gated=False, loop_norm='i-lvbn'), "loop_norm='i-lvbn' with gated=False, allowed: 'shared', 'lvbn'"),
    (dict(loop_norm='bn'), "loop_norm='bn', allowed: 'shared', 'lvbn', 'i-lvbn'"),
    (dict(gate_channels=-1), 'gate_channels=-1, allowed'),
    (dict(initial_rate=1.0), 'initial_rate=1.0, allowed'),
    (dict(gate_position='behind'), "gate_position='behind', allowed: 'before', 'after'"),
    (dict(loss_gate='rate'), "loss_gate='rate', allowed: None, or a dict with a type"),
    (dict(loss_gate=dict(type='mmrecur.GateRateLoss', target_rate=2)), 'target_rate=2, allowed'),
    (dict(base_channels=0), 'base_channels=0, allowed'),
    (dict(out_indices=(4,)), r'out_indices=\(4,\), allowed'),
]


@pytest.mark.parametrize('arguments, message', WRONG)
def test_wrong_arguments_are_rejected(arguments: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        MODELS.build(dict(type='mmrecur.DRResNet', **arguments))
