"""Checks of SWRN besides those that every backbone gets."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmrecur.apis import deploy
from mmrecur.models.backbones import SWRN
from mmrecur.models.layers import TemplateBank, layer_similarity, template_banks
from mmrecur.models.shortest_path import ShortestPathNet
from tests.helpers import assert_close, gradients, image, randomise_norms

SMALL = dict(depth=22, width=2, base_channels=8)


def build(**kwargs) -> SWRN:
    torch.manual_seed(0)
    model = SWRN(**{**SMALL, 'num_templates': 2, **kwargs})
    randomise_norms(model)
    return model


def reference_forward(model: SWRN, x: Tensor) -> list[Tensor]:
    """Compute the network of Section 3 and Figure 1 layer by layer, without a bank."""
    x, outputs = F.conv2d(x, model.conv1.weight, padding=1), []
    for name in model.stages:
        stage, layer = getattr(model, name), 0
        for index, block in enumerate(stage.blocks):
            inner = F.relu(block.bn1(x))
            shortcut = x if block.downsample is None else block.downsample(inner)
            for norm, conv in ((None, block.conv1), (block.bn2, block.conv2)):
                inner = inner if norm is None else F.relu(norm(inner))
                if index == 0:
                    inner = conv(inner)
                    continue
                templates = stage.bank.templates.chunk(stage.bank.num_templates)
                weight = sum(a * t for a, t in zip(stage.bank.coefficients[layer], templates))
                inner, layer = F.conv2d(inner, weight, padding=1), layer + 1
            x = inner + shortcut
        outputs.append(x)
    outputs[-1] = F.relu(model.final_norm(x))
    return outputs


@pytest.mark.parametrize('with_cp', [False, True])
def test_network_and_gradients_follow_the_paper(with_cp: bool) -> None:
    model = build(with_cp=with_cp).double().train()
    x = image(2, 3, 16, 16).double()
    ours = gradients(model, x)
    reference = build().double().train()
    outputs = reference_forward(reference, x)
    assert_close(build().double().train()(x), outputs, 1e-9)
    sum((output * output).mean() for output in outputs).backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, msg=name)


def test_weights_are_generated_once_per_pass(monkeypatch) -> None:
    counts = []
    product = TemplateBank._product
    monkeypatch.setattr(TemplateBank, '_product', lambda *args: counts.append(1) or product(*args))
    for with_cp in (False, True):
        model = build(with_cp=with_cp).train()
        counts.clear()
        gradients(model, image(2, 3, 16, 16))
        assert len(counts) == 3  # a product for each stage, none for recomputed blocks
    model.eval()
    with torch.no_grad():
        for _ in range(2):
            counts.clear()
            model(image(1, 3, 16, 16))
            assert len(counts) == 3
    deploy(model)
    counts.clear()
    model(image(1, 3, 16, 16))
    assert not counts


def test_accumulated_gradients_are_those_of_both_batches() -> None:
    model, x = build(norm_eval=True).train(), image(4, 3, 16, 16)
    halves = [sum((o * o).mean() for o in model(part)) / 2 for part in x.chunk(2)]  # both graphs at once
    sum(halves).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    for name, grad in gradients(model, x).items():
        torch.testing.assert_close(together[name], grad, rtol=1e-3, atol=1e-5)


def test_dropout_acts_between_the_convolutions_in_training_only() -> None:
    model, x = build(dropout=0.5), image(2, 3, 16, 16)
    expected = build().eval()(x)
    assert_close(model.eval()(x), expected, 1e-6)
    model.train()
    torch.manual_seed(0)
    first = model(x)[0]
    assert not torch.allclose(first, model(x)[0])
    dropped = []
    block = model.layer1.blocks[1]
    block.conv2.register_forward_pre_hook(lambda module, args: dropped.append(args[0]))
    block.conv1.register_forward_pre_hook(lambda module, args: dropped.append(args[0]))
    block.bn2.register_forward_hook(lambda module, args, output: output.fill_(1.0))
    model(x)
    assert (dropped[1] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    checkpointed = [gradients(build(dropout=0.5, with_cp=cp).train(), x) for cp in (False, False)]
    assert checkpointed[0].keys() == checkpointed[1].keys()


def test_recurrence_loss_is_minus_the_sum_of_similarities() -> None:
    cfg = dict(type='mmrecur.RecurrenceLoss', loss_weight=0.25)
    model = build(loss_recurrence=cfg)
    expected = -0.25 * sum(layer_similarity(b.coefficients).sum() for b in template_banks(model).values())
    losses = model.auxiliary_losses()
    assert list(losses) == ['loss_recurrence']
    torch.testing.assert_close(losses['loss_recurrence'], expected)
    optimiser = torch.optim.SGD([b.coefficients for b in template_banks(model).values()], 0.5)
    for _ in range(60):
        optimiser.zero_grad()
        model.auxiliary_losses()['loss_recurrence'].backward()
        optimiser.step()
    # the minimum has all layers equal up to a factor
    assert all(bank.similarity().min() > 0.99 for bank in template_banks(model).values())
    assert build().auxiliary_losses() == {}
    model.switch_to_deploy()
    assert model.auxiliary_losses() == {}
    net = ShortestPathNet(5, num_layers=5, channels=4, loss_recurrence=cfg)
    # with orthonormal coefficients, the only non-zero similarities are those of a layer with itself
    assert net.auxiliary_losses()['loss_recurrence'].item() == pytest.approx(-0.25 * 5, abs=1e-4)


def test_required_config_options_are_declared() -> None:
    keys = SWRN.required_paramwise_cfg['custom_keys']
    model = build(tied_layers=dict(layer1=dict(bank=[0, 1, 0, 1])))
    for key in keys:
        assert any(key in name for name, _ in model.named_parameters())
    assert model.required_hooks == ()
    regularised = build(loss_recurrence=dict(type='mmrecur.RecurrenceLoss'))
    assert regularised.required_hooks == (dict(type='mmrecur.AuxiliaryLossHook'),)


def test_compiled_model_follows_its_weights() -> None:
    model, x = build(out_indices=(0,)).eval(), image(1, 3, 16, 16)
    compiled = torch.compile(model, backend='aot_eager')
    with torch.no_grad():
        for _ in range(2):
            assert_close(compiled(x), copy.deepcopy(model)(x), 1e-5)
            model.layer1.bank.coefficients.data.mul_(2)


def test_evaluation_uses_the_weights_of_the_last_step() -> None:
    model, x = build().eval(), image(2, 3, 16, 16)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    with torch.no_grad():
        before = model(x)
    model.train()
    sum(output.square().mean() for output in model(x)).backward()
    optimiser.step()
    model.eval()
    with torch.no_grad():
        assert_close(model(x), reference_forward(model, x), 1e-5)
        assert not torch.allclose(model(x)[0], before[0])


@pytest.mark.parametrize('with_cp', [False, True])
def test_fused_optimizer_steps_equal_distributed_plain_ones(with_cp: bool) -> None:
    """Gradients are accumulated, and an evaluation precedes each step."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        alone, shared = build(norm_eval=True).train(), build(norm_eval=True, with_cp=with_cp).train()
        networks = [(alone, alone), (shared, DistributedDataParallel(shared))]
        for network, wrapped in networks:
            is_fused = network is not wrapped
            optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, fused=is_fused)
            for _ in range(3):
                for part in image(4, 3, 16, 16).chunk(2):
                    sum(output.square().mean() for output in wrapped(part)).backward()
                if is_fused:
                    with torch.no_grad():
                        wrapped.eval()(image(1, 3, 16, 16))
                    wrapped.train()
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            expected = reference_forward(alone.eval(), image(2, 3, 16, 16))
            assert_close(shared.eval()(image(2, 3, 16, 16)), expected, 1e-4)
    finally:
        dist.destroy_process_group()


