"""Gates, the loss of their rates and the norms of loops, compared with slow reference implementations."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmrecur.models.layers import GumbelGate
from mmrecur.models.layers.loop import GateDecision, LoopNorm, LoopPosition, masked_batch_norm
from mmrecur.models.losses import GateRateLoss
from tests.helpers import randomise_norms
from tests.helpers.loops import maps, random_gate


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
