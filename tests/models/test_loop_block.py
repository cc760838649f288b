"""Gates, norms of loops and loops, compared with slow reference implementations."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmrecur.models.layers import BasicBlock, Bottleneck, GumbelGate, InvertedResidual, LoopBlock
from mmrecur.models.layers.loop import GateDecision, LoopNorm, LoopPosition, masked_batch_norm
from mmrecur.models.losses import GateRateLoss
from tests.helpers import randomise_norms


class Preset(nn.Module):
    """A gate that reads its decisions from a table (iterations x samples); for loops that skip no samples."""

    def __init__(self, table: list[list[int]]) -> None:
        super().__init__()
        self.table, self.calls = torch.tensor(table), 0

    def forward(self, x: Tensor) -> Tensor:
        row = self.table[self.calls % len(self.table)]
        self.calls += 1
        return row.to(x) if self.training else row.bool()


def random_gate(channels: int, hidden_channels: int = 0) -> GumbelGate:
    """A gate that decides differently for different samples."""
    torch.manual_seed(0)
    gate = GumbelGate(channels, hidden_channels)
    nn.init.normal_(gate.fc2.weight, std=30)
    nn.init.zeros_(gate.fc2.bias)
    return gate


def loop(norm: str = 'i-lvbn', num_iterations: int = 3, gate: nn.Module | None = None, **kwargs) -> LoopBlock:
    torch.manual_seed(0)
    block = LoopBlock(Bottleneck(8, 4, 8), num_iterations, gate or random_gate(8), norm, **kwargs)
    randomise_norms(block)
    return block.double()


def maps(batch_size: int = 6) -> Tensor:
    return torch.randn(batch_size, 8, 5, 5, generator=torch.Generator().manual_seed(1)).double()


# gates


@pytest.mark.parametrize('hidden_channels', [16, 0])
def test_gates_start_at_the_initial_rate(hidden_channels: int) -> None:
    torch.manual_seed(0)
    gate = GumbelGate(8, hidden_channels, initial_rate=0.7)
    passed = gate(torch.randn(20_000, 8, 1, 1))
    assert passed.mean().item() == pytest.approx(0.7, abs=0.015)
    assert gate.eval()(torch.randn(100, 8, 1, 1)).all()


def test_gate_has_the_gradient_of_the_softmax_of_noisy_scores() -> None:
    gate, x = random_gate(8, hidden_channels=16).double(), maps()
    torch.manual_seed(3)
    passed = gate(x)
    assert set(passed.tolist()) == {0.0, 1.0}
    weights = torch.arange(6.0).double()
    grads = torch.autograd.grad((passed * weights).sum(), [*gate.parameters()])
    torch.manual_seed(3)
    scores = gate.fc2(torch.relu(gate.fc1(x.mean((2, 3)))))
    noisy = scores - torch.empty_like(scores).exponential_().log()
    assert torch.equal(noisy.argmax(1), passed.long())
    soft = noisy.softmax(1)[:, 1]
    for a, b in zip(grads, torch.autograd.grad((soft * weights).sum(), [*gate.parameters()])):
        torch.testing.assert_close(a, b)


def test_gate_takes_the_larger_score_in_evaluation() -> None:
    gate = random_gate(8).double().eval()
    expected = gate.scores(maps()).argmax(1).bool()
    assert 0 < expected.sum() < 6
    assert all(torch.equal(gate(maps()), expected) for _ in range(3))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(channels=0), 'channels=0, allowed'),
        (dict(channels=8, initial_rate=1), 'initial_rate=1, allowed: a number between 0 and 1'),
        (dict(channels=8, hidden_channels=-1), 'hidden_channels=-1, allowed'),
        (dict(channels=8, temperature=0), 'temperature=0, allowed: a positive number'),
    ],
)
def test_gates_reject_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GumbelGate(**arguments)


# norms


@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('affine', [True, False])
def test_masked_norm_equals_the_norm_of_the_samples_that_pass(momentum: float | None, affine: bool) -> None:
    x, passed = maps(), torch.tensor([1.0, 0, 1, 1, 0, 0])
    norm = nn.BatchNorm2d(8, momentum=momentum, affine=affine).double()
    reference = copy.deepcopy(norm)
    grads = []
    for module, rows in ((norm, x.clone().requires_grad_()), (reference, x.clone().requires_grad_())):
        for _ in range(2):
            if module is norm:
                y = masked_batch_norm(rows, norm, passed)[passed.bool()]
            else:
                y = reference(rows[passed.bool()])
        (y * torch.linspace(-1, 1, y.numel()).double().view_as(y)).sum().backward()
        grads.append([rows.grad, *(p.grad for p in module.parameters()), y])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)
    for a, b in zip(norm.buffers(), reference.buffers()):
        torch.testing.assert_close(a, b)


def test_masked_norm_without_samples_uses_running_statistics_and_keeps_them() -> None:
    norm = nn.BatchNorm2d(8).double()
    randomise_norms(norm)
    before = copy.deepcopy(norm.state_dict())
    y = masked_batch_norm(maps(), norm, torch.zeros(6))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    torch.testing.assert_close(y, norm.eval()(maps()))
    y.sum().backward()  # every process needs a gradient, even if none of its samples pass
    assert norm.weight.grad is not None and torch.isfinite(norm.weight.grad).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_masked_norm_computes_half_precision_maps_in_float32(dtype: torch.dtype) -> None:
    norm, x = nn.BatchNorm2d(8), (maps() * 30 + 200).to(dtype)
    y = masked_batch_norm(x, norm, torch.ones(6))
    assert y.dtype == dtype
    assert (y.float() - nn.BatchNorm2d(8)(x.float())).abs().max() < 0.02
    assert norm.running_mean.dtype == torch.float32


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_masked_norm_takes_its_statistics_in_float32_under_autocast(dtype: torch.dtype) -> None:
    x, passed, results = maps().float() + 50, torch.tensor([1.0, 0, 1, 1, 0, 0]), []
    for enabled in (False, True):
        norm = nn.BatchNorm2d(8)
        with torch.autocast('cpu', dtype, enabled=enabled):
            results.append([masked_batch_norm(x, norm, passed), norm.running_mean, norm.running_var])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_masked_norm_of_a_single_value_uses_running_statistics_and_keeps_them() -> None:
    norm, x = nn.BatchNorm2d(8).double(), maps()[..., :1, :1]
    randomise_norms(norm)
    before = copy.deepcopy(norm.state_dict())
    y = masked_batch_norm(x, norm, torch.tensor([0.0, 1, 0, 0, 0, 0]))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    torch.testing.assert_close(y, norm.eval()(x))


def test_each_iteration_has_its_own_norm() -> None:
    position = LoopPosition()
    norm = LoopNorm(nn.BatchNorm2d(8).double(), 3, position)
    assert [*norm.state_dict()][0] == '0.weight'
    position.iteration = 1
    norm(maps())
    assert [int(n.num_batches_tracked) for n in norm] == [0, 1, 0]


def _norm_in_a_process(rank: int, path: str) -> None:
    dist.init_process_group('gloo', f'file://{path}/store', rank=rank, world_size=2)
    x, passed = maps(), torch.tensor([1.0, 0, 1, 1, 0, 0])
    norm = nn.SyncBatchNorm(8).double()
    own = slice(0, 2) if rank == 0 else slice(2, 6)
    rows = x[own].requires_grad_()
    y = masked_batch_norm(rows, norm, passed[own])
    weights = torch.linspace(-1, 1, x.numel()).double().view_as(x)[own]
    (y * weights).sum().backward()
    torch.save((y.detach(), rows.grad, norm.state_dict()), f'{path}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.slow
def test_sync_norms_count_the_samples_of_all_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_norm_in_a_process, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    x, passed = maps().requires_grad_(), torch.tensor([1.0, 0, 1, 1, 0, 0])
    norm = nn.BatchNorm2d(8).double()
    y = masked_batch_norm(x, norm, passed)
    (y * torch.linspace(-1, 1, x.numel()).double().view_as(x)).sum().backward()
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), y.detach())
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), x.grad)
    for part in parts:
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(part[2][key], value)


# loops


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


# the objective


def test_rate_loss_is_the_squared_distance_over_samples_that_reach_the_gate() -> None:
    ones = torch.ones(4)
    decisions = [
        GateDecision(torch.tensor([1.0, 1, 1, 0], requires_grad=True), ones),
        GateDecision(torch.tensor([1.0, 0, 0, 1], requires_grad=True), torch.tensor([1.0, 1, 1, 0])),
        GateDecision(torch.tensor([1.0, 1, 1, 1], requires_grad=True), 0 * ones),
    ]
    loss = GateRateLoss(target_rate=0.5, loss_weight=3.0)(decisions)
    assert loss.item() == pytest.approx(3 * ((3 / 4 - 0.5) ** 2 + (1 / 3 - 0.5) ** 2))
    average = GateRateLoss(target_rate=0.5, loss_weight=3.0, average=True)(decisions)
    assert average.item() == pytest.approx(loss.item() / 3)
    loss.backward()
    assert decisions[1].passed.grad.tolist() == pytest.approx([-1 / 3, -1 / 3, -1 / 3, 0])
    assert decisions[2].passed.grad.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(target_rate=0), 'target_rate=0, allowed'),
        (dict(loss_weight=-1), 'loss_weight=-1, allowed'),
        (dict(average=None), 'average=None'),
    ],
)
def test_rate_loss_rejects_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GateRateLoss(**arguments)
