"""Statistics of batch norms, re-estimated on given images."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mmrecur.models.layers import BasicBlock, GumbelGate, LoopBlock
from mmrecur.models.norms import batch_norms, reestimate_norms
from tests.helpers import build, image, randomise_norms


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.9),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
    )
    randomise_norms(model)
    return model


def statistics(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel of several maps, from the definition."""
    flat = torch.cat([v.transpose(0, 1).flatten(1) for v in values], 1).double()
    return flat.mean(1), flat.var(1)


def assert_statistics(norm: nn.Module, values: list[Tensor], rtol: float = 1e-5) -> None:
    mean, var = statistics(values)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=rtol, atol=rtol)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=rtol, atol=rtol)


def state_of(model: nn.Module) -> list:
    """Everything that must stay as it is."""
    modes = [(m.training, sorted(vars(m)), m.extra_repr()) for m in model.modules()]
    kept = {k: v.clone() for k, v in model.state_dict().items() if 'running' not in k}
    return [modes, kept, [p.requires_grad for p in model.parameters()]]


def assert_same_state(a: list, b: list) -> None:
    assert a[0] == b[0] and a[2] == b[2]
    assert all(torch.equal(a[1][k], b[1][k]) for k in {**a[1], **b[1]})


def test_statistics_are_those_of_all_values_in_batches_of_any_size() -> None:
    model = network()
    # far from zero, and batches with means of their own, whose variances alone are too small
    batches = [image(2, 3, 9, 8) + 20, [image(1, 3, 12, 7), image(3, 3, 7, 7) - 20]]
    before = state_of(model.train())
    model[1].momentum = None
    assert reestimate_norms(model, batches) == 2
    assert model[1].momentum is None
    model[1].momentum = 0.1
    assert_same_state(before, state_of(model))
    first, second = [], []
    with torch.no_grad():
        for x in (batches[0], *batches[1]):
            first.append(model[0](x))
            normalised = nn.functional.batch_norm(
                first[-1], None, None, model[1].weight, model[1].bias, training=True
            )
            second.append(model[4](normalised.relu()))
    assert_statistics(model[1], first)
    assert_statistics(model[5], second)
    once = copy.deepcopy(model.state_dict())
    reestimate_norms(model, batches)  # from other statistics
    assert all(torch.equal(value, once[key]) for key, value in model.state_dict().items())


def test_one_batch_gives_what_training_on_it_does() -> None:
    for name in ('shared-r18', 'rla-r50'):
        model = build(name).eval()
        trained, x = copy.deepcopy(model).train(), image(4, 3, 32, 32)
        for norm in batch_norms(trained).values():
            norm.momentum = 1.0
        trained(x)
        count = reestimate_norms(model, iter([x]))
        assert count == len(batch_norms(model)) > 0 and not any(m.training for m in model.modules())
        for norm, other in zip(batch_norms(model).values(), batch_norms(trained).values()):
            torch.testing.assert_close(norm.running_mean, other.running_mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(norm.running_var, other.running_var, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=[True, False])
def loop(request: pytest.FixtureRequest) -> Iterator[LoopBlock]:
    torch.manual_seed(0)
    block = LoopBlock(BasicBlock(4, 4), 3, GumbelGate(4, 0), 'i-lvbn', skip=request.param)
    randomise_norms(block)
    with torch.no_grad():  # samples of a positive mean pass
        block.gate.fc2.weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
        block.gate.fc2.bias.zero_()
    yield block


def test_norms_of_a_loop_count_the_samples_that_run_the_iteration(loop: LoopBlock) -> None:
    skip = loop.skip
    x = image(6, 4, 5, 5) * 0.1
    x += torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).view(-1, 1, 1, 1)
    seen: list[Tensor] = []
    norm = loop.block.bn1
    handle = loop.block.conv1.register_forward_hook(lambda m, a, output: seen.append(output))
    reestimate_norms(loop.train(), [x, x[:3]])
    handle.remove()
    assert loop.skip is skip and loop.training and loop.decisions == []
    assert len(seen[0]) == 3
    first = [loop.block.conv1(x[[0, 2, 4]]), loop.block.conv1(x[[0, 2]])]
    assert_statistics(norm[0], [f.detach() for f in first])
    # no sample passes the gate: the statistics stay
    before = copy.deepcopy(loop.state_dict())
    assert reestimate_norms(loop, [-x.abs()]) == 0
    assert all(torch.equal(value, before[key]) for key, value in loop.state_dict().items())


