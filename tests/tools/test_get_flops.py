"""tools/analysis_tools/get_flops.py: known parameters and multiply-adds of known models."""

import json

import pytest

from mmrecur.errors import ToolError
from tests.tool_module import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/get_flops.py')


@pytest.fixture
def measure(tool, capsys):
    def run(*args):
        tool.main([*map(str, args), '--json'])
        return json.loads(capsys.readouterr().out)

    return run


def test_detector_as_a_process(workshop):
    # A real process. The other tests parse all of stdout, so they check that it contains only JSON.
    output = workshop.run(
        'analysis_tools/get_flops.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        '--shape', '800', '1280', own=True,
    )  # fmt: skip
    total = next(line for line in output.splitlines() if line.strip().startswith('total')).split()
    assert total[1:3] == ['41,753,056', '41,527,712']
    assert float(total[4]) == pytest.approx(206.8, abs=0.1)
    assert '1x3x800x1280 (N x C x H x W)' in output.replace('\n', '')


def test_detector_pads_as_in_use(measure, detector, trained, monkeypatch):
    monkeypatch.syspath_prepend(str(trained[1].parent))
    result = measure(detector, '--shape', 50, 70)
    assert result['input_shape'] == [1, 3, 64, 96]
    assert set(result['modules']) == {'backbone', 'neck', 'rpn_head', 'roi_head'}
    assert sum(m['parameters'] for m in result['modules'].values()) == result['parameters']


def test_classifiers(measure):
    plain = measure('mmpretrain::resnet/resnet50_8xb32_in1k.py')
    assert plain['parameters'] == plain['trainable'] == 25557032
    assert plain['multiply_adds'] == pytest.approx(4.11e9, rel=0.01)
    rla = measure('mmrecur::rla/rla-resnet50_4xb64_in1k.py', '--shape', 224)
    assert rla['gibi_multiply_adds'] == pytest.approx(4.17, rel=0.01)
    assert rla['multiply_adds'] == pytest.approx(rla['gibi_multiply_adds'] * 2**30)
    backbone = measure('mmrecur::rla/rla-resnet50_4xb64_in1k.py', '--backbone-only')
    assert backbone['multiply_adds'] == rla['modules']['backbone']['multiply_adds']


@pytest.mark.parametrize(
    'config',
    [
        ['mmrecur.RLAResNet(depth=50, base_channels=8)'],
        ["dict(type='mmrecur.RLAResNet', depth=50, base_channels=8)"],
        ['mmrecur.RLAResNet', '--cfg-options', 'depth=50', 'base_channels=8'],
    ],
)
def test_bare_backbone(measure, config):
    from mmrecur.models.backbones import RLAResNet

    result = measure(*config, '--shape', 64, 32)
    model = RLAResNet(depth=50, base_channels=8)
    assert result['parameters'] == sum(p.numel() for p in model.parameters())
    assert result['input_shape'] == [1, 3, 64, 32]
    frozen = measure(*config, *([] if len(config) > 1 else ['--cfg-options']), 'frozen_stages=4')
    assert frozen['parameters'] == result['parameters'] and frozen['trainable'] == 0


@pytest.mark.parametrize(
    'config, message',
    [
        ('mmrecur.RLAResNet(depth=51)', '51'),
        ('mmrecur.RLAResNet(50)', 'positional arguments are not allowed'),
        ("dict(type='mmrecur.RLAResNet', depth=len('ab'))", 'not a module with literal arguments'),
        ('dict(depth=50)', 'no type'),
        ('mmrecur.Absent', 'Absent'),
        ('absent.py', 'does not exist'),
        ('absent_package.Net', 'absent_package'),
    ],
)
def test_wrong_configs_are_named(tool, config, message):
    with pytest.raises(ToolError, match=message):
        tool.main([config])


def test_wrong_shapes_are_named(tool, capsys):
    for shape in (['0'], ['1', '2', '3']):
        with pytest.raises(SystemExit):
            tool.main(['mmrecur.RLAResNet', '--shape', *shape])
        assert '--shape' in capsys.readouterr().err
