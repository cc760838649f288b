"""One suite of checks that every backbone goes through."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmrecur.registry  # noqa: F401
from tests.helpers import assert_close, build, gradients, image
from tests.models.zoo import BACKBONES, DISTINCT, FOLLOW_NO_CONVOLUTION


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('size', [(64, 96), (65, 75)])
def test_features_have_the_promised_shapes(name: str, size: tuple[int, int]) -> None:
    model = build(name).eval()
    with torch.no_grad():
        outputs = model(image(1, 3, *size))
    expected = [
        (1, channels, *(-(-side // stride) for side in size))
        for channels, stride in zip(model.out_channels, model.out_strides)
    ]
    assert [tuple(output.shape) for output in outputs] == expected


@pytest.mark.parametrize('name', BACKBONES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    """What DistributedDataParallel needs without ``find_unused_parameters``."""
    model = build(name).train()
    assert gradients(model, image(2, 3, 64, 64)).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize('name', BACKBONES)
def test_deployed_form_computes_the_same(name: str) -> None:
    model = build(name).eval()
    x = image(2, 3, 65, 96)
    before = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        assert_close(model(x), expected, 1e-4)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        model.switch_to_deploy()
        assert state.keys() == model.state_dict().keys()
        assert_close(model.train()(x), expected, 1e-4)
    norms = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    allowed = FOLLOW_NO_CONVOLUTION.get(type(model).__name__, 'hidden_norm|final_norm')
    assert [n for n in norms if not re.fullmatch(allowed, n)] == []
    # the form is a function of the configuration: its weights load into another one
    before.load_state_dict({k: v + 1 if v.is_floating_point() else v for k, v in before.state_dict().items()})
    before.switch_to_deploy()
    before.load_state_dict(state)
    with torch.no_grad():
        assert_close(before(x), expected, 1e-4)


@pytest.mark.parametrize('name', DISTINCT)
def test_checkpointed_step_is_the_same_step(name: str) -> None:
    """Gradients and the running statistics of norms, which the recomputation must leave alone."""
    x, results = image(2, 3, 64, 64), []
    for with_cp in (False, True):
        model = build(name, with_cp=with_cp).train()
        results.append((gradients(model, x), dict(model.named_buffers())))
    for plain, checkpointed in zip(*results):
        assert plain.keys() == checkpointed.keys()
        for key, value in plain.items():
            assert torch.equal(value, checkpointed[key]), key


@pytest.mark.parametrize('name', DISTINCT)
@pytest.mark.parametrize('frozen', [-1, 0, 1, 'all but one', 'all'])
def test_frozen_stages_neither_learn_nor_record(name: str, frozen: int | str) -> None:
    num_stages = build(name).num_stages
    frozen = {'all but one': num_stages - 1, 'all': num_stages}.get(frozen, frozen)
    model = build(name, frozen_stages=frozen).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stages = {stage: list(model.stage_modules(stage)) for stage in range(num_stages + 1)}
    learnable = [p for p in model.parameters() if p.requires_grad]
    assert bool(learnable) == (frozen < num_stages)
    if learnable:
        optimiser = torch.optim.SGD(learnable, 0.1)
        sum(output.mean() for output in model(image(2, 3, 64, 64))).backward()
        optimiser.step()
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    for stage, modules in stages.items():
        for module in modules:
            assert module.training == (stage > frozen)
            assert all((id(p) in learning) == (stage > frozen) for p in module.parameters())
    # together the stages are the whole model
    owned = {id(p) for modules in stages.values() for m in modules for p in m.parameters()}
    assert owned == {id(p) for p in model.parameters()}
    frozen_keys = [f'layer{i}.' for i in range(1, frozen + 1)]
    frozen_keys += ['conv1.', 'bn1.', 'stem.'] if frozen >= 0 else []
    for key, value in model.state_dict().items():
        if any(key.startswith(prefix) for prefix in frozen_keys):
            assert torch.equal(value, before[key]), key


def test_norm_eval_keeps_statistics_and_trains_parameters() -> None:
    model = build('rla-r50', norm_eval=True).train()
    before = copy.deepcopy(dict(model.named_buffers()))
    grads = gradients(model, image(2, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    assert grads['layer1.rla.norms.0.weight'].abs().sum() > 0
    assert model.layer1.training and not model.bn1.training


@pytest.mark.parametrize('name', DISTINCT)
@pytest.mark.parametrize('deploy', [False, True])
def test_channels_last_computes_the_same(name: str, deploy: bool) -> None:
    model = build(name).eval()
    x = image(2, 3, 65, 64)
    with torch.no_grad():
        expected = model(x)
        if deploy:
            model.switch_to_deploy(torch.contiguous_format)
        model.to(memory_format=torch.channels_last)
        outputs = model(x.contiguous(memory_format=torch.channels_last))
    assert_close(outputs, expected, 1e-4)


@pytest.mark.parametrize('name', DISTINCT)
def test_autocast_trains_in_bf16(name: str) -> None:
    # batch statistics of a few pixels would amplify bf16's rounding beyond comparison
    model = build(name, norm_eval=True).train()
    x = image(2, 3, 64, 64)
    expected = gradients(model, x)
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        outputs = model(x)
    assert outputs[0].dtype == torch.bfloat16 or name == 'rla-r50-gn'
    model.zero_grad()
    sum((output.float() * output.float()).mean() for output in outputs).backward()
    exact = torch.cat([grad.flatten() for grad in expected.values()])
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.cosine_similarity(grads, exact, dim=0) > 0.9


@pytest.mark.parametrize(
    'name',
    [
        'rla-r50',
        'rla-r50-v2',
        'rla-r50-v3',
        'rla-eca-r50',
        'rla-eca-mobilenet',
        'swrn-22-2-2',
        'recnet',
    ],
)
def test_deployed_form_has_the_gradients_of_the_other(name: str) -> None:
    """For saliency maps and attacks: both forms are the same function of the image."""
    model, grads = build(name).eval(), []
    for _ in range(2):
        x = image(1, 3, 64, 64).requires_grad_()
        sum((output * output).mean() for output in model(x)).backward()
        grads.append((x.grad,))
        model.switch_to_deploy()
    assert_close(grads[1], grads[0], 1e-3)


@pytest.mark.parametrize(
    'name',
    [
        'rla-r50',
        'rla-r50-v4',
        'rla-eca-r50',
        'rla-r50-d',
        'rla-eca-mobilenet',
        'swrn-22-2-2',
        'recnet',
    ],
)
def test_training_takes_other_layouts_odd_sizes_and_single_images(name: str) -> None:
    model = build(name).train().double()
    x = image(1, 3, 97, 75).double()
    expected = gradients(model, x)
    model.to(memory_format=torch.channels_last)
    grads = gradients(model, x.contiguous(memory_format=torch.channels_last))
    # a gradient that vanishes in exact arithmetic is rounding noise
    assert_close(tuple(grads.values()), tuple(expected.values()), 1e-6, atol=1e-12)


def test_checkpointed_graph_can_be_used_twice() -> None:
    model = build('rla-r50', with_cp=True).train()
    loss = sum(output.mean() for output in model(image(2, 3, 64, 64)))
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, parameters)):
        assert torch.equal(a, b)


@pytest.mark.parametrize('name', ['rla-r50', 'rla-eca-mobilenet', 'recnet', 'recnet-linear'])
@pytest.mark.parametrize('deploy', [False, True])
def test_half_precision_weights_run(name: str, deploy: bool) -> None:
    model = build(name).eval()
    with torch.no_grad():
        expected = model(image(1, 3, 64, 64))
        if deploy:
            model.switch_to_deploy()
        outputs = model.bfloat16()(image(1, 3, 64, 64).bfloat16())
    assert_close(outputs, expected, 0.1)


@pytest.mark.parametrize(
    'name',
    [
        'rla-r50',
        'rla-r50-hidden',
        'rla-eca-mobilenet',
        'shared-r18',
        'shared-x50',
        'rla-eca-r50',
        'swrn-22-2-2',
        'recnet',
        'recnet-shared-bn',
    ],
)
def test_syncbn_conversion_keeps_the_function(name: str) -> None:
    model = build(name).eval()
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
        assert not any(type(m) is nn.BatchNorm2d for m in converted.modules())
        assert_close(converted(x), expected, 1e-6)
        converted.switch_to_deploy()
        assert_close(converted(x), expected, 1e-4)


@pytest.mark.parametrize('name', DISTINCT)
@pytest.mark.parametrize('deploy', [False, True])
def test_fx_traces_features(name: str, deploy: bool) -> None:
    model = build(name).eval()
    if deploy:
        model.switch_to_deploy()
    traced = torch.fx.symbolic_trace(model)
    x = image(2, 3, 96, 65)
    with torch.no_grad():
        assert_close(traced(x), model(x), 1e-6)


@pytest.mark.parametrize(
    'name, last',
    [
        ('rla-r50', 0),
        ('rla-mobilenet', 1),
        ('shared-r18', 0),
        ('swrn-22-2-2', 0),
        ('recnet', 0),
        ('dr-r16', 1),
        ('shared-r50-relaxed', 0),
        ('dr-r-relaxed', 2),
    ],
)
@pytest.mark.parametrize('with_cp', [False, True])
def test_torch_compile_traces_training(name: str, last: int, with_cp: bool) -> None:
    model = build(name, with_cp=with_cp, norm_eval=True, out_indices=(last,)).train()
    x = image(2, 3, 64, 64)
    expected = gradients(model, x)
    grads = gradients(torch.compile(model, backend='aot_eager'), x)
    assert_close(tuple(grads.values()), tuple(expected.values()), 1e-4)


@pytest.mark.parametrize('name', DISTINCT)
@pytest.mark.parametrize('deploy', [False, True])
def test_nothing_computed_from_weights_outlives_a_pass(name: str, deploy: bool) -> None:
    """Whatever writes to them: averaged models and fused optimizers leave no trace of it."""
    model, fresh, x = build(name).eval(), build(name).eval(), image(1, 3, 32, 32)
    for network in (model, fresh) if deploy else ():
        network.switch_to_deploy()
    with torch.no_grad():
        before = [output.clone() for output in model(x)]
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.data.mul_(1.25)
        fresh.load_state_dict(model.state_dict())
        after = model(x)
        assert all(torch.equal(a, b) for a, b in zip(after, fresh(x), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_initialising_again_leaves_a_deployed_model_alone() -> None:
    model = build('rla-r50')
    model.switch_to_deploy()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'rla-r50',
        'rla-eca-r50',
        'rla-r50-hidden',
        'rla-eca-mobilenet',
        'shared-r18',
        'swrn-22-2-2',
        'recnet',
        'dr-r',
    ],
)
@pytest.mark.parametrize('deploy', [False, True])
def test_torch_compile_gives_the_same_features(name: str, deploy: bool) -> None:
    model = build(name).eval()
    if deploy:
        model.switch_to_deploy()
    x = image(2, 3, 64, 96)
    with torch.no_grad():
        assert_close(torch.compile(model)(x), model(x), 1e-4)


def test_default_initialisation_also_precedes_a_checkpoint(tmp_path: Path) -> None:
    """A plain ResNet's weights load by name; what RLA adds keeps its own initialisation."""
    source = build('rla-r50')
    plain = {
        key: value for key, value in source.state_dict().items() if '.rla.' not in key and 'hidden' not in key
    }
    torch.save(plain, tmp_path / 'plain.pth')
    checkpoint = str(tmp_path / 'plain.pth')
    model = build('rla-r50', init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    model.init_weights()
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.items())
    # Kaiming normal, fan out: std = sqrt(2 / (out_channels * kernel area))
    weight = model.layer4.rla.conv_out.weight
    assert weight.std().item() == pytest.approx((2 / weight.size(0)) ** 0.5, rel=0.15)


