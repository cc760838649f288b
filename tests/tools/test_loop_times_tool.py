"""tools/analysis_tools/loop_times.py on tiny classifiers and detectors."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from mmrecur.analysis.loop_times import LoopTimes
from mmrecur.apis.specs import build_model
from mmrecur.apis.tying import read_whole_config
from mmrecur.errors import ToolError
from tests.helpers import halve_batches, randomise_norms
from tests.tool_module import load_tool

BACKBONE = """
custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)
backbone = dict(type='mmrecur.DRResNet', depth=None, blocks=(1, 2, 2), loops=(1, 2, 3), stem='cifar',
                base_channels=4, loss_gate=None)
"""
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16, loss=dict(type='CrossEntropyLoss')))
data_preprocessor = dict(num_classes=3, mean=[128] * 3, std=[64] * 3, to_rgb=True)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
test_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='', pipeline=pipeline))
"""
DETECTOR = """
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
backbone['out_indices'] = (0, 1, 2)
model = dict(
    backbone=dict(_delete_=True, **backbone),
    neck=dict(in_channels=[4, 8, 16], out_channels=8, start_level=0),
    bbox_head=dict(num_classes=1, in_channels=8, feat_channels=8, stacked_convs=1))
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(48, 32), keep_ratio=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))]
test_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    dataset=dict(data_root=data_root, ann_file='instances.json', data_prefix=dict(img=''),
                 metainfo=dict(classes=('thing',)), pipeline=pipeline))
"""


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/loop_times.py')


def write_images(root: Path, size: tuple[int, int]) -> list[str]:
    """Write ten random images into three folders; return their names in order."""
    names, generator = [], np.random.default_rng(0)
    for index in range(10):
        name = f'{"abc"[index // 4]}/{index}.png'
        pixels = generator.integers(0, 20 * index + 40, (*size, 3), dtype=np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), pixels)
        names.append(name)
    return names


def pixels_of(path: Path) -> torch.Tensor:
    """Return a preprocessed image of the classifier, shape (1, 3, H, W)."""
    pixels = cv2.imread(str(path))[..., ::-1].copy()
    return (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 128) / 64


def write_config(path: Path, model: str, data: Path) -> Path:
    path.write_text(f"data_root = '{data.as_posix()}'\n{BACKBONE}{model}")
    return path


def save_checkpoint(config: Path, path: Path, images: list[Path]) -> nn.Module:
    """Save weights whose gates let half of the images pass; return the model."""
    cfg = read_whole_config(str(config))
    outside = {key: cfg[key] for key in ('data_preprocessor',) if key in cfg}  # a classifier's
    model = build_model({**outside, **cfg.model}, cfg.default_scope).eval()
    torch.manual_seed(0)
    randomise_norms(model.backbone)
    for block in model.backbone.loop_blocks().values():
        nn.init.normal_(block.gate.fc2.weight, std=10)
    halve_batches(model.backbone, torch.cat([pixels_of(image) for image in images]))
    torch.save(dict(state_dict=model.state_dict()), path)
    return model


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> tuple[Path, Path, nn.Module, list[str]]:
    pytest.importorskip('mmpretrain')
    root = tmp_path_factory.mktemp('loops')
    names = write_images(root / 'images', (16, 16))
    config = write_config(root / 'classifier.py', CLASSIFIER, root / 'images')
    model = save_checkpoint(config, root / 'weights.pth', [root / 'images' / name for name in names])
    return config, root / 'weights.pth', model, names


def counts_of(model: nn.Module, image: Path) -> dict[str, int]:
    """Count the iterations of each loop for an image by the calls of its block."""
    counts = {}
    blocks = model.backbone.loop_blocks()
    handles = []
    for name, block in blocks.items():
        counts[name] = 0

        def count(module: nn.Module, args: tuple, output: object, name: str = name) -> None:
            counts[name] += len(args[0])

        handles.append(block.block.register_forward_hook(count))
    with torch.no_grad():
        model.backbone(pixels_of(image))
    for handle in handles:
        handle.remove()
    return counts


