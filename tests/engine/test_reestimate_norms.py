"""Norms re-estimated by a hook, on MMEngine's own loops."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.engine import ReestimateNormsHook, ResumableRandomnessHook
from mmrecur.models.norms import batch_norms

NUM_IMAGES = 6


class Images(Dataset):
    """Images with a mean and a noise of their own, drawn by all generators that augmentations use."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> Tensor:
        base = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(index)) + index
        return base + self.noise * (random.random() + np.random.rand() + torch.rand(()).item())


class Preprocessor(nn.Module):
    def forward(self, data: list[Tensor], training: bool = False) -> dict[str, Tensor]:
        return dict(inputs=torch.stack(list(data)))


class Model(BaseModel):
    """Two norms that train, one that is frozen, and one in the head."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.data_preprocessor = Preprocessor()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
        self.neck = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout())
        self.head = nn.BatchNorm2d(4)
        self.frozen = frozen
        self.validated: list[Tensor] = []

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        self.neck[0].eval()
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> Any:
        if mode == 'predict':
            self.validated.append(
                torch.cat([self.backbone[0].weight.flatten(), self.backbone[1].running_var])
            )
            return [BaseDataElement()]
        maps = self.head(self.neck(self.backbone(inputs)))
        return dict(loss=(maps - torch.rand_like(maps)).square().mean())


def train(work_dir: Path, hook: Any = None, length: int = 4, by_epoch: bool = True, **options: Any) -> Runner:
    """Train with validations every second epoch or iteration."""
    loop = dict(max_epochs=length) if by_epoch else dict(max_iters=length)
    workers, noise = options.pop('workers', 0), options.pop('noise', 0.0)
    loader = dict(batch_size=2, num_workers=workers, dataset=Images(noise))
    torch.manual_seed(0)
    runner = Runner(
        model=options.pop('model', None) or Model(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            **loader,
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
            persistent_workers=workers > 0,
        ),
        train_cfg=dict(by_epoch=by_epoch, **loop, val_interval=2),
        val_dataloader=dict(**loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(),
        val_evaluator=dict(type='DumpResults', out_file_path=str(work_dir / 'out.pkl')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=2)),
        randomness=dict(seed=5),
        experiment_name=f'{work_dir.name}_{length}_{bool(options.get("resume"))}',
        log_level='ERROR',
        custom_hooks=[ResumableRandomnessHook(), *([hook] if hook else []), *options.pop('hooks', [])],
        **options,
    )
    runner.train()
    return runner


def expected(weights: dict[str, Tensor], prefix: str = '') -> tuple[Tensor, Tensor]:
    """Statistics of the first norm on all images, written out."""
    images = torch.stack([Images(0)[i] for i in range(NUM_IMAGES)])
    conv = [weights[f'{prefix}backbone.0.{name}'] for name in ('weight', 'bias')]
    flat = nn.functional.conv2d(images, *conv).transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1)


def assert_fits(weights: dict[str, Tensor], prefix: str = '') -> None:
    """The statistics of a checkpoint are those of its weights."""
    for name, value in zip(('mean', 'var'), expected(weights, prefix)):
        torch.testing.assert_close(weights[f'{prefix}backbone.1.running_{name}'], value, rtol=1e-4, atol=1e-4)


def checkpoint(work_dir: Path, length: int, by_epoch: bool) -> dict[str, Any]:
    return load_checkpoint_file(work_dir / f'{"epoch" if by_epoch else "iter"}_{length}.pth')


def same(a: dict[str, Tensor], b: dict[str, Tensor], ignore: str = '?') -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if ignore not in k)


@pytest.mark.parametrize('by_epoch', [True, False])
def test_last_checkpoint_and_validation_have_the_new_statistics(tmp_path: Path, by_epoch: bool) -> None:
    runner = train(tmp_path, ReestimateNormsHook(), by_epoch=by_epoch)
    states = [checkpoint(tmp_path, length, by_epoch)['state_dict'] for length in (2, 4)]
    assert_fits(states[1])
    with pytest.raises(AssertionError):
        assert_fits(states[0])  # the ones that the training has
    assert torch.equal(runner.model.validated[-1][-4:], states[1]['backbone.1.running_var'])
    # the frozen one is a constant, that of the head is not reached
    assert torch.equal(states[1]['neck.0.running_mean'], torch.zeros(4))
    assert states[1]['head.num_batches_tracked'] == (12 if by_epoch else 4)


@pytest.mark.parametrize('update_buffers', [True, False])
def test_an_average_has_statistics_of_its_own(tmp_path: Path, update_buffers: bool) -> None:
    ema = dict(type='EMAHook', momentum=0.3, update_buffers=update_buffers)
    runner = train(tmp_path, dict(type='mmrecur.ReestimateNormsHook', interval=2), hooks=[ema])
    for length in (2, 4):
        saved = checkpoint(tmp_path, length, True)
        average, last = saved['state_dict'], saved['ema_state_dict']
        assert not torch.equal(average['backbone.0.weight'], last['module.backbone.0.weight'])
        assert_fits(average)
        assert_fits(last, 'module.')
    # validated are the averaged weights with their statistics, and the training goes on with its own
    used = runner.model.validated[-1]
    assert torch.equal(used[:-4], average['backbone.0.weight'].flatten())
    assert torch.equal(used[-4:], average['backbone.1.running_var'])
    assert torch.equal(runner.model.backbone[1].running_var, last['module.backbone.1.running_var'])


@pytest.mark.parametrize('by_epoch, workers', [(True, 0), (False, 2)])
def test_training_does_not_notice(tmp_path: Path, by_epoch: bool, workers: int) -> None:
    options = dict(by_epoch=by_epoch, workers=workers, noise=1.0)
    hook = dict(type='mmrecur.ReestimateNormsHook', interval=1, num_batches=2)
    with_hook = train(tmp_path / 'with', hook, **options)
    assert len(with_hook.model.validated) == 6  # three batches twice
    without = train(tmp_path / 'without', **options)
    states = [runner.model.state_dict() for runner in (with_hook, without)]
    assert same(*states, ignore='running') and not same(*states)
    # nor does it matter where the training was interrupted
    train(tmp_path / 'parts', hook, length=2, **options)
    resumed = train(tmp_path / 'parts', hook, resume=True, **options)
    assert same(resumed.model.state_dict(), states[0])


def test_wrong_options_and_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='num_batches=0, allowed: an integer of at least 1'):
        ReestimateNormsHook(0)
    with pytest.raises(ValueError, match="interval='end', allowed: an integer of at least 1"):
        ReestimateNormsHook(interval='end')
    frozen = Model(frozen=True)
    frozen.head = nn.Identity()
    with pytest.raises(ValueError, match='Model has no batch norms that train; allowed: batch norms'):
        train(tmp_path, ReestimateNormsHook(), model=frozen)
    assert len(batch_norms(frozen)) == 2