WRONG = [
    (dict(depth=20), r'depth=20, allowed: 16, 22, \.\.\. \(6 n \+ 4\), or 50, 101, 152'),
    (dict(depth=10), 'depth=10, allowed: 16'),
    (dict(depth=4, num_templates=None), 'depth=4, allowed: 10'),
    (dict(width=0), 'width=0, allowed: an integer of at least 1'),
    (dict(num_templates=5), r"num_templates=5, allowed: None, 'per_layer', an integer from 1 to 4"),
    (dict(num_templates=0), 'num_templates=0, allowed'),
    (dict(num_templates=True), 'num_templates=True, allowed'),
    (dict(dropout=1.0), 'dropout=1.0, allowed: a number from 0 to below 1'),
    (dict(dropout=True), 'dropout=True, allowed'),
    (dict(depth=50, dropout=0.3), 'dropout=0.3 with bottleneck blocks, allowed: 0'),
    (dict(coefficient_init='ones'), "coefficient_init='ones', allowed"),
    (dict(coefficient_init='identity'), 'with 4 layers and 2 templates'),
    (dict(base_channels=0), 'base_channels=0, allowed'),
    (dict(tied_layers=[1]), r'tied_layers=\[1\], allowed: a dict of layer1, layer2, layer3'),
    (dict(tied_layers=dict(layer4=dict(bank=[0]))), 'tied_layers=.*allowed: a dict of layer1'),
    (dict(tied_layers=dict(layer1=dict(bank1=[0]))), 'tied_layers of bank1, allowed: bank'),
    (
        dict(tied_layers=dict(layer1=dict(bank=[0, 1]))),
        r'tied_layers: bank=\[0, 1\], allowed: None or 4 integers',
    ),
    (dict(tied_layers=dict(layer1=dict(bank=[]))), r'tied_layers: bank=\[\], allowed: None or 4 integers'),
    (dict(tied_layers=dict(layer1=dict(bank=5))), 'tied_layers: bank=5, allowed: None or 4 integers'),
    (dict(out_indices=(3,)), r'out_indices=\(3,\), allowed: .* from 0 to 2'),
    (dict(frozen_stages=4), 'frozen_stages=4, allowed: an integer from -1 to 3'),
    (dict(num_templates=None, loss_recurrence=dict(type='mmrecur.RecurrenceLoss')), 'loss_recurrence with'),
    (dict(loss_recurrence=dict(type='mmrecur.RecurrenceLoss', loss_weight=-1)), 'loss_weight=-1, allowed'),
    (dict(loss_recurrence=dict(type='mmrecur.RecurrenceLoss', loss_weight=True)), 'loss_weight=True, allo'),
]


