"""Loops, compared with slow reference implementations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmrecur.models.layers import BasicBlock, Bottleneck, GumbelGate, InvertedResidual, LoopBlock
from mmrecur.models.layers.loop import LoopNorm
from mmrecur.models.losses import GateRateLoss
from tests.helpers import randomise_norms
from tests.helpers.loops import maps, random_gate


class Preset(nn.Module):
    """A gate that reads its decisions from a table (iterations x samples); for loops that skip no samples."""

    def __init__(self, table: list[list[int]]) -> None:
        super().__init__()
        self.table, self.calls = torch.tensor(table), 0

    def forward(self, x: Tensor) -> Tensor:
        row = self.table[self.calls % len(self.table)]
        self.calls += 1
        return row.to(x) if self.training else row.bool()


def loop(norm: str = 'i-lvbn', num_iterations: int = 3, gate: nn.Module | None = None, **kwargs) -> LoopBlock:
    torch.manual_seed(0)
    block = LoopBlock(Bottleneck(8, 4, 8), num_iterations, gate or random_gate(8), norm, **kwargs)
    randomise_norms(block)
    return block.double()


def by_hand(block: LoopBlock, x: Tensor, table: Tensor | None = None) -> Tensor:
    """Run each sample alone through plain blocks, in evaluation."""
    results = []
    for n, sample in enumerate(x.split(1)):
        for k in range(block.num_iterations):
            decide = block.gate(sample).item if table is None else lambda k=k, n=n: table[k][n]
            stays = k < block.first_gated or decide()
            if not stays:
                break
            plain = copy.deepcopy(block.block)
            for name in ('bn1', 'bn2', 'bn3'):
                norm = getattr(plain, name)
                setattr(plain, name, norm[k] if block.loop_norm != 'shared' else norm)
            sample = plain(sample)
        results.append(sample)
    return torch.cat(results)


@pytest.mark.parametrize('norm', ['shared', 'lvbn', 'i-lvbn'])
@pytest.mark.parametrize('skip', [True, False])
@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('gate_position', ['before', 'after'])
def test_evaluation_runs_each_sample_until_its_gate_stops_it(
    norm: str, skip: bool, deploy: bool, gate_position: str
) -> None:
    block, x = loop(norm, skip=skip, gate_position=gate_position).eval(), maps()
    counts = []
    block.gate.register_forward_hook(lambda *call: counts.append(int(call[2].sum())))
    with torch.no_grad():
        expected = by_hand(block, x)
        assert 0 < sum(counts) < 18
        if deploy:
            block.switch_to_deploy()
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize('batch_size', [1, 2, 6, 16])
def test_skipping_and_masking_give_the_same_numbers(batch_size: int) -> None:
    skipping, masking = loop().eval(), loop(skip=False).eval()
    with torch.no_grad():
        assert torch.equal(skipping(maps(batch_size)), masking(maps(batch_size)))


def test_samples_that_left_are_not_computed() -> None:
    block, sizes, gated = loop().eval(), [], []
    block.block.register_forward_hook(lambda *call: sizes.append(len(call[1][0])))
    block.gate.register_forward_hook(lambda *call: gated.append(call[2].tolist()))
    with torch.no_grad():
        block(maps(16))
        assert sizes == [sum(g) for g in gated if sum(g)]
        assert [len(g) for g in gated] == [16, *sizes][: len(gated)]
        nn.init.constant_(block.gate.fc2.bias, 0)
        block.gate.fc2.weight.zero_()
        sizes.clear()
        x = maps(1)
        assert block(x) is x and sizes == []  # equal scores mean leaving


@pytest.mark.parametrize('norm', ['lvbn', 'i-lvbn'])
@pytest.mark.parametrize('gate_position', ['before', 'after'])
def test_training_computes_all_samples_and_keeps_maps_after_leaving(norm: str, gate_position: str) -> None:
    table = [[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]
    if gate_position == 'after':
        table[0] = [1] * 6  # no gate decides here
    block = loop(norm, gate=Preset(table), gate_position=gate_position).train()
    block.gate.table = block.gate.table[block.first_gated :]
    reference, x = copy.deepcopy(block), maps()
    y = block(x)
    reached = torch.ones(6)
    for k, row in enumerate(table):
        reached = reached * torch.tensor(row)
        keep = reached.bool()
        plain = copy.deepcopy(reference.block)
        for name in ('bn1', 'bn2', 'bn3'):
            setattr(plain, name, getattr(plain, name)[k])
        out = x.clone()
        # statistics of the samples that pass, or of all
        out[keep] = plain(x[keep]) if norm == 'i-lvbn' else plain(x)[keep]
        x = out
        for name in ('bn1', 'bn2', 'bn3'):
            ours, theirs = getattr(block.block, name)[k], getattr(plain, name)
            torch.testing.assert_close(ours.running_mean, theirs.running_mean)
            torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(y, x)
    expected = {
        'before': [([1, 1, 1, 1, 1, 1], 4 / 6), ([1, 1, 0, 1, 1, 0], 3 / 4), ([1, 0, 0, 1, 1, 0], 1 / 3)],
        'after': [([1, 1, 1, 1, 1, 1], 5 / 6), ([1, 0, 1, 1, 1, 1], 2 / 5)],
    }[gate_position]
    assert [d.reached.tolist() for d in block.decisions] == [reached for reached, _ in expected]
    assert [d.rate().item() for d in block.decisions] == pytest.approx([rate for _, rate in expected])


def test_a_loop_that_no_sample_enters_changes_nothing_and_still_has_gradients() -> None:
    gate = GumbelGate(8)
    with torch.no_grad():
        gate.fc2.bias[0] = 1e3
    block = loop(gate=gate).train()
    before = copy.deepcopy(dict(block.named_buffers()))
    x = maps()
    y = block(x)
    assert torch.equal(y, x)
    assert all(torch.equal(value, before[key]) for key, value in block.named_buffers())
    loss = GateRateLoss()(block.decisions)
    assert loss.item() == pytest.approx(0.7**2)  # only the first gate is reached
    (y.square().mean() + loss).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())


@pytest.mark.parametrize('norm, gate_position', [
    ('shared', 'before'), ('lvbn', 'before'), ('i-lvbn', 'before'), ('i-lvbn', 'after')
])  # fmt: skip
def test_recomputation_uses_the_same_noise(norm: str, gate_position: str) -> None:
    results = []
    for with_cp in (False, True):
        block = loop(norm, with_cp=with_cp, gate_position=gate_position).train()
        torch.manual_seed(5)
        y = block(maps())
        (y.square().mean() + GateRateLoss()(block.decisions)).backward()
        results.append([y, *(p.grad for p in block.parameters()), *block.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize('make', [lambda: BasicBlock(8, 8), lambda: InvertedResidual(8, 16, 8)])
def test_any_residual_block_can_be_wrapped(make) -> None:
    torch.manual_seed(0)
    block = LoopBlock(make(), 2, random_gate(8), 'i-lvbn').double()
    block(maps()).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    with torch.no_grad():
        expected = block.eval()(maps())
        block.switch_to_deploy()
        torch.testing.assert_close(block(maps()), expected)


class Foreign(nn.Module):
    """A residual block of another library, without an inference form."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def test_a_block_without_an_inference_form_stays_as_it_is() -> None:
    torch.manual_seed(0)
    block, x = LoopBlock(Foreign(), 3, random_gate(8)), maps().float()
    randomise_norms(block)
    with torch.no_grad():
        expected = block.eval()(x)
        block.switch_to_deploy()
        assert torch.equal(block(x), expected)
    assert 'unrolled.2.body.1.running_mean' in block.state_dict()