def test_norms_without_statistics_are_left_out() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3), nn.BatchNorm2d(3, affine=False)
    )
    assert list(batch_norms(model)) == ['2'] and reestimate_norms(model, [image(2, 3, 4, 4)]) == 1
    with pytest.raises(ValueError, match='Sequential has no batch norms with running statistics, allowed'):
        reestimate_norms(model[:2], [image(2, 3, 4, 4)])
    with pytest.raises(ValueError, match=r"statistics among names=\['0'\], allowed"):
        reestimate_norms(model, [image(2, 3, 4, 4)], names=['0'])


def test_some_norms_can_be_chosen() -> None:
    model = network()
    kept = model[1].running_mean.clone(), model[1].running_var.clone()
    assert reestimate_norms(model, [image(2, 3, 8, 8)], names=['5']) == 1
    assert torch.equal(model[1].running_mean, kept[0]) and torch.equal(model[1].running_var, kept[1])
    assert_statistics(model[5], [model.eval()[:5](image(2, 3, 8, 8)).detach()])


def test_the_inference_form_has_none() -> None:
    model = build('shared-r18')
    model.switch_to_deploy()
    with pytest.raises(ValueError, match='ResNetShared is in its inference form'):
        reestimate_norms(model, [image(1, 3, 32, 32)])


def test_single_values_are_counted() -> None:
    """A norm behind global pooling, on one image after another."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    images = list(image(5, 3, 4, 4).split(1))
    assert reestimate_norms(model, images) == 1
    assert_statistics(model[1], [model[0](x) for x in images])
    before = copy.deepcopy(model.state_dict())
    assert reestimate_norms(model, images[:1]) == 0  # a single value has no variance
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('batches', [[], [[]]])
def test_no_images_are_an_error(batches: list) -> None:
    with pytest.raises(ValueError, match='batches has no images, allowed: at least one'):
        reestimate_norms(network(), batches)


@pytest.mark.parametrize('batch', [dict(inputs=image(1, 3, 8, 8)), [image(1, 3, 8, 8), 'x.png']])
def test_a_failure_changes_nothing(batch: object) -> None:
    model = network()
    before = state_of(model), copy.deepcopy(model.state_dict())
    x = image(2, 3, 8, 8)
    for bad, error in ((batch, TypeError), (x[..., :1], RuntimeError), (x / 0, ValueError)):
        with pytest.raises(error):
            reestimate_norms(model, [x, bad])
        assert_same_state(before[0], state_of(model))
        assert all(torch.equal(value, before[1][key]) for key, value in model.state_dict().items())


def test_half_precision_and_channels_last() -> None:
    model, half = network(), network().to(torch.bfloat16)
    x = image(4, 3, 16, 16) + 3
    reestimate_norms(model, [x])
    half.load_state_dict({k: v for k, v in network().state_dict().items()})
    half.to(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):  # switched off inside
        reestimate_norms(half, [x.contiguous(memory_format=torch.channels_last)])
    for norm, other in ((model[1], half[1]), (model[5], half[5])):
        assert other.running_var.dtype == torch.bfloat16
        torch.testing.assert_close(norm.running_mean, other.running_mean.float(), rtol=0.03, atol=0.03)
        torch.testing.assert_close(norm.running_var, other.running_var.float(), rtol=0.03, atol=0.03)


class Detector(nn.Module):
    """Backbone, neck and head; ``forward`` wants more than images."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck = network(), nn.BatchNorm2d(5)
        self.head = nn.BatchNorm2d(5)

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        return self.head(self.neck(self.backbone(images)))


def test_backbone_and_neck_of_a_model_are_run() -> None:
    model = Detector()
    assert reestimate_norms(model, [image(2, 3, 8, 8)]) == 3
    assert torch.equal(model.head.running_mean, torch.zeros(5))


def _two_processes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=2)
    model = nn.SyncBatchNorm(3)
    images = [image(2, 3, 4, 4), image(1, 3, 9, 9) + 5, image(1, 3, 4, 5)]
    # an unequal share, as at the end of a data set; the second time one process has nothing at all
    for mine in (images[:2] if rank else images[2:]), (images if rank else []):
        reestimate_norms(model, mine)
        assert_statistics(model, images)
    dist.destroy_process_group()


def test_processes_share_their_values(tmp_path: Path) -> None:
    mp.spawn(_two_processes, (str(tmp_path),), nprocs=2)