@pytest.mark.parametrize('arguments, message', WRONG)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        MODELS.build({'type': 'mmrecur.SWRN', **SMALL, 'num_templates': 2, **arguments})


def test_shortest_path_network_follows_the_paper() -> None:
    plain, shared = ShortestPathNet(), ShortestPathNet(num_templates=20)
    convolutions, norms = 20 * 32 * 32 * 9, 20 * 64
    ends = (2 * 32 + 32) + (32 + 1)
    assert sum(p.numel() for p in plain.parameters()) == convolutions + norms + ends
    assert sum(p.numel() for p in shared.parameters()) == convolutions + norms + ends + 400
    model = ShortestPathNet(2, num_layers=3, channels=4).eval()
    x = torch.rand(2, 2, 9, 9)
    y = model.conv1(x)
    for index, norm in enumerate(model.norms):
        y = y + F.relu(norm(F.conv2d(y, model.bank.weight(index), padding=1)))
    torch.testing.assert_close(model(x), model.conv2(y)[:, 0])
    targets = (torch.rand(2, 9, 9) > 0.5).float()
    loss = model(x, targets, mode='loss')['loss_path']
    probability = torch.sigmoid(model(x))
    torch.testing.assert_close(loss, -torch.where(targets > 0, probability, 1 - probability).log().mean())
    predictions = model(x, targets, mode='predict')
    assert torch.equal(predictions[1]['prediction'], probability[1] > 0.5)
    assert torch.equal(predictions[1]['target'], targets[1])
    alone = model(x, mode='predict')
    assert list(alone[0]) == ['prediction'] and torch.equal(alone[0]['prediction'], probability[0] > 0.5)
    with pytest.raises(ValueError, match="mode='train', allowed: 'tensor', 'loss', 'predict'"):
        model(x, mode='train')
    with pytest.raises(ValueError, match='num_templates=None with loss_recurrence'):
        ShortestPathNet(loss_recurrence=dict(type='mmrecur.RecurrenceLoss'))
    assert isinstance(plain.convs[0], nn.Conv2d)


@pytest.mark.parametrize('num_templates, tied_layers', [(None, None), (2, None), (2, dict(bank=[0, 1, 0]))])
def test_shortest_path_network_has_an_inference_form(num_templates, tied_layers) -> None:
    torch.manual_seed(0)
    loss = None if num_templates is None else dict(type='mmrecur.RecurrenceLoss')
    model = ShortestPathNet(num_templates, 3, 4, tied_layers=tied_layers, loss_recurrence=loss)
    randomise_norms(model)
    x = torch.rand(2, 2, 9, 9)
    with torch.no_grad():
        expected = model.eval()(x)
        state = {k: v.clone() for k, v in deploy(model).state_dict().items()}
        output = deploy(model).train()(x)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model.training and not any('bank' in name or 'norm' in name for name in state)
    assert model.auxiliary_losses() == {}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(tied_layers=3), 'tied_layers=3, allowed: None or dict'),
        (dict(tied_layers=dict(bank=[0])), r'tied_layers: bank=\[0\], allowed: None or 20 integers'),
        (dict(num_templates=21), 'num_templates=21, allowed: an integer from 1 to 20'),
        (dict(num_templates=None, coefficient_init='ones'), "coefficient_init='ones', allowed"),
    ],
)
def test_wrong_arguments_of_the_shortest_path_network_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShortestPathNet(**{'num_templates': 2, **arguments})


def test_loss_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="targets=None with mode='loss', allowed"):
        ShortestPathNet(2, 3, 4)(torch.rand(1, 2, 9, 9), mode='loss')
