"""Wrappers that copy or shard a network: ``nn.DataParallel`` and FSDP2."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrecur.models.layers import FilterBasis, share_convs
from mmrecur.models.layers.common.parallel import gathered
from tests.helpers import assert_close, build, image
from tests.models.zoo import BACKBONES, DISTINCT

replication = importlib.import_module('torch.nn.parallel.replicate')
fsdp = pytest.importorskip('torch.distributed.fsdp')
needs_fsdp2 = pytest.mark.skipif(not hasattr(fsdp, 'fully_shard'), reason='fully_shard came with torch 2.6')
#: Networks that FSDP2 is tried with: one of each way to share.
SHARDED = ['shared-r18', 'shared-mobilenet-double', 'shared-x50', 'shared-densenet', 'swrn-22-2-2', 'dr-r']
SHARDED += ['rla-r50', 'rla-xception-hidden', 'recnet', 'shared-r50-relaxed', 'dr-r-relaxed']


@pytest.fixture
def replicate(monkeypatch: pytest.MonkeyPatch):
    """Copy as ``nn.DataParallel`` does, but on the CPU, the second time with weights half as large."""

    def broadcast(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        factors = {0: 1.0, 1: 0.5}
        return [[t * factors[d] if t.is_floating_point() else t for t in tensors] for d in devices]

    monkeypatch.setattr(replication, '_broadcast_coalesced_reshape', broadcast)
    return lambda model: replication.replicate(model, [0, 1], detach=True)


def halved(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(0.5)
    return model


@pytest.mark.parametrize('name', DISTINCT)
def test_copies_for_data_parallel_compute_with_their_own_weights(name: str, replicate) -> None:
    model = build(name).eval()
    try:
        copies = replicate(model)
    except RuntimeError as error:
        assert 'Use torch.nn.parallel.DistributedDataParallel' in str(error)
        # the inference form shares no weights
        model.switch_to_deploy()
        copies = replicate(model)
    else:
        assert not name.startswith(('shared-', 'swrn-', 'dr-', 'r-r')), 'the copies share something'
    x = image(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(copies[0](x), model(x), 1e-6)
        assert_close(copies[1](x), halved(model)(x), 1e-6)


def test_other_networks_that_share_templates_refuse_data_parallel(replicate) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    share_convs(model, 1)
    with pytest.raises(RuntimeError, match='TemplateConv2d, but not the template bank'):
        replicate(model)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process. Its shards are whole, but not ordinary tensors between uses."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "group"}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def stages_of(model: nn.Module) -> list[nn.Module]:
    return [child for name, child in model.named_children() if name.startswith(('layer', 'stage'))]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    lists = [stage.blocks if isinstance(getattr(stage, 'blocks', None), nn.ModuleList) else stage
             for stage in stages_of(model)]  # fmt: skip
    return [block for stage in lists for name, block in stage.named_children() if name.isdigit()]


def shard(model: nn.Module, parts: list[nn.Module]) -> None:
    mesh = dist.device_mesh.init_device_mesh('cpu', (dist.get_world_size(),))
    for part in [*parts, model]:
        fsdp.fully_shard(part, mesh=mesh)


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a training step whose loss includes the model's auxiliary losses."""
    torch.manual_seed(0)  # seeds the noise of the gates
    loss = sum(output.square().mean() for output in model(x))
    own = getattr(model, 'auxiliary_losses', dict)()
    for value in own.values():
        assert type(value) is Tensor  # as the sum of a head's losses needs it
        loss = loss + value
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: gathered(grad) for name, grad in found.items()}


def assert_same_step(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4) -> None:
    for name, grad in expected.items():
        if name in found or grad.any():  # gradients of zeros may be left out
            assert (found[name] - grad).norm() <= rtol * grad.norm() + 1e-6, name


@needs_fsdp2
@pytest.mark.parametrize('parts', ['network', 'stages', 'blocks'])
@pytest.mark.parametrize('name', SHARDED)
def test_a_sharded_network_trains_alike(name: str, parts: str, group: None) -> None:
    recurrence = dict(type='mmrecur.RecurrenceLoss', loss_weight=1.0)
    model = build(name, **(dict(loss_recurrence=recurrence) if 'swrn' in name else {})).train()
    plain, x = copy.deepcopy(model), image(2, 3, 32, 32)
    kinds = dict(network=[], stages=stages_of(model), blocks=blocks_of(model))
    assert parts == 'network' or kinds[parts]
    shard(model, kinds[parts])
    assert_same_step(step(model, x), step(plain, x))
    with torch.no_grad():
        assert_close(model.eval()(x), plain.eval()(x), 1e-6)


@needs_fsdp2
def test_weights_that_are_sharded_apart_from_their_readers_are_named(group: None) -> None:
    x = image(1, 3, 32, 32)
    network = build('shared-r18').train()
    other_stage = build('shared-densenet-third').train()
    bases = [module for module in network.modules() if isinstance(module, FilterBasis)]
    shared_convs = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    share_convs(shared_convs, 1)
    for model, parts, message in (
        (network, bases, 'reads the filter basis'),
        (other_stage, stages_of(other_stage), 'reads the filter basis'),
        (shared_convs, [shared_convs[0]], 'reads the template bank'),
    ):
        shard(model, parts)
        with pytest.raises(RuntimeError, match=f'{message} of another module.*Call fully_shard with'):
            model(x)


def _two_processes(rank: int, folder: str) -> None:
    dist.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name in ('shared-r18-gn', 'shared-r50', 'swrn-22-2-2'):
        torch.manual_seed(0)
        model = MODELS.build(BACKBONES[name])
        model.norm_eval = True  # batch norms would depend on how images are spread over the processes
        model.train()
        plain, images = copy.deepcopy(model), image(2, 3, 32, 32)
        shard(model, stages_of(model))
        found = step(model, images[rank : rank + 1])
        assert_same_step(found, step(plain, images))
    dist.destroy_process_group()


@needs_fsdp2
@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    mp.spawn(_two_processes, (str(tmp_path),), nprocs=2)
