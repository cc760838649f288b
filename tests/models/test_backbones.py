"""One suite of checks that every backbone goes through."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
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
@pytest.mark.parametrize(
    'frozen',
    [
        pytest.param(-1, marks=pytest.mark.slow),
        0,
        pytest.param(1, marks=pytest.mark.slow),
        'all but one',
        'all',
    ],
)
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
