"""Randomness of resumed runs, on MMEngine's own loops."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

from mmrecur.engine import ResumableRandomnessHook


class Noise(Dataset):
    """Draws from each generator that augmentations use."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        drawn = [index, random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor(drawn)


class Recorder(BaseModel):
    """A model that records its inputs and its random numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.seen = []

    def forward(self, inputs, mode='loss'):
        inputs = torch.stack(list(inputs))
        noise = torch.rand(2)
        self.seen.append([*inputs.flatten().tolist(), *noise.tolist()])
        if mode == 'predict':
            return [BaseDataElement()]
        return {'loss': (self.layer(inputs).mean() * noise.sum())}

    def _run_forward(self, data, mode):
        return self(data, mode)


def run(work_dir, length, by_epoch, workers=0, resume=False, hook=True, persistent=False, sampler=None):
    unit = dict(by_epoch=True, max_epochs=length) if by_epoch else {}
    unit = unit or dict(by_epoch=False, max_iters=length, val_interval=2)
    loader = dict(dataset=Noise(), batch_size=2, num_workers=workers)
    sampler = sampler or ('DefaultSampler' if by_epoch else 'InfiniteSampler')
    validation = {}
    if not by_epoch:
        # Validation draws random numbers too, and a resumed run does not repeat the validation.
        validation = dict(
            val_dataloader=dict(**loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            val_cfg=dict(),
            val_evaluator=dict(type='DumpResults', out_file_path=str(work_dir / 'out.pkl')),
        )
    torch.manual_seed(0)
    runner = Runner(
        model=Recorder(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            **loader, sampler=dict(type=sampler, shuffle=True), persistent_workers=persistent
        ),
        train_cfg=unit,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=2)),
        randomness=dict(seed=5),
        resume=resume,
        experiment_name=f'{work_dir.name}_{length}_{resume}',
        log_level='ERROR',
        **validation,
    )
    if hook:
        runner.register_hook(ResumableRandomnessHook())
    runner.train()
    return runner.model


@pytest.fixture
def safe_resume():
    # MMEngine's own loader, also with MMEngine's own releases.
    from mmrecur.checkpoint.safe_types import only_safe_types

    with only_safe_types():
        yield


needs_skip = pytest.mark.skipif(
    not hasattr(InfiniteSampler, 'skip'), reason='this MMEngine loads the data that a resumed run skips'
)


@pytest.mark.parametrize(
    'by_epoch, workers, persistent',
    [
        (True, 0, False),
        (True, 2, False),
        (True, 2, True),
        pytest.param(False, 0, False, marks=needs_skip),
        pytest.param(False, 2, False, marks=needs_skip),
        pytest.param(False, 2, True, marks=needs_skip),
    ],
)
def test_resumed_run_draws_what_the_whole_one_did(tmp_path, safe_resume, by_epoch, workers, persistent):
    options = dict(by_epoch=by_epoch, workers=workers, persistent=persistent)
    whole = run(tmp_path / 'whole', 4, **options)
    run(tmp_path / 'parts', 2, **options)
    resumed = run(tmp_path / 'parts', 4, resume=True, **options)
    if not by_epoch:
        # After validation at the end of the second iteration, which has three batches.
        assert whole.seen[5:] == resumed.seen
    else:
        assert whole.seen[6:] == resumed.seen
    assert torch.equal(whole.layer.weight, resumed.layer.weight)
    # Each step draws different numbers.
    assert len({step[-1] for step in whole.seen}) == len(whole.seen)


@needs_skip
def test_iterations_over_a_finite_sampler_resume(tmp_path, safe_resume, monkeypatch):
    # With three batches per epoch, the loader restarts within the skipped part and after it.
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # without MMEngine's pauses of two seconds
    options = dict(by_epoch=False, workers=2, persistent=True, sampler='DefaultSampler')
    whole = run(tmp_path / 'whole', 8, **options)
    run(tmp_path / 'parts', 4, **options)
    resumed = run(tmp_path / 'parts', 8, resume=True, **options)
    # four iterations, and two validations of three batches
    assert whole.seen[10:] == resumed.seen


@needs_skip
@pytest.mark.parametrize('by_epoch', [True, False])
def test_number_of_workers_does_not_matter(tmp_path, safe_resume, by_epoch):
    first, *others = (
        run(tmp_path / str(workers), 2, by_epoch, workers=workers).seen for workers in (2, 0, 1)
    )
    steps = slice(None) if by_epoch else slice(2)  # validation draws random numbers of its own
    for other in others:
        assert first[steps] == other[steps]


def test_without_the_hook_it_does_not(tmp_path, safe_resume):
    whole = run(tmp_path / 'whole', 4, True, hook=False)
    run(tmp_path / 'parts', 2, True, hook=False)
    resumed = run(tmp_path / 'parts', 4, True, resume=True, hook=False)
    assert whole.seen[6:] != resumed.seen


def test_workers_draw_different_numbers(tmp_path):
    seen = run(tmp_path, 2, True, workers=2).seen
    drawn = [value for step in seen for value in (step[1], step[5])]
    assert len(set(drawn)) == len(drawn) == 12