def test_classifier(tool, classifier, tmp_path: Path, capsys) -> None:
    config, weights, model, names = classifier
    tool.main([str(config), str(weights), '--out-dir', str(tmp_path / 'new' / 'out'), '--num-pictures', '3'])
    printed = capsys.readouterr().out
    out = tmp_path / 'new' / 'out'
    result = json.loads((out / 'loop_times.json').read_text())
    root = config.parent / 'images'
    assert [image['image'] for image in result['images']] == [str(root / name) for name in names]
    expected = [counts_of(model, root / name) for name in names]
    assert len({tuple(own.values()) for own in expected}) > 1
    assert [image['loops'] for image in result['images']] == expected
    totals = [sum(own.values()) for own in expected]
    assert [image['iterations'] for image in result['images']] == totals
    assert result['num_images'] == 10 and result['iterations']['limit'] == 5
    assert result['iterations']['mean'] == pytest.approx(np.mean(totals))
    assert result['iterations']['std'] == pytest.approx(np.std(totals))
    assert sum(own['images'] for own in result['accuracy'].values()) == 10
    right = sum(own['images'] * own['accuracy'] for own in result['accuracy'].values())
    assert right == pytest.approx(sum(image['correct'] for image in result['images']))
    work = result['multiply_adds']
    assert work['counted'] == 'model' and work['input_size'] == [16, 16]
    assert 0 < work['average'] < work['maximum']
    assert all(name in printed for name in ('layer2.1', 'layer3.1', 'ratio', 'easy_and_hard.png'))
    for name in ('loop_times', 'easy_and_hard', 'passed_and_skipped'):
        assert cv2.imread(str(out / f'{name}.png')).std() > 1


