"""tools/analysis_tools/plot_cam.py: heat maps of classifiers on a photograph, and refused arguments."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrecur.errors import ToolError
from tests.tool_module import load_tool

ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'configs/demo/cifar10_16px'
needs_library = pytest.mark.skipif(
    importlib.util.find_spec('pytorch_grad_cam') is None, reason='pip install grad-cam'
)


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/plot_cam.py')


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / 'photo.png'
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@needs_library
def test_draws_a_map_for_each_classifier(tool, photo: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / 'figures' / 'cam.png'
    models = [['--model', str(DEMO / name)] for name in ('recnet.py', 'resnet32-s16u1-double.py')]
    tool.main([photo, *models[0], *models[1], '--layer', 'layer3[-1]', '--size', '16', '--out', str(out)])
    assert [line.split(':')[0] for line in capsys.readouterr().out.splitlines()] == [
        'recnet', 'resnet32-s16u1-double'
    ]  # fmt: skip
    with Image.open(out) as picture:
        assert picture.width > 2 * picture.height and len(picture.convert('RGB').getcolors(1 << 20)) > 1000


@needs_library
def test_heat_is_the_definition_of_grad_cam(tool, photo: str, tmp_path: Path) -> None:
    config, pixels = str(DEMO / 'recnet.py'), np.full((16, 24, 3), 128, np.uint8)
    pixels[4:8, 4:8] = 250
    args = tool.parse_args([photo, '--model', config, '--target', '3', '--out', str(tmp_path / 'a.png')])
    seen = tool.look(config, None, pixels, args)
    model = tool.build_model(*tool.read_model(config)).eval()
    inputs = dict(inputs=[torch.from_numpy(pixels.transpose(2, 0, 1))])
    inputs = model.data_preprocessor(inputs, False)['inputs']
    maps = []
    model.backbone.layer3[-1].register_forward_hook(lambda *call: maps.append(call[2]))
    scores = model(inputs)[0]
    (grad,) = torch.autograd.grad(scores[3], maps)
    cam = torch.relu((grad.mean((2, 3), keepdim=True) * maps[0]).sum(1))[0].detach()
    low, high = cam.min(), cam.max()
    cam = torch.nn.functional.interpolate((cam - low)[None, None] / (1e-7 + high - low), (16, 24))[0, 0]
    assert seen.heat.shape == (16, 24) and seen.target == 'class 3'
    assert np.corrcoef(seen.heat.ravel(), cam.numpy().ravel())[0, 1] > 0.8
    assert seen.probability == pytest.approx(float(scores.softmax(0)[3]), rel=1e-4)


def test_layers_are_found_by_index_and_name(tool) -> None:
    backbone = tool.build_model(*tool.read_model('mmrecur.SWRN(depth=16, width=1)'))
    assert tool.find_layer(backbone, None) is backbone.layer3[-1]
    assert tool.find_layer(backbone, 'layer2[0].bn1') is tool.find_layer(backbone, 'layer2.0.bn1')
    for wrong in ('layer9', 'layer3[7]', 'layer3[-1', 'layer1.groups', 'relu[0]'):
        with pytest.raises(ToolError, match=r'--layer .* no module at .* the backbone has conv1, layer1'):
            tool.find_layer(backbone, wrong)


def test_classes_are_found_by_number_and_name(tool) -> None:
    scores = torch.tensor([0.2, 0.5, 0.3])
    assert tool.target_class(None, None, scores) == 1
    assert tool.target_class('2', None, scores) == 2
    assert tool.target_class('cat', ['cat', 'dog', 'frog'], scores) == 0
    with pytest.raises(ToolError, match="--target '3', allowed: a number from 0 to 2, or cat, dog, frog"):
        tool.target_class('3', ['cat', 'dog', 'frog'], scores)


def test_a_missing_photograph_or_package_is_named(tool, photo: str, tmp_path: Path, monkeypatch) -> None:
    options = ['--model', str(DEMO / 'recnet.py'), '--out', str(tmp_path / 'cam.png')]
    monkeypatch.setattr(tool.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ToolError, match='pip install grad-cam'):
        tool.main([photo, *options])
    monkeypatch.setattr(tool.importlib.util, 'find_spec', lambda name: name)
    with pytest.raises(ToolError, match='nowhere.jpg: no image'):
        tool.main(['nowhere.jpg', *options])