WRONG = [
    (dict(depth=34), 'depth=34, allowed: 50, 101, 152'),
    (dict(variant='v7'), "variant='v7', allowed: 'v1', 'v2', 'v3', 'v4', 'v5', 'v6'"),
    (dict(attention='ca'), "attention='ca', allowed: None, 'se', 'eca', 'cbam'"),
    (dict(attention=dict(type='cbam', kernel_size=4)), 'kernel_size=4, allowed: an odd integer'),
    (dict(attention=dict(type='cbam', bias=1)), r'attention=.*bias=1 .*True or False'),
    (dict(attention=dict(type='eca', kernel=5)), r'attention=\{.*\}, allowed: .*kernel'),
    (dict(attention=3), "attention=3, allowed: None, 'se', 'eca'"),
    (dict(out_indices=(0, 4)), r'out_indices=\(0, 4\), allowed: .* integers from 0 to 3'),
    (dict(out_indices=(2, 1)), r'out_indices=\(2, 1\), allowed: .*increasing'),
    (dict(out_indices=()), r'out_indices=\(\), allowed: one or more'),
    (dict(out_indices=3), 'out_indices=3, allowed'),
    (dict(rla_channels=-1), 'rla_channels=-1, allowed: an integer of at least 0'),
    (dict(cell='rnn'), "cell='rnn', allowed: 'conv', 'lstm', 'gru'"),
    (dict(share=1), "share=1, allowed: 'stage', None"),
    (dict(exchange=None), 'exchange=None.*allowed: True or False'),
    (dict(post_act='yes'), "post_act='yes'.*allowed: True or False"),
    (dict(cell='lstm', post_act=True), "post_act=True with cell='lstm', allowed: False"),
    (dict(cell='gru', variant='v4'), "cell='gru' .*added last .*allowed: variants v1, v3, v5"),
    (dict(post_act=True, variant='v2'), 'post_act=True .*added last .*allowed: variants v1, v3, v5'),
    (dict(exchange=False), 'exchange=False with with_hidden=False, allowed: with_hidden=True'),
    (dict(rla_channels=0, cell='lstm'), "cell='lstm' with rla_channels=0, allowed: 'conv'"),
    (dict(rla_channels=0, variant='v3'), "variant='v3' with rla_channels=0, allowed: 'v1'"),
    (dict(rla_channels=0, share=None), "share=None with rla_channels=0, allowed: 'stage'"),
    (dict(rla_channels=0, with_hidden=True), 'with_hidden=True with rla_channels=0, allowed: False'),
    (dict(extra_channels=6), 'extra_channels=6, allowed: a multiple of 4'),
    (dict(extra_channels=8, groups=4, base_width=4), 'extra_channels=8, allowed: a multiple of 16'),
    (dict(rla_channels=True), 'rla_channels=True, allowed'),
    (dict(frozen_stages=5), 'frozen_stages=5, allowed: an integer from -1 to 4'),
    (dict(frozen_stages=-2), 'frozen_stages=-2, allowed'),
    (dict(in_channels=0), 'in_channels=0, allowed'),
    (dict(groups=0), 'groups=0, allowed'),
    (dict(base_width=1.5), 'base_width=1.5, allowed'),
    (dict(base_width=100, base_channels=8), 'base_width=100 with groups=1, allowed: a multiple of 8'),
    (dict(init_cfg=3), 'init_cfg=3, allowed'),
    (dict(base_channels='64'), "base_channels='64', allowed"),
    (dict(norm_cfg=dict(type='Norm')), r'norm_cfg=.*Norm.*Allowed'),
    (dict(norm_cfg='BN'), "norm_cfg='BN', allowed"),
    (dict(norm_cfg=dict(type='GN', num_groups=3)), 'norm_cfg=.*num_groups'),
    (dict(norm_eval='yes'), "norm_eval='yes'.*allowed: True or False"),
    (dict(with_cp=1), 'with_cp=1.*allowed: True or False'),
    (dict(with_hidden=None), 'with_hidden=None.*allowed: True or False'),
    (dict(strides=(1, 2, 2)), r'strides=\(1, 2, 2\), allowed: four integers'),
    (dict(init_cfg='torchvision://resnet50'), "init_cfg='torchvision://resnet50', allowed"),
]