def test_pictures_show_the_image_files(
    tool, classifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, weights, _, names = classifier
    sheets = []
    draw = tool.plot_easy_and_hard
    monkeypatch.setattr(tool, 'plot_easy_and_hard', lambda *args: sheets.append(args) or draw(*args))
    tool.main([str(config), str(weights), '--out-dir', str(tmp_path), '--num-images', '7'])
    ((easy, hard, limit),) = sheets
    images = json.loads((tmp_path / 'loop_times.json').read_text())['images']
    assert len(images) == 7 and limit == 5 and (len(easy), len(hard)) == (4, 3)
    totals = [image['iterations'] for image in images]
    times = LoopTimes({'all': limit}, {'all': np.array(totals)})
    order, rest = times.easiest_and_hardest(10)
    for index, (pixels, iterations) in zip(order + rest, easy + hard, strict=True):
        assert iterations == totals[index]
        bgr = cv2.imread(str(config.parent / 'images' / names[index]))
        assert np.array_equal(pixels, bgr[..., ::-1])


def test_pictures_are_pairs_of_a_class(
    tool, classifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, weights, _, names = classifier
    sheets = []
    draw = tool.plot_easy_and_hard
    monkeypatch.setattr(tool, 'plot_easy_and_hard', lambda *args: sheets.append(args) or draw(*args))
    tool.main([str(config), str(weights), '--out-dir', str(tmp_path), '--per-class'])
    ((easy, hard, _),) = sheets
    images = json.loads((tmp_path / 'loop_times.json').read_text())['images']
    totals: dict[str, list[int]] = {}
    for name, image in zip(names, images, strict=True):
        totals.setdefault(Path(name).parts[0], []).append(image['iterations'])
    pairs = [(low[1], high[1]) for low, high in zip(easy, hard, strict=True)]
    assert sorted(pairs) == sorted((min(own), max(own)) for own in totals.values())
    assert len(pairs) == len(totals) > 1


def test_detector(tool, tmp_path: Path, capsys) -> None:
    pytest.importorskip('mmdet')
    names = write_images(tmp_path, (32, 40))
    images = [dict(id=i, file_name=name, height=32, width=40) for i, name in enumerate(names)]
    box = dict(category_id=0, bbox=[2, 2, 9, 9], area=81, iscrowd=0)
    annotations = [dict(box, id=i, image_id=i) for i in range(10)]
    content = dict(images=images, annotations=annotations, categories=[dict(id=0, name='thing')])
    (tmp_path / 'instances.json').write_text(json.dumps(content))
    config = write_config(tmp_path / 'detector.py', DETECTOR, tmp_path)
    save_checkpoint(config, tmp_path / 'weights.pth', [tmp_path / name for name in names])
    tool.main([str(config), str(tmp_path / 'weights.pth'), '--out-dir', str(tmp_path / 'out')])
    result = json.loads((tmp_path / 'out' / 'loop_times.json').read_text())
    assert [Path(image['image']).name for image in result['images']] == [Path(n).name for n in names]
    work = result['multiply_adds']
    assert work['counted'] == 'backbone' and work['input_size'] == [32, 64]
    assert 'accuracy' not in result and 'Multiply-adds of the backbone at 32x64' in capsys.readouterr().out
    with pytest.raises(ToolError, match='--per-class needs an image classifier'):
        tool.main([str(config), str(tmp_path / 'weights.pth'), '--out-dir', str(tmp_path), '--per-class'])


@pytest.mark.parametrize('deploy', [False, True])
def test_networks_are_timed_on_the_images(classifier, capsys, deploy: bool) -> None:
    timing = load_tool('benchmark.py')
    config, weights, _, _ = classifier
    options = ['--num-images', '7', '--batch-size', '3', '--rounds', '4', '--device', 'cpu']
    timing.main(['images', *[str(config), str(weights)] * 2] + options + ['--deploy'] * deploy)
    printed = capsys.readouterr().out
    assert '7 images in batches of 3' in printed and ('inference form' in printed) == deploy
    rows = [line.strip('│ ').split('│') for line in printed.splitlines() if line.startswith('│')]
    assert [float(row[-2]) for row in rows if '-' in row[-1]][0] == 1

    args = timing.parse_args(['images', str(config), str(weights), *options[:4]] + ['--deploy'] * deploy)
    cfg, model = timing.load_network(str(config), str(weights), args)
    seen = []
    model.backbone.conv1.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    loader, _ = timing.build_test_loader(cfg, 4, 3, spread=True)
    timing.images_call(cfg, model, [*loader])()
    images = [config.parent / 'images' / classifier[3][index] for index in (0, 2, 5, 7)]
    assert all(torch.allclose(x, pixels_of(path)[0]) for x, path in zip(seen, images, strict=True))


def test_timing_needs_a_checkpoint_for_each_config(capsys) -> None:
    with pytest.raises(SystemExit):
        load_tool('benchmark.py').parse_args(['images', 'a.py', 'a.pth', 'b.py'])
    assert '3 files given; allowed: a checkpoint after each config' in capsys.readouterr().err


def test_calibrated_gates_are_written(classifier, tmp_path: Path, capsys) -> None:
    calibrate = load_tool('model_converters/calibrate_gates.py')
    config, weights, model, names = classifier
    data = dict(type='CustomDataset', data_prefix=str(config.parent / 'images'), pipeline=[])
    options = [f'train_dataloader.dataset.{key}={value}' for key, value in data.items()]
    out = tmp_path / 'calibrated.pth'
    run = [str(config), str(weights), str(out), '--rate', '0.4', '--cfg-options', *options]
    calibrate.main(run)
    assert 'layer3.1: score of passing' in capsys.readouterr().out
    expected = copy.deepcopy(model)
    images = torch.cat([pixels_of(config.parent / 'images' / name) for name in sorted(names)])
    calibrate.calibrate_gates(expected.backbone, images, 0.4)
    state = torch.load(out)['state_dict']
    assert state.keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.allclose(state[key], value, atol=1e-5), key

    with pytest.raises(ToolError, match='has no train_dataloader'):
        calibrate.main(run[:5])
    with pytest.raises(ToolError, match='rate=None for a backbone without target rate'):
        calibrate.main([*run[:3], *run[5:]])
    with pytest.raises(ToolError, match='is the checkpoint itself'):
        calibrate.main([str(config), str(weights), str(weights)])


def test_wrong_configs_and_options_are_rejected(tool, classifier, tmp_path: Path, capsys) -> None:
    config, weights, model, _ = classifier
    run = [str(config), str(weights), '--out-dir', str(tmp_path)]
    with pytest.raises(ToolError, match='has no test_dataloader'):
        tool.main([*run, '--cfg-options', 'test_dataloader=None'])
    with pytest.raises(ToolError, match='does not fit the model'):
        tool.main([*run, '--cfg-options', 'model.backbone.base_channels=8'])
    plain = {key: value for key, value in model.state_dict().items() if '.gate.' not in key}
    torch.save(dict(state_dict=plain), tmp_path / 'plain.pth')
    run[1] = str(tmp_path / 'plain.pth')
    with pytest.raises(ToolError, match='DRResNet has no gates, allowed: a backbone with gated loops'):
        tool.main([*run, '--cfg-options', 'model.backbone.gated=False'])
    with pytest.raises(SystemExit):
        tool.parse_args(['a.py', 'a.pth', '--num-images', '0'])
    assert '--num-images: 0 given; allowed: at least 1' in capsys.readouterr().err
    assert not [*tmp_path.glob('*.png')]
