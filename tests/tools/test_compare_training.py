"""tools/compare_training.py on real processes."""

from __future__ import annotations

import re
from pathlib import Path

from mmrecur.models.backbones import RLAResNet


def test_trains_compares_and_does_nothing_twice(workshop, classifier: Path) -> None:
    other = workshop.root / 'other.py'
    other.write_text(f"_base_ = '{classifier.name}'\nmodel = dict(backbone=dict(rla_channels=8))\n")
    options = ['--seeds', '5', '--work-dir', 'runs', '--plot', 'curves.png', '--size-plot', 'sizes.png']
    options += ['--cfg-options', 'train_cfg.max_epochs=2', 'model.backbone.attention=eca']
    options += ['--train-args', '--channels-last']
    command = ['compare_training.py', classifier, other, *options]
    # the command is killed in the second epoch of a run and then repeated
    output = workshop.run(*command, KILL_AT_ITERATION='3', code=1)
    assert 'the training failed; the end of runs/classifier/seed-5/output.txt' in output
    output = workshop.run(*command)
    rows = re.findall(r'^ *(classifier|other) +([\d,]+) +(.+)$', output, re.MULTILINE)
    assert [row[0] for row in rows] == ['classifier', 'other']
    assert len(rows[0][2].split()) == 3 and len(rows[1][2].split()) == 4
    # including the changes by the options
    backbone = RLAResNet(depth=50, base_channels=8, attention='eca')
    assert int(rows[0][1].replace(',', '')) == sum(p.numel() for p in backbone.parameters()) + 257 * 5
    for name in ('curves.png', 'sizes.png'):
        assert (workshop.root / name).stat().st_size > 10_000
    logs = sorted((workshop.root / 'runs').glob('*/seed-*/*/vis_data/scalars.json'))
    assert len(logs) == 3  # two runs; the first was resumed once
    # the third call trains nothing
    assert 'Training' not in workshop.run(*command, own=True)
    assert sorted((workshop.root / 'runs').glob('*/seed-*/*/vis_data/scalars.json')) == logs


def test_refuses_what_it_cannot_compare(workshop, classifier: Path) -> None:
    output = workshop.run('compare_training.py', classifier, classifier, code=2)
    assert 'two have the same name' in output
    options = ['--seeds', '0', '--work-dir', 'failing', '--cfg-options']
    output = workshop.run('compare_training.py', classifier, *options, 'model.head.num_classes=0', code=1)
    assert 'the model cannot be built' in output
    options.append('train_dataloader.batch_size=0')
    assert 'the training failed' in workshop.run('compare_training.py', classifier, *options, code=1)
