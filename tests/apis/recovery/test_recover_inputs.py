"""Unusual networks, batches and arguments of a recovery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mmrecur.apis import recover
from mmrecur.apis.recovery import state
from mmrecur.apis.recovery.images import RecoveryImages
from mmrecur.apis.recovery.report import RecoveryReport, StageResult
from mmrecur.apis.recovery.validation import Validation
from mmrecur.checkpoint import graft
from mmrecur.models.backbones import ResNetShared
from mmrecur.models.norms import reestimate_norms


@pytest.fixture(scope='module')
def images() -> list[Tensor]:
    noise = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return list(nn.functional.interpolate(noise, size=(16, 16), mode='bilinear').split(4))


@pytest.fixture(scope='module')
def teacher(images) -> nn.Module:
    torch.manual_seed(1)
    network = ResNetShared(20, base_channels=4, share=None)
    reestimate_norms(network, images)
    return network


def make_student(teacher: nn.Module) -> nn.Module:
    student = ResNetShared(20, base_channels=4, shared_rank=3)
    student.load_state_dict(graft(teacher.state_dict(), student)[0])
    return student


class Model(nn.Module):
    """A model with a backbone and a head that the backbone does not use."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(16, 2)


class Once:
    """Yields images the first time only."""

    def __init__(self, images: list[Tensor]) -> None:
        self.rest = list(images)

    def __iter__(self) -> Iterator[Tensor]:
        while self.rest:
            yield self.rest.pop()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_a_teacher_may_have_another_precision(images, dtype) -> None:
    torch.manual_seed(1)
    network = ResNetShared(20, base_channels=4, share=None)
    student = make_student(network)
    report = recover(network.to(dtype), student, images, steps=2)
    assert 0 < report.error < 1 and len(report.history) == 2


def test_a_student_in_half_precision_is_refused(teacher, images) -> None:
    with pytest.raises(ValueError, match=r'student has parameters of torch.bfloat16, allowed: float32'):
        recover(teacher, make_student(teacher).bfloat16(), images, steps=1)


def test_no_gradients_are_left(teacher, images) -> None:
    student = make_student(teacher)
    recover(teacher, student, images, steps=1)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_step_that_diverges_ends_with_an_error(teacher, images) -> None:
    student = make_student(teacher)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r'step \d: .* with lr=1e\+30, allowed: .* a smaller lr'):
        recover(teacher, student, images, steps=4, lr=1e30)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_statistics_that_are_not_finite_are_recovered(teacher, images) -> None:
    student = make_student(teacher)
    student.layer2[1].bn1.running_mean.fill_(float('nan'))
    report = recover(teacher, student, images, steps=2)
    assert report.stages[1].is_kept and len(report.history) == 2 and report.error < 1


def test_a_shuffling_loader_continues_in_the_same_order(teacher, images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(state, 'INTERVAL', 0.0)

    def loader() -> DataLoader:
        return DataLoader(TensorDataset(torch.cat(images)), batch_size=2, shuffle=True)

    def interrupt(step: int, error: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    path = tmp_path / 'state.pth'
    whole = recover(teacher, make_student(teacher), loader(), steps=6)
    with pytest.raises(KeyboardInterrupt):
        recover(teacher, make_student(teacher), loader(), 6, callback=interrupt, checkpoint=path)
    resumed = recover(teacher, make_student(teacher), loader(), steps=6, checkpoint=path)
    assert resumed.history == whole.history


def test_batches_that_end_are_an_error(teacher, images) -> None:
    with pytest.raises(ValueError, match='has no images'):
        recover(teacher, make_student(teacher), Once(images), steps=5)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(match='layer1'), "match='layer1', allowed: None, or names"),
        (dict(match=[]), r'match=\[\], allowed'),
        (dict(batches=3), 'batches=3, allowed: an iterable'),
        (dict(batches=[torch.zeros(1, 3, 16, 16, dtype=torch.uint8)]), 'a tensor of torch.uint8, allowed'),
        (dict(batches=[torch.full((1, 3, 16, 16), float('inf'))]), "'layer1' of the teacher .* not finite"),
        (dict(lr=float('inf')), 'lr=inf, allowed'),
        (dict(lr='low'), "lr='low', allowed"),
        (dict(seed=-1), 'seed=-1, allowed: an integer from 0'),
    ],
)
def test_wrong_arguments_are_named(teacher, images, change: dict[str, Any], message: str) -> None:
    arguments = dict(batches=images, steps=1) | change
    with pytest.raises((TypeError, ValueError), match=message):
        recover(teacher, make_student(teacher), **arguments)


def test_a_backbone_and_a_model_are_refused(teacher, images) -> None:
    with pytest.raises(ValueError, match='student has a backbone and teacher has none'):
        recover(teacher, Model(make_student(teacher)), images, steps=1)
    with pytest.raises(ValueError, match='teacher has a backbone and student has none'):
        recover(Model(teacher), make_student(teacher), images, steps=1)


def test_a_module_that_does_not_run_is_refused(teacher, images) -> None:
    models = Model(teacher), Model(make_student(teacher))
    with pytest.raises(ValueError, match="module 'head' does not run"):
        recover(*models, images, steps=1, match=['backbone', 'head'])


def test_the_largest_seed_is_allowed(teacher, images) -> None:
    recover(teacher, make_student(teacher), images, steps=2, seed=2**32 - 1)


def test_trackers_read_single_images(tmp_path: Path) -> None:
    """The test pipeline of a tracker loads the frames of a video."""
    for i in range(2):
        assert cv2.imwrite(str(tmp_path / f'{i}.png'), np.full((20, 40, 3), 50 + i, np.uint8))
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='LoadTrackAnnotations'),
    ]
    pipeline = [dict(type='TransformBroadcaster', transforms=steps), dict(type='PackTrackInputs')]
    cfg = Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    model = nn.Module()
    model.data_preprocessor = DetDataPreprocessor(pad_size_divisor=32)
    ((x,),) = RecoveryImages(cfg, tmp_path, model, batch_size=2)
    assert x.shape == (2, 3, 32, 64) and sorted(x[:, 0, 0, 0].tolist()) == [50, 51]


class Items(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return index


class ByClass(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list) -> dict[str, Any]:
        return dict(mean=torch.tensor(sum(results) / 2), most=max(results), by_class=list(results))


class Identity(nn.Module):
    def val_step(self, data: Any) -> list:
        return list(data)


def test_metrics_that_are_no_numbers_are_left_out() -> None:
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=1, num_workers=0, sampler=sampler, dataset=Items())
    loader |= dict(collate_fn=dict(type='pseudo_collate'))
    cfg = Config(dict(default_scope='mmengine'))
    cfg.val_dataloader, cfg.val_evaluator = loader, dict(type=ByClass)
    assert Validation(cfg)(Identity()) == {'mean': 0.5, 'most': 1.0}


def test_the_report_of_a_detector_is_readable() -> None:
    outputs = [*(f'backbone.layer{i}' for i in range(1, 5)), *(f'neck.{i}' for i in range(5))]
    stages = [
        StageResult(name, dict.fromkeys(outputs, 0.25), {'coco/bbox_mAP': 0.5}, 3.0, name != 'norms')
        for name in ('start', 'norms', 'match', 'gates')
    ]
    text = str(RecoveryReport((2, 1), stages))
    for name in (*outputs, 'coco/bbox_mAP', 'norms (undone)', 'gates', 'seconds'):
        assert name in text
    assert max(map(len, text.splitlines())) < 80
