"""Record the gradients of shared bases in a training, and draw them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import Dataset

from mmrecur.analysis.gradient_flow import of_epoch, read_records
from mmrecur.engine import AuxiliaryLossHook, GradientFlowHook
from mmrecur.engine.hooks.gradient_flow import shared_filters
from mmrecur.errors import ToolError
from mmrecur.models.backbones import ResNetShared
from tests.tool_module import load_tool


class Images(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))


class Model(BaseModel):
    """A backbone with a loss that keeps the gradients at the end of a step."""

    def __init__(self, **backbone: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = ResNetShared(20, base_channels=4, shared_rank=2, **backbone)
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, inputs: list[Tensor], mode: str = 'loss') -> dict[str, Tensor]:
        self.keep()
        return dict(loss=self.backbone(torch.stack(list(inputs)))[-1].square().mean())

    def keep(self) -> None:
        filters = shared_filters(self)
        if all(weight.grad is not None for weight in filters.values()):
            self.seen.append({name: weight.grad.clone() for name, weight in filters.items()})

    def _run_forward(self, data: Any, mode: str) -> Any:
        return self(data, mode=mode)


def run(work_dir: Path, interval: int = 2, scaler: Any = None, **backbone: Any) -> Model:
    runner = Runner(
        model=Model(**backbone),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Images(), batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        experiment_name=work_dir.name,
        log_level='ERROR',
        randomness=dict(seed=0),
    )
    # the gradients are there until the next step clears them
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper.zero_grad = lambda **_: None
    if scaler is not None:
        wrapper = runner.optim_wrapper
        wrapper.loss_scaler = scaler
        wrapper.backward = lambda loss: scaler.scale(loss).backward()
        wrapper.step = lambda: (scaler.step(wrapper.optimizer), scaler.update())
    runner.register_hook(AuxiliaryLossHook())
    runner.register_hook(GradientFlowHook(interval))
    runner.train()
    runner.model.keep()
    return runner.model


def test_records_are_the_gradients_of_the_steps(tmp_path: Path) -> None:
    model = run(tmp_path / 'run')
    records = read_records(tmp_path / 'run')
    assert [(r.epoch, r.iteration) for r in records] == [(0, 1), (0, 3), (1, 5), (1, 7)]
    # nothing clears the gradients in this run, so they add up: those of a step are a difference
    names = {f'layer{i}.basis.conv{j}' for i in (1, 2, 3) for j in (1, 2)}
    for record in records:
        assert record.maximum.keys() == record.mean.keys() == names
        after, before = model.seen[record.iteration], model.seen[record.iteration - 1]
        for name in names:
            step = (after[name] - before[name]).abs()
            assert record.maximum[name] == pytest.approx(step.max().item(), rel=1e-3)
            assert record.mean[name] == pytest.approx(step.mean().item(), rel=1e-3)


def test_the_scale_of_mixed_precision_is_taken_out(tmp_path: Path) -> None:
    run(tmp_path / 'plain', 1)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10, growth_interval=1, growth_factor=8.0)
    run(tmp_path / 'scaled', 1, scaler)
    assert scaler.get_scale() > 2.0**10
    # the first step: later ones add to scaled gradients here
    plain, scaled = (read_records(tmp_path / name)[0].mean for name in ('plain', 'scaled'))
    assert scaled == pytest.approx(plain, rel=1e-4)


def test_frozen_bases_have_no_record_and_others_are_refused(tmp_path: Path) -> None:
    run(tmp_path / 'frozen', frozen_stages=2)
    assert set(read_records(tmp_path / 'frozen')[0].mean) == {'layer3.basis.conv1', 'layer3.basis.conv2'}
    with pytest.raises(ValueError, match='has no shared filter bases, allowed'):
        run(tmp_path / 'plain', share=None)
    with pytest.raises(ValueError, match='interval=0, allowed'):
        GradientFlowHook(0)


def test_epochs_are_chosen(tmp_path: Path) -> None:
    run(tmp_path / 'run', 1)
    records = read_records(tmp_path / 'run')
    assert (
        [r.iteration for r in of_epoch(records, -1)]
        == [4, 5, 6, 7]
        == [r.iteration for r in of_epoch(records, 1)]
    )
    with pytest.raises(ValueError, match='epoch=2, allowed: 0, 1'):
        of_epoch(records, 2)

    tool = load_tool('analysis_tools/plot_gradient_flow.py')
    with pytest.raises(ToolError, match='No such file.*nowhere'):
        tool.main([str(tmp_path / 'nowhere')])
    (tmp_path / 'nowhere').mkdir()
    with pytest.raises(ToolError, match='was the run made with mmrecur.GradientFlowHook'):
        tool.main([str(tmp_path / 'nowhere')])


def test_the_tool_draws_and_summarises(tmp_path: Path, capsys: Any) -> None:
    tool = load_tool('analysis_tools/plot_gradient_flow.py')
    run(tmp_path / 'both', 1)
    run(tmp_path / 'neither', 1, basis_norm=False, loss_ortho=None)
    picture = tmp_path / 'flow.png'
    runs = [str(tmp_path / 'both'), f'without={tmp_path / "neither"}']
    tool.main([*runs, '--epoch', '0', '--out', str(picture), '--json'])
    summary = json.loads(capsys.readouterr().out)
    assert set(summary) == {'both', 'without'} and picture.stat().st_size > 5000
    records = of_epoch(read_records(tmp_path / 'both'), 0)
    largest = max(record.maximum['layer1.basis.conv1'] for record in records)
    assert summary['both']['layer1.basis.conv1']['largest'] == pytest.approx(largest)
