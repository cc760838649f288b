"""The RLA cell and the bottleneck against their equations, written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.backbones import RLAResNet
from mmrecur.models.layers import ECA, Bottleneck, RLACell, SqueezeExcite
from mmrecur.models.layers.norm_readout import norm_readout
from mmrecur.models.layers.rla import RLA_VARIANTS, downsample_hidden


def randomise_norms(module: nn.Module, seed: int = 0) -> None:
    """Give norms the statistics and parameters of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(norm, (nn.BatchNorm2d, nn.GroupNorm)):
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.1, generator=generator)


def reference_forward(model: RLAResNet, x: Tensor) -> list[Tensor]:
    """Section 3.3 and Figure 4, block by block, with ``cat(x, h)`` and one product."""
    source, add_first = RLA_VARIANTS[model.variant]
    x = F.max_pool2d(F.relu(model.bn1(model.conv1(x))), 3, 2, 1)
    h = torch.zeros(x.size(0), model.rla_channels, *x.shape[2:])
    outputs = []
    for name in model.stages:
        stage = getattr(model, name)
        for t, block in enumerate(stage.blocks):
            weight = torch.cat([block.conv1.weight, block.conv1_hidden.weight], dim=1)
            y = F.relu(block.bn1(F.conv2d(torch.cat([x, h], dim=1), weight)))
            y = F.relu(block.bn2(block.conv2(y)))
            y = block.bn3(block.conv3(y))
            if block.attention is not None:
                y = block.attention(y)
            shortcut = x if block.downsample is None else block.downsample(x)
            x = F.relu(y + shortcut)
            if block.stride == 2:
                h = F.avg_pool2d(h, 2, 2)
            if t == len(stage.rla.norms):
                continue
            s = {'residual': y, 'output': x, 'shortcut': shortcut}[source]
            new, norm = F.conv2d(s, stage.rla.conv_out.weight), stage.rla.norms[t]
            w_r = stage.rla.recurrent_conv.weight
            if add_first:
                h = F.conv2d(torch.tanh(norm(h + new)), w_r, padding=1)
            else:
                h = F.conv2d(torch.tanh(norm(h)), w_r, padding=1) + new
        outputs.append(x)
    if model.with_hidden:
        outputs[-1] = torch.cat([x, F.relu(model.hidden_norm(h))], dim=1)
    return outputs


@pytest.mark.parametrize('variant', RLA_VARIANTS)
@pytest.mark.parametrize('attention', [None, 'eca'])
def test_network_equals_the_equations(variant: str, attention: str | None) -> None:
    torch.manual_seed(0)
    model = RLAResNet(
        50, 4, variant, attention, base_channels=4, with_hidden=True, norm_eval=True
    ).train()
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


@pytest.mark.parametrize('size', [8, 7])
def test_pooled_state_fits_a_strided_convolution(size: int) -> None:
    h = torch.rand(1, 4, size, size)
    pooled = downsample_hidden(h, 2)
    assert pooled.shape == nn.Conv2d(4, 4, 3, stride=2, padding=1)(h).shape
    # the last row of an odd size averages what there is, not zeros beyond the edge
    expected = h[:, :, 2 * (pooled.size(2) - 1) :, :2].mean((2, 3))
    torch.testing.assert_close(pooled[:, :, -1, 0], expected)


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
    block = Bottleneck(8, 4, 16, stride=2, hidden_channels=4).eval()
    randomise_norms(block)
    x = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        plain, with_zeros = block(x)[0], block(x, torch.zeros(2, 4, 9, 9))[0]
    assert plain.shape == (2, 16, 5, 5)
    torch.testing.assert_close(plain, with_zeros)


def test_bottleneck_returns_the_map_asked_for() -> None:
    block = Bottleneck(16, 4, 16).eval()
    randomise_norms(block)
    x = torch.randn(2, 16, 6, 6)
    with torch.no_grad():
        maps = {s: block(x.clone(), None, s)[1] for s in ('output', 'residual', 'shortcut', 'inner')}
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


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('momentum', [0.1, None])
def test_norm_readout_is_norm_and_convolution(training: bool, momentum: float | None) -> None:
    torch.manual_seed(0)
    norm, conv = nn.BatchNorm2d(6, momentum=momentum).double(), nn.Conv2d(6, 3, 1, bias=False).double()
    randomise_norms(norm)
    norm.train(training)
    x = torch.randn(2, 6, 5, 4, dtype=torch.double)
    results = []
    for fused in (False, True):
        own, reader = copy.deepcopy(norm), copy.deepcopy(conv)
        image = x.clone().requires_grad_()
        for _ in range(2):  # the second step sees the statistics that the first one recorded
            if fused:
                y, read = norm_readout(own, reader, image)
                y += 1  # what the function is for
                y -= 1
            else:
                y = own(image)
                read = reader(y)
            (y.pow(3).sum() + read.sin().sum()).backward()
        grads = [image.grad, own.weight.grad, own.bias.grad, reader.weight.grad]
        results.append([y, read, *grads, *own.buffers()])
    for plain, fused in zip(*results):
        torch.testing.assert_close(fused, plain)


def test_norm_readout_leaves_other_cases_to_the_caller() -> None:
    conv, x = nn.Conv2d(4, 2, 1, bias=False), torch.randn(2, 4, 3, 3)
    assert norm_readout(nn.BatchNorm2d(4), conv, x) is not None
    assert norm_readout(nn.GroupNorm(2, 4), conv, x) is None
    assert norm_readout(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), x) is None
    assert norm_readout(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, stride=2, bias=False), x) is None
    assert norm_readout(nn.BatchNorm2d(4, track_running_stats=False), conv, x) is None
    hooked = nn.BatchNorm2d(4)
    hooked.register_forward_hook(lambda *args: None)
    assert norm_readout(hooked, conv, x) is None
    assert norm_readout(nn.SyncBatchNorm(4), conv, x) is None
    assert norm_readout(nn.BatchNorm2d(4).double(), conv, x) is None
    with torch.no_grad():
        assert norm_readout(nn.BatchNorm2d(4), conv, x) is None
    with torch.autocast('cpu', torch.bfloat16):
        assert norm_readout(nn.BatchNorm2d(4), conv, x) is None