class FixedNorm(nn.Module):
    """A frozen batch norm as in other libraries, no subclass of torch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer('running_mean', torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.running_mean


def test_norms_of_other_libraries_are_recognised() -> None:
    block = LoopBlock(Bottleneck(8, 4, 8, norm_layer=FixedNorm), 3, random_gate(8))
    assert isinstance(block.block.bn2, LoopNorm)
    assert {'block.bn3.0.running_mean', 'block.bn3.2.running_mean'} <= block.state_dict().keys()
    block(maps().float())


@pytest.mark.parametrize('norm, gated', [('lvbn', False), ('shared', True), ('lvbn', True), ('i-lvbn', True)])
def test_maps_keep_their_dtype_under_autocast(norm: str, gated: bool) -> None:
    torch.manual_seed(0)
    block = LoopBlock(Bottleneck(8, 4, 8), 3, random_gate(8) if gated else None, norm)
    x, outputs = maps(16).float(), []
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        for training, skip in ((True, True), (False, True), (False, False)):
            block.skip = skip
            outputs.append(block.train(training)(x))
    assert [y.dtype for y in outputs] == 3 * [torch.float32]
    torch.testing.assert_close(outputs[1], outputs[2], rtol=0.02, atol=0.02)


def test_each_iteration_has_its_own_group_norm() -> None:
    block = LoopBlock(
        Bottleneck(8, 4, 8, norm_layer=lambda c: nn.GroupNorm(2, c)), 2, random_gate(8), 'i-lvbn'
    )
    assert 'block.bn3.1.weight' in block.state_dict()
    block(maps().float()).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_a_loop_without_gate_repeats_the_block() -> None:
    torch.manual_seed(0)
    plain = Bottleneck(8, 4, 8).double().eval()
    block = LoopBlock(copy.deepcopy(plain), 3, loop_norm='shared').eval()
    with torch.no_grad():
        assert torch.equal(block(maps()), plain(plain(plain(maps()))))


def test_copies_during_training_work() -> None:
    block = loop().train()
    block(maps()).sum().backward()
    clone = copy.deepcopy(block)
    assert clone.decisions == [] and len(block.decisions) == 3
    # the norms of the clone refer to its own loop
    clone.position.iteration = 7
    assert block.block.bn1.position.iteration != 7 and clone.block.bn1.position.iteration == 7


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_iterations=0), 'num_iterations=0, allowed'),
        (dict(loop_norm='bn'), "loop_norm='bn', allowed: 'shared', 'lvbn', 'i-lvbn'"),
        (dict(loop_norm='i-lvbn', gate=None), "loop_norm='i-lvbn' without a gate, allowed: 'shared', 'lvbn'"),
        (dict(skip=1), 'skip=1'),
    ],
)
def test_loops_reject_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        LoopBlock(**{**dict(block=Bottleneck(8, 4, 8), num_iterations=2), **arguments})