@pytest.mark.parametrize('arguments, message', WRONG)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        MODELS.build({**BACKBONES['rla-r50'], **arguments})


COUNTS = {
    'rla_resnet50': dict(depth=50),
    'rla_resnet50_eca': dict(depth=50, attention='eca'),
    'rla_resnet101': dict(depth=101),
    'rla_resnet101_eca': dict(depth=101, attention='eca'),
    'rla_resnet152': dict(depth=152),
    'rla_resnet152_eca': dict(depth=152, attention='eca'),
    'rla_resnext50_32x4d': dict(depth=50, groups=32, base_width=4),
    'rla_resnext101_32x4d': dict(depth=101, groups=32, base_width=4),
    'rlav2_resnet50': dict(depth=50, variant='v2'),
    'rlav6_resnet50': dict(depth=50, variant='v6'),
    'rlaus_resnet50': dict(depth=50, share=None),
    'rlaus_resnet101': dict(depth=101, share=None),
    'rlarh_resnet50': dict(depth=50, exchange=False),
    'rlalstm_resnet50': dict(depth=50, cell='lstm'),
    'rlagru_resnet50': dict(depth=50, cell='gru'),
    'rlav1p_resnet50': dict(depth=50, post_act=True),
    'resnet50': dict(depth=50, rla_channels=0),
    'resnet152': dict(depth=152, rla_channels=0),
    'resnet50_se': dict(depth=50, rla_channels=0, attention='se'),
    'resnet50_eca': dict(depth=50, rla_channels=0, attention='eca'),
    'resnet50_k': dict(depth=50, rla_channels=0, extra_channels=32),
}


