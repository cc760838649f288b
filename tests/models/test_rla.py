"""The RLA cell and the bottleneck against their equations, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch import Tensor, nn

import mmrecur.registry  # noqa: F401
from mmrecur.models.backbones import RLAResNet
from mmrecur.models.layers import CBAM, ECA, RLABottleneck, RLACell, SqueezeExcite, Tap, make_rla_cell
from mmrecur.models.layers.rla.cell import RLA_VARIANTS, downsample_hidden, hidden_state
from tests.helpers import randomise_norms


def group_normed(x: Tensor, norm: nn.GroupNorm, half: slice) -> Tensor:
    """A group norm of one group, over all channels and pixels, with eps 1e-6."""
    mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
    x = (x - mean) / (var + 1e-6).sqrt()
    return x * norm.weight[half].view(-1, 1, 1) + norm.bias[half].view(-1, 1, 1)


def reference_update(model: RLAResNet, cell: nn.Module, t: int, h: Tensor, c: Tensor, s: Tensor):
    """An update of the state, one convolution at a time; c is the memory of an LSTM."""
    cell, t = (cell, t) if model.recurrence.share else (cell.steps[t], 0)
    new, norm = F.conv2d(s, cell.conv_out.weight), cell.norms[t]
    if model.recurrence.cell == 'lstm':
        both = torch.cat([torch.tanh(norm(new)), h], dim=1)
        i, f, o, g = (F.conv2d(both, w, padding=1) for w in cell.unit.gates.weight.chunk(4))
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if model.recurrence.cell == 'gru':
        x, unit, k = torch.tanh(norm(new)), cell.unit, h.size(1)
        r, u = (
            group_normed(F.conv2d(torch.cat([x, h], dim=1), w, b, padding=1), unit.gates_norm, half)
            for w, b, half in zip(
                unit.gates.weight.chunk(2), unit.gates.bias.chunk(2), (slice(k), slice(k, 2 * k))
            )
        )
        r, u = r.sigmoid(), u.sigmoid()
        y = F.conv2d(torch.cat([x, r * h], 1), unit.candidate.weight, unit.candidate.bias, padding=1)
        y = group_normed(y, unit.candidate_norm, slice(k)).tanh()
        return u * h + (1 - u) * y, c
    w_r = cell.recurrent_conv.weight
    if model.recurrence.post_act:
        return torch.tanh(norm(F.conv2d(h + new, w_r, padding=1))), c
    if RLA_VARIANTS[model.recurrence.variant][1]:
        return F.conv2d(torch.tanh(norm(h + new)), w_r, padding=1), c
    return F.conv2d(torch.tanh(norm(h)), w_r, padding=1) + new, c


def reference_forward(model: RLAResNet, x: Tensor) -> list[Tensor]:
    """Section 3.3, Figure 4, Appendix B.4.1, block by block, with ``cat(x, h)`` and one product."""
    source = RLA_VARIANTS[model.recurrence.variant][0]
    x = F.max_pool2d(F.relu(model.bn1(model.conv1(x))), 3, 2, 1)
    h = c = torch.zeros(x.size(0), model.rla_channels or 1, *x.shape[2:])
    outputs = []
    for name in model.stages:
        stage = getattr(model, name)
        for t, block in enumerate(stage.blocks):
            y, weight = x, block.conv1.weight
            if model.recurrence.exchange and model.rla_channels:
                y = torch.cat([x, h], dim=1)
                weight = torch.cat([weight, block.conv1_hidden.weight], dim=1)
            y = F.relu(block.bn1(F.conv2d(y, weight)))
            y = F.relu(block.bn2(block.conv2(y)))
            y = block.bn3(block.conv3(y))
            if block.attention is not None:
                y = block.attention(y)
            shortcut = x if block.downsample is None else block.downsample(x)
            x = F.relu(y + shortcut)
            if block.stride == 2:
                h, c = F.avg_pool2d(h, 2, 2), F.avg_pool2d(c, 2, 2)
            if t < stage.num_updates:
                s = {'residual': y, 'output': x, 'shortcut': shortcut}[source]
                h, c = reference_update(model, stage.rla, t, h, c, s)
        outputs.append(x)
    if model.with_hidden:
        h = h if model.hidden_norm is None else F.relu(model.hidden_norm(h))
        outputs[-1] = torch.cat([x, h], dim=1)
    return outputs


NETWORKS = {
    **{variant: dict(variant=variant) for variant in RLA_VARIANTS},
    **{f'{variant} eca': dict(variant=variant, attention='eca') for variant in RLA_VARIANTS},
    'cbam': dict(attention='cbam'),
    'unshared': dict(share=None),
    'unshared v4': dict(share=None, variant='v4'),
    'no exchange': dict(exchange=False),
    'lstm': dict(cell='lstm'),
    'lstm unshared': dict(cell='lstm', share=None, variant='v5'),
    'gru': dict(cell='gru'),
    'gru no exchange': dict(cell='gru', variant='v3', exchange=False),
    'post-activated': dict(post_act=True),
    'post-activated unshared': dict(post_act=True, share=None, exchange=False),
    'plain': dict(rla_channels=0, with_hidden=False),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_network_equals_the_equations(name: str) -> None:
    torch.manual_seed(0)
    arguments = dict(rla_channels=4, with_hidden=True, norm_eval=True) | NETWORKS[name]
    model = RLAResNet(50, base_channels=4, **arguments).train()
    assert (model.hidden_norm is not None) == (
        model.with_hidden and model.recurrence.cell == 'conv' and not model.recurrence.post_act
    )
    randomise_norms(model)
    x = torch.randn(2, 3, 64, 64)
    results = []
    for forward in (model, lambda x: reference_forward(model, x)):
        model.zero_grad()
        outputs = forward(x)
        sum((output * output).mean() for output in outputs).backward()
        results.append((outputs, [p.grad.clone() for p in model.parameters()]))
    for ours, theirs in zip(*(result[0] for result in results)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*(result[1] for result in results)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@st.composite
def options(draw) -> dict:
    """Arguments of any network that there is."""
    chosen = dict(
        attention=draw(st.sampled_from([None, 'se', 'eca', 'cbam'])),
        groups=draw(st.sampled_from([1, 2])),
        extra_channels=draw(st.sampled_from([0, 8])),
        deep_stem=draw(st.booleans()),
        avg_down=draw(st.booleans()),
        with_cp=draw(st.booleans()),
    )
    chosen['base_width'] = 64 if chosen['groups'] == 1 else 4
    chosen['rla_channels'] = draw(st.sampled_from([0, 1, 4]))
    if chosen['rla_channels']:
        chosen['with_hidden'] = draw(st.booleans())
        chosen['exchange'] = draw(st.booleans()) or not chosen['with_hidden']
        chosen['share'] = draw(st.sampled_from(['stage', None]))
        unit = draw(st.sampled_from([{}, dict(cell='lstm'), dict(cell='gru'), dict(post_act=True)]))
        variants = ['v1', 'v3', 'v5'] if unit else list(RLA_VARIANTS)
        chosen.update(variant=draw(st.sampled_from(variants)), **unit)
    return chosen


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(options())
def test_options_go_together(chosen: dict) -> None:
    torch.manual_seed(0)
    model = RLAResNet(50, base_channels=8, **chosen)
    randomise_norms(model)
    # the forms must agree but for rounding, which group norms of single channels amplify
    model, x = model.double(), torch.randn(2, 3, 65, 64).double()
    sum((output * output).mean() for output in model.train()(x)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        for ours, theirs, channels in zip(model(x), expected, model.out_channels, strict=True):
            assert ours.shape[1] == channels
            assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()


@pytest.mark.parametrize('size', [8, 7])
def test_pooled_state_fits_a_strided_convolution(size: int) -> None:
    h = torch.rand(1, 4, size, size)
    pooled = downsample_hidden(h, 2)
    assert pooled.shape == nn.Conv2d(4, 4, 3, stride=2, padding=1)(h).shape
    # the last row of an odd size averages only existing pixels, not zeros beyond the edge
    expected = h[:, :, 2 * (pooled.size(2) - 1) :, :2].mean((2, 3))
    torch.testing.assert_close(pooled[:, :, -1, 0], expected)


@pytest.mark.parametrize('cell, step', [('conv', 168), ('lstm', 24 + 64 * 18), ('gru', 24 + 48 * 18 + 36)])
@pytest.mark.parametrize('share', ['stage', None])
def test_cells_share_all_but_their_norms_or_nothing(cell: str, step: int, share: str | None) -> None:
    built = make_rla_cell(6, 4, num_steps=3, cell=cell, share=share)
    count = sum(p.numel() for p in built.parameters())
    assert count == (step if share else 3 * step) + 3 * 2 * 4
    state = None
    for t in range(3):
        state = built(state, torch.randn(2, 6, 5, 5), t)
    h = hidden_state(state)
    assert h.shape == (2, 4, 5, 5) and isinstance(state, tuple) == (cell == 'lstm')
    h.mean().backward()
    assert all(p.grad is not None for p in built.parameters())


def test_cells_name_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="cell='rnn', allowed: 'conv', 'lstm', 'gru'"):
        make_rla_cell(6, cell='rnn')
    with pytest.raises(TypeError, match='add_first=1.*allowed: True or False'):
        make_rla_cell(6, add_first=1)
    with pytest.raises(ValueError, match='num_steps=0, allowed: an integer of at least 1'):
        make_rla_cell(6, num_steps=0, share=None)


def test_cell_alone_runs_and_shares_its_convolutions() -> None:
    cell = RLACell(in_channels=6, hidden_channels=4, num_steps=3)
    assert sum(p.numel() for p in cell.parameters()) == 6 * 4 + 4 * 4 * 9 + 3 * 2 * 4
    h = torch.zeros(2, 4, 5, 5)
    for step in range(3):
        h = cell(h, torch.randn(2, 6, 5, 5), step)
    h.mean().backward()
    assert all(p.grad is not None for p in cell.parameters())


@pytest.mark.parametrize('name', ['in_channels', 'hidden_channels', 'num_steps'])
def test_cell_names_a_wrong_argument(name: str) -> None:
    with pytest.raises(ValueError, match=f'{name}=0, allowed: an integer of at least 1'):
        RLACell(**{'in_channels': 4, name: 0})


def test_bottleneck_without_state_is_plain_and_with_zeros_the_same() -> None:
    block = RLABottleneck(8, 4, 16, stride=2, hidden_channels=4).eval()
    randomise_norms(block)
    x = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        plain, with_zeros = block(x), block(x, torch.zeros(2, 4, 9, 9))
    assert plain.shape == (2, 16, 5, 5)
    torch.testing.assert_close(plain, with_zeros)


def test_tap_reads_the_map_asked_for() -> None:
    block = RLABottleneck(16, 4, 16).eval()
    randomise_norms(block)
    x = torch.randn(2, 16, 6, 6)
    with torch.no_grad():
        taps = {source: Tap(source) for source in ('output', 'residual', 'shortcut', 'inner')}
        for tap in taps.values():
            block(x.clone(), tap=tap)
        maps = {source: tap.value for source, tap in taps.items()}
        residual = block.bn3(block.conv3(maps['inner']))
    torch.testing.assert_close(maps['residual'], residual)
    torch.testing.assert_close(maps['shortcut'], x)
    torch.testing.assert_close(maps['output'], F.relu(residual + x))


def test_attention_gates_equal_their_definitions() -> None:
    x = torch.randn(2, 6, 5, 5)
    mean = x.mean((2, 3))
    eca = ECA(3)
    padded = F.pad(mean, (1, 1))
    kernel = eca.conv.weight.flatten()
    gate = torch.stack([padded[:, i : i + 3] @ kernel for i in range(6)], dim=1).sigmoid()
    torch.testing.assert_close(eca(x), x * gate[:, :, None, None])
    se = SqueezeExcite(6, reduction=3)
    gate = (F.relu(mean @ se.fc1.weight.T) @ se.fc2.weight.T).sigmoid()
    torch.testing.assert_close(se(x), x * gate[:, :, None, None])
    with pytest.raises(ValueError, match='kernel_size=4, allowed: an odd integer'):
        ECA(4)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('spatial_norm', [False, True])
def test_cbam_equals_its_definition(bias: bool, spatial_norm: bool) -> None:
    x = torch.randn(2, 6, 9, 8)
    cbam = CBAM(6, reduction=3, kernel_size=3, bias=bias, spatial_norm=spatial_norm).eval()
    randomise_norms(cbam)
    gates = []
    for pooled in (x.flatten(2).mean(2), x.flatten(2).max(2).values):
        hidden = F.relu(F.linear(pooled, cbam.fc1.weight, cbam.fc1.bias))
        gates.append(F.linear(hidden, cbam.fc2.weight, cbam.fc2.bias))
    expected = x * torch.sigmoid(sum(gates))[:, :, None, None]
    # the spatial convolution one shift at a time
    maps = F.pad(torch.stack([expected.mean(1), expected.max(1).values], dim=1), (1, 1, 1, 1))
    total = torch.zeros(2, 9, 8)
    for row in range(3):
        for column in range(3):
            window = maps[:, :, row : row + 9, column : column + 8]
            total += (window * cbam.spatial.weight[0, :, row, column].view(2, 1, 1)).sum(1)
    expected = expected * cbam.spatial_norm(total.unsqueeze(1)).sigmoid()
    with torch.no_grad():
        torch.testing.assert_close(cbam(x), expected)
        cbam.switch_to_deploy()
        assert isinstance(cbam.spatial_norm, nn.Identity)
        torch.testing.assert_close(cbam(x), expected)


@pytest.mark.parametrize(
    'arguments', [dict(type='mmrecur.RLAResNet', depth=50), dict(type='mmrecur.RLAMobileNetV2')]
)
def test_deployed_form_of_an_untrained_network_computes_the_same(arguments: dict) -> None:
    """Its states are small from the start and get smaller."""
    torch.manual_seed(0)
    model = MODELS.build(arguments)
    model.init_weights()
    model.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        for output, value in zip(model(x), expected):
            assert (output - value).abs().max() <= 1e-5 * value.abs().max()
