"""Recovery of a student from its teacher, on backbones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmrecur.apis import recover
from mmrecur.apis.recovery import state
from mmrecur.apis.recovery.matcher import Matcher
from mmrecur.checkpoint import graft
from mmrecur.errors import CheckpointError
from mmrecur.models.backbones import DRResNet, ResNetShared
from mmrecur.models.norms import reestimate_norms


@pytest.fixture(scope='module')
def images():
    torch.manual_seed(0)
    coarse = torch.randn(32, 3, 4, 4)
    return list(nn.functional.interpolate(coarse, size=(16, 16), mode='bilinear').split(8))


@pytest.fixture(scope='module')
def teacher(images):
    """Return a plain network whose norms have the statistics of the images."""
    torch.manual_seed(1)
    network = ResNetShared(20, base_channels=8, share=None).eval()
    reestimate_norms(network, images)
    return network


def make_student(teacher: nn.Module) -> nn.Module:
    student = ResNetShared(20, base_channels=8, shared_rank=6)
    student.load_state_dict(graft(teacher.state_dict(), student)[0])
    return student


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_errors_fall_and_nothing_else_changes(teacher, images):
    student, before = make_student(teacher), weights(teacher)
    student.layer1.eval()
    report = recover(teacher, student, images, steps=40, evaluate=lambda model: {'training': model.training})
    assert [stage.name for stage in report.stages] == ['start', 'norms', 'match']
    assert report.stages[1].error <= report.stages[0].error
    assert report.stages[2].error < 0.8 * report.stages[1].error
    assert list(report.stages[0].errors) == ['layer1', 'layer2', 'layer3']
    assert all(stage.metrics == {'training': 0.0} for stage in report.stages)
    assert len(report.history) == 40
    assert same(weights(teacher), before) and not teacher.training
    assert student.training and student.layer2.training and not student.layer1.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert 'match' in str(report)


def test_an_interrupted_recovery_continues_with_the_same_result(teacher, images, tmp_path, monkeypatch):
    monkeypatch.setattr(state, 'INTERVAL', 0.0)
    stops = (3, 5, 8)
    whole = make_student(teacher)
    expected = recover(teacher, whole, images, steps=10)

    def interrupt(step: int, error: float) -> None:
        if step in stops:
            raise KeyboardInterrupt

    path = tmp_path / 'state.pth'
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            recover(teacher, make_student(teacher), images, 10, callback=interrupt, checkpoint=path)
    left = tmp_path / '.state.pth.1.partial'
    left.write_text('killed while writing')
    student = make_student(teacher)
    report = recover(teacher, student, images, steps=10, checkpoint=path)
    assert not left.exists()
    assert same(weights(student), weights(whole))
    assert report.history == expected.history
    assert [s.errors for s in report.stages] == [s.errors for s in expected.stages]


def test_a_state_of_another_recovery_is_refused(teacher, images, tmp_path):
    path = tmp_path / 'state.pth'
    recover(teacher, make_student(teacher), images, steps=2, checkpoint=path)
    with pytest.raises(CheckpointError, match='steps=2, this one has 3'):
        recover(teacher, make_student(teacher), images, steps=3, checkpoint=path)
    other = copy.deepcopy(teacher)
    other.layer1[0].bn1.bias.data += 1
    with pytest.raises(CheckpointError, match='another teacher; delete the file'):
        recover(other, make_student(teacher), images, steps=2, checkpoint=path)
    student = make_student(teacher)
    student.layer1[0].conv1.dilation = student.layer1[0].conv1.padding = (2, 2)
    with pytest.raises(CheckpointError, match='another network as student'):
        recover(teacher, student, images, steps=2, checkpoint=path)
    with pytest.raises(CheckpointError, match='another number of batches'):
        recover(teacher, make_student(teacher), images[1:], steps=2, checkpoint=path)
    torch.save(dict(state_dict={}), path)
    with pytest.raises(CheckpointError, match='not the state of a recovery'):
        recover(teacher, make_student(teacher), images, steps=2, checkpoint=path)


def test_an_exact_student_stays_as_it_is(teacher, images):
    student = ResNetShared(20, base_channels=8, share=None)
    student.load_state_dict(teacher.state_dict())
    before = weights(student)
    report = recover(teacher, student, images, steps=5)
    assert report.error == 0 and report.history == []
    assert same(weights(student), before)


def test_gradients_of_images_of_several_sizes_add_up(teacher, images):
    """A step on two groups equals AdamW on the sum of their errors, weighted by the number of images."""
    groups = [images[0][:6], images[1][:2, :, :12]]
    first, second = make_student(teacher), make_student(teacher)
    matchers = [Matcher(teacher, s, ['layer3'], ['layer3'], 4, 1e-3, 0) for s in (first, second)]
    teacher.eval(), first.eval(), second.eval()  # no batch statistics, which would depend on the groups
    matchers[0].step(groups)
    total = 0.0
    torch.manual_seed(0)
    for x in groups:
        mirrored = torch.rand(len(x), 1, 1, 1) < 0.5
        x = torch.where(mirrored, x.flip(-1), x)
        target, output = teacher(x)[2].detach(), second(x)[2]
        total = total + (output - target).square().sum() / target.square().sum() * len(x) / 8
    total.backward()
    nn.utils.clip_grad_norm_(second.parameters(), 1.0)
    optimizer = torch.optim.AdamW(
        [p for p in second.parameters() if p.grad is not None], 1e-3, weight_decay=0
    )
    optimizer.step()
    for (name, a), b in zip(first.named_parameters(), second.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6, msg=name)


def test_necks_and_heads_are_not_trained(teacher, images):
    class Model(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.backbone, self.head = backbone, nn.Linear(32, 5)
            self.neck = Neck()

    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(32, 8, 1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, maps):
            return [self.norm(self.conv(maps[-1]))]

    whole, student = Model(copy.deepcopy(teacher)), Model(make_student(teacher))
    before = weights(student.neck) + weights(student.head)
    report = recover(whole, student, images, steps=20)
    assert list(report.stages[0].errors)[-1] == 'neck'
    assert report.error < report.stages[0].error
    assert same(weights(student.neck) + weights(student.head), before)


def test_gates_keep_their_target_rate(images):
    torch.manual_seed(3)
    teacher = DRResNet(depth=None, blocks=(1, 3), loops=(1, 1), stem='cifar', base_channels=8, gated=False)
    reestimate_norms(teacher, images)
    student = DRResNet(depth=None, blocks=(1, 2), loops=(1, 2), stem='cifar', base_channels=8)
    report = recover(teacher, student, images, steps=4, match=[''])
    assert [stage.name for stage in report.stages] == ['start', 'norms', 'match', 'gates']
    student.eval()
    maps = student.layer2[0](student.layer1(student._run_stem(torch.cat(images))))
    passed = student.layer2[1].margins(maps) > 0
    assert 0 < passed.float().mean() < 1


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(steps=-1), 'steps=-1'),
        (dict(lr=0), 'lr=0, allowed'),
        (dict(match=['layer9']), "no module 'layer9'"),
        (dict(batches=[]), 'batches has no images'),
        (dict(batches=[3]), 'batches yields a int'),
        (dict(batches=[torch.rand(3, 16, 16)]), r'shape \(3, 16, 16\)'),
    ],
)
def test_wrong_arguments_are_named(teacher, images, change, message):
    arguments = dict(batches=images, steps=1) | change
    with pytest.raises((TypeError, ValueError), match=message):
        recover(teacher, make_student(teacher), **arguments)


def test_an_iterator_that_ends_is_refused(teacher, images):
    with pytest.raises(ValueError, match='allowed: an iterable that can be iterated over again'):
        recover(teacher, make_student(teacher), iter(images), steps=20)


def test_outputs_of_other_shapes_are_refused(teacher, images):
    student = ResNetShared(20, base_channels=4)
    with pytest.raises(ValueError, match=r"output 'layer3' has the shape \(8, 16, 4, 4\) in the student"):
        recover(teacher, student, images, steps=1, match=['layer3'])


def test_a_frozen_student_is_refused(teacher, images):
    student = make_student(teacher).requires_grad_(False)
    with pytest.raises(ValueError, match='no trainable parameters'):
        recover(teacher, student, images, steps=1)
