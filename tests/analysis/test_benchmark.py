"""Model specs and the timing of tools/benchmark.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmrecur.analysis.benchmark import evaluation_call, inference_form, peak_memory, training_call
from mmrecur.apis.specs import build_model, read_model
from mmrecur.errors import ToolError

ROOT = Path(__file__).parents[2]


def test_specs_name_configs_and_classes() -> None:
    cfg, scope = read_model("mmrecur.RLAResNet(depth=50, attention='eca')", backbone_only=True)
    assert cfg == dict(type='mmrecur.RLAResNet', depth=50, attention='eca') and scope == 'mmrecur'
    config = str(ROOT / 'configs/rla/faster-rcnn_rla-r101_fpn_1x_coco.py')
    assert read_model(config, backbone_only=True)[0]['depth'] == 101
    plain, scope = read_model('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', backbone_only=True)
    assert plain['type'] == 'ResNet' and scope == 'mmdet'


@pytest.mark.parametrize('spec', ['missing.py', 'mmrecur.RLAResNet(50)', 'mmrecur.RLAResNet(depth='])
def test_a_wrong_spec_is_named(spec: str) -> None:
    with pytest.raises(ToolError, match=re.escape(repr(spec))):
        read_model(spec)


def test_plain_models_are_fused_in_a_copy() -> None:
    model = build_model(*read_model('mmpretrain.ResNet(depth=18, base_channels=8, stem_channels=8)'))
    fused = inference_form(model)
    x = torch.randn(1, 3, 32, 32)
    model.eval()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    with torch.no_grad():
        torch.testing.assert_close(fused(x)[-1], model(x)[-1], rtol=1e-4, atol=1e-5)


def test_peak_memory_counts_maps_that_are_alive_together() -> None:
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.ReLU())
    x = torch.randn(1, 4, 64, 64)
    # input apart, two maps of 64 KiB are alive while the second ReLU runs
    assert peak_memory(evaluation_call(model, x), x.device) == 2 * x.nbytes
    conv = nn.ModuleList([nn.Conv2d(4, 4, 1)])
    conv.forward = lambda x: [conv[0](x)]
    assert peak_memory(training_call(conv, x), x.device) >= 2 * x.nbytes


def test_the_tool_prints_json_with_a_reference_of_ratio_one() -> None:
    small = 'base_channels=8, stem_channels=8, out_indices=(0, 1, 2, 3))'
    run = subprocess.run(
        [
            sys.executable, str(ROOT / 'tools/benchmark.py'), 'models',
            'mmrecur.RLAResNet(depth=50, base_channels=8, rla_channels=4)',
            '--against', f'mmpretrain.ResNet(depth=50, {small}',
            '--deploy', '--rounds', '4', '--shape', '2', '3', '32', '32', '--json',
        ],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    plain, ours = json.loads(run.stdout)
    assert plain['ratio'] == 1 and ours['ratio'] > 0
    assert ours['shape'] == [2, 3, 32, 32] and ours['flops'] > plain['flops'] > 0
    assert ours['parameters'] > plain['parameters'] and ours['peak_bytes'] > 0