def parameters_of_a_classifier(**arguments) -> int:
    """With 1000 classes."""
    with_hidden = arguments.get('rla_channels') != 0
    with torch.device('meta'):
        model = MODELS.build(dict(type='mmrecur.RLAResNet', with_hidden=with_hidden, **arguments))
    return sum(p.numel() for p in model.parameters()) + 1000 * (model.out_channels[-1] + 1)


@pytest.mark.parametrize('name', COUNTS)
def test_parameters_are_the_authors(name: str) -> None:
    counts = json.loads((Path(__file__).parents[1] / 'data' / 'parameters.json').read_text())
    ours = parameters_of_a_classifier(**COUNTS[name])
    assert ours == counts['rla (author implementation)'][name]


def test_parameters_of_cbam_are_the_papers() -> None:
    """Table 3 of the RLA paper, in 2^20; and of CBAM's released code, 28.09 M in its paper."""
    cbam = dict(attention='cbam', rla_channels=0)
    counts = [parameters_of_a_classifier(depth=depth, **cbam) / 2**20 for depth in (50, 101)]
    assert counts == pytest.approx([26.77, 47.01], abs=0.005)
    released = dict(type='cbam', bias=True, spatial_norm=True)
    count = parameters_of_a_classifier(depth=50, rla_channels=0, attention=released)
    assert count / 1e6 == pytest.approx(28.09, abs=0.005)
