"""Choice of what each stage shares under a budget of parameters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from mmrecur.apis.recovery.budget import choose_plan
from mmrecur.checkpoint import graft
from mmrecur.errors import ToolError
from mmrecur.models.backbones import DRResNet, ResNetShared, RLAResNet
from mmrecur.models.norms import reestimate_norms


@pytest.fixture(scope='module')
def batches():
    noise = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return [nn.functional.interpolate(noise, size=(16, 16), mode='bilinear')]


def make_teacher(batches: list, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = ResNetShared(20, base_channels=4, share=None, **options)
    reestimate_norms(model.backbone, batches)
    return model.eval()


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shared(options: Mapping[str, Any]) -> ResNetShared:
    return ResNetShared(20, base_channels=4, **options)


def test_the_choice_is_the_best_within_the_budget(batches) -> None:
    teacher = make_teacher(batches)
    chosen, frontier = choose_plan(teacher, shared, batches, 0.6)
    sizes, damages = [plan.parameters for plan in frontier], [plan.damage for plan in frontier]
    assert sizes == sorted(sizes, reverse=True) and damages == sorted(damages)
    assert len(set(sizes)) == len(frontier) and damages[0] == 0
    assert chosen.parameters <= 0.6 * size(teacher.backbone) < frontier[frontier.index(chosen) - 1].parameters
    assert all(size(shared(plan.options)) == plan.parameters for plan in frontier)


def test_the_damage_of_one_stage_is_the_error_of_its_graft(batches) -> None:
    teacher = make_teacher(batches)
    _, frontier = choose_plan(teacher, shared, batches, 1.0)
    plans = [plan for plan in frontier if sum(rank > 0 for rank in plan.options['shared_rank']) == 1]
    assert plans
    for plan in plans:
        student = shared(plan.options).eval()
        student.load_state_dict(graft(teacher.backbone.state_dict(), student, images=batches)[0])
        with torch.no_grad():
            pairs = list(zip(student(batches[0]), teacher.backbone(batches[0]), strict=True))
        errors = [((s - t).square().sum() / t.square().sum()).item() for s, t in pairs]
        assert plan.damage == pytest.approx((sum(errors) / len(errors)) ** 0.5, rel=1e-3)


def test_loops_replace_blocks(batches) -> None:
    teacher = make_teacher(batches)

    def loops(options: Mapping[str, Any]) -> DRResNet:
        options = {'blocks': (3, 3, 3), 'loops': (1, 1, 1), **options}
        return DRResNet(None, stem='cifar', base_channels=4, gated=False, out_indices=(0, 1, 2), **options)

    chosen, frontier = choose_plan(teacher, loops, batches, 0.8)
    found = {tuple(zip(plan.options['blocks'], plan.options['loops'])) for plan in frontier}
    assert found <= set(itertools.product([(3, 1), (2, 2)], repeat=3)) and len(found) > 2
    assert size(loops(chosen.options)) == chosen.parameters <= 0.8 * size(teacher.backbone)


def test_a_network_may_end_before_the_last_stage(batches) -> None:
    def loops(options: Mapping[str, Any]) -> DRResNet:
        options = {'blocks': (3, 3, 3), 'loops': (1, 1, 1), **options}
        return DRResNet(None, stem='cifar', base_channels=4, gated=False, out_indices=(1,), **options)

    teacher = make_teacher(batches, out_indices=(1,))
    assert not hasattr(teacher.backbone, 'layer3')
    chosen, frontier = choose_plan(teacher, loops, batches, 0.9)
    assert chosen.parameters <= 0.9 * size(teacher.backbone) and len(frontier) > 1


@pytest.mark.parametrize('keep', [0, 1.1, True, 'half'])
def test_wrong_budgets_are_named(batches, keep: Any) -> None:
    with pytest.raises(ToolError, match=f'--keep {keep!r}, allowed: a number above 0 and at most 1'):
        choose_plan(make_teacher(batches), shared, batches, keep)


def test_budgets_out_of_reach_and_other_classes_are_refused(batches) -> None:
    teacher = make_teacher(batches)
    with pytest.raises(ToolError, match=r'0.01: ResNetShared has \d+% .* allowed: --keep 0.\d\d or more'):
        choose_plan(teacher, shared, batches, 0.01)
    with pytest.raises(ToolError, match='with RLAResNet, allowed: a backbone of ResNetShared, DRResNet'):
        choose_plan(teacher, lambda options: RLAResNet(50, 4, base_channels=4), batches, 0.5)
