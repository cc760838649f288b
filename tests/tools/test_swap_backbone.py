"""tools/swap_backbone.py writes the files of a model that computes the function of the old one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmrecur.apis.demo_inputs import demo_inputs
from mmrecur.errors import ToolError
from tests.helpers.swaps import build_from, save_trained
from tests.tool_module import load_tool

DETECTOR = """
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=5)))
"""
CLASSIFIER = """
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    head=dict(in_channels=256, num_classes=7))
"""


@pytest.fixture(scope='module')
def tool() -> Any:
    return load_tool('swap_backbone.py')


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Module]:
    """Return a user's config, a checkpoint of its model, and the model."""
    folder = tmp_path_factory.mktemp('detector')
    config, checkpoint = folder / 'mine.py', folder / 'mine.pth'
    config.write_text(DETECTOR)
    return (
        config,
        checkpoint,
        save_trained(checkpoint, config, meta={'dataset_meta': {'classes': ('a', 'b')}}),
    )


def predictions(model: nn.Module) -> Any:
    with torch.no_grad():
        return model.test_step(demo_inputs(model, (64, 96)))


def test_a_trained_detector_predicts_the_same(tool: Any, detector: Any, tmp_path: Path, capsys: Any) -> None:
    config, checkpoint, old = detector
    out = tmp_path / 'new' / 'swapped.py'
    args = [str(config), '--backbone', 'rla-eca-resnet', '--out', str(out), '--checkpoint', str(checkpoint)]
    trial = tool.main(args)
    assert trial.grafted.difference < 1e-6

    new, cfg = build_from(out)
    assert cfg.load_from == str(out.with_suffix('.pth')) and 'init_cfg' not in cfg.model.backbone
    assert cfg.model.backbone.attention == 'eca' and cfg.model.backbone.frozen_stages == 0
    saved = torch.load(cfg.load_from, weights_only=True)
    assert saved['meta']['dataset_meta'] == {'classes': ('a', 'b')}
    new.load_state_dict(saved['state_dict'])
    # all boxes, scores and classes, of the whole detector
    for before, after in zip(predictions(old), predictions(new), strict=True):
        before, after = before.pred_instances, after.pred_instances
        assert len(before) == len(after) > 0
        torch.testing.assert_close(after.scores, before.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(after.bboxes, before.bboxes, rtol=0, atol=1e-3)
        assert torch.equal(after.labels, before.labels)
    report = json.loads(out.with_suffix('.report.json').read_text())
    sources = {*report['copied'].values(), *(s for t in report['transformed'].values() for s in t['sources'])}
    assert sources == set(old.state_dict()) and report['unused'] == {}
    new_keys = {*report['copied'], *report['transformed'], *report['initial']}
    assert new_keys == set(new.state_dict())

    printed = capsys.readouterr().out
    assert 'the same function as before' in printed and 'loss_rpn_cls' in printed
    assert f'{sum(p.numel() for p in new.parameters()):,}' in printed


def test_the_folder_may_move(tool: Any, detector: Any, tmp_path: Path) -> None:
    config, checkpoint, _ = detector
    base = tmp_path / 'first' / 'mine.py'
    base.parent.mkdir()
    base.write_text(config.read_text())
    args = ['--backbone', 'rla-resnet', '--checkpoint', str(checkpoint)]
    tool.main([str(base), *args, '--out', str(base.parent / 'sub' / 'swapped.py')])
    moved = base.parent.rename(tmp_path / 'second')
    cfg = Config.fromfile(moved / 'sub' / 'swapped.py')
    assert cfg.load_from == str(moved / 'sub' / 'swapped.pth')
    assert cfg.model.backbone.base_channels == 8


def test_a_classifier_keeps_its_scores(tool: Any, tmp_path: Path) -> None:
    config, checkpoint, out = (tmp_path / name for name in ('mine.py', 'mine.pth', 'swapped.py'))
    config.write_text(CLASSIFIER)
    old = save_trained(checkpoint, config)
    args = ['--backbone', 'rla-resnet', '--checkpoint', str(checkpoint)]
    tool.main([str(config), *args, '--out', str(out)])
    new, cfg = build_from(out)
    # classifiers also read the recurrent state, with weights that are zero at first
    assert cfg.model.backbone.with_hidden and cfg.model.head.in_channels == 256 + 32
    new.load_state_dict(torch.load(cfg.load_from, weights_only=True)['state_dict'])
    for before, after in zip(predictions(old), predictions(new), strict=True):
        torch.testing.assert_close(after.pred_score, before.pred_score, rtol=0, atol=1e-6)


def test_as_a_process_with_a_library_config(workshop: Any, tmp_path: Path) -> None:
    out = tmp_path / 'swapped.py'
    printed = workshop.run(
        'swap_backbone.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco', '--backbone', 'rla-resnet',
        '--out', out, '--shape', '64', '96', own=True,
    )  # fmt: skip
    assert out.read_text() == (
        '"""retinanet_r50_fpn_1x_coco with RLAResNet(depth=50) instead of ResNet(depth=50)."""\n\n'
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n\n"
        "custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)\n"
        'model = dict(\n'
        '    backbone=dict(\n'
        '        _delete_=True,\n'
        "        type='mmrecur.RLAResNet',\n"
        '        depth=50,\n'
        '        frozen_stages=0,\n'
        '        norm_eval=True,\n'
        "        init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://resnet50'),\n"
        '    ),\n'
        ')\n'
    )
    assert '37,968,692' in printed and '38,250,228 (+0.7 %)' in printed
    assert 'all 210 trainable tensors of the backbone got a gradient' in printed
    assert [path.name for path in tmp_path.iterdir()] == ['swapped.py']


def test_the_swapped_config_trains(workshop: Any, detector: Any, tmp_path: Path, tool: Any) -> None:
    config, checkpoint, _ = detector
    data = workshop.root / 'detection'
    mine = tmp_path / 'mine.py'
    mine.write_text(
        f'_base_ = {str(config)!r}\n'
        f'load = dict(dataset=dict(data_root={str(data) + "/"!r}, filter_cfg=None,\n'
        "    metainfo=dict(classes=('circle', 'rectangle', 'triangle', 'star', 'ring')),\n"
        "    ann_file='annotations/instances_train.json', data_prefix=dict(img='train/'), indices=2),\n"
        '    num_workers=0, persistent_workers=False)\n'
        'train_dataloader = load\n'
        'train_cfg = dict(max_epochs=1)\n'
        'val_cfg = val_dataloader = val_evaluator = None\n'
    )
    out = tmp_path / 'swapped.py'
    tool.main([str(mine), '--backbone', 'rla-resnet', '--out', str(out), '--checkpoint', str(checkpoint)])
    printed = workshop.run('train.py', out, '--work-dir', tmp_path / 'work', '--num-pictures', '0')
    assert f'Loads checkpoint by local backend from path: {out.with_suffix(".pth")}' in printed
    assert 'unexpected key' not in printed and 'missing keys' not in printed
    assert (tmp_path / 'work' / 'epoch_1.pth').is_file()


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda state: state.pop('neck.fpn_convs.0.conv.bias'),
            "does not match the base's model: it lacks neck.fpn",
        ),
        (
            lambda state: state.update({'mask.w': torch.ones(1)}),
            "does not match the base's model: it also has mask.w",
        ),
        (
            lambda state: state.update({'backbone.conv1.weight': torch.ones(1)}),
            "does not match the base's model: .*size mismatch for backbone.conv1.weight",
        ),
        (lambda state: state.clear(), 'no tensors in the checkpoint'),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    tool: Any, detector: Any, tmp_path: Path, change: Any, message: str
) -> None:
    config, checkpoint, _ = detector
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    change(state)
    wrong = tmp_path / 'wrong.pth'
    torch.save({'state_dict': state}, wrong)
    out = tmp_path / 'out' / 'swapped.py'
    args = [str(config), '--backbone', 'rla-resnet', '--out', str(out), '--checkpoint', str(wrong)]
    with pytest.raises(ToolError, match=f'(?s){message}'):
        tool.main(args)
    assert not out.parent.exists()


def test_nothing_that_is_read_is_overwritten(tool: Any, detector: Any, tmp_path: Path) -> None:
    config, checkpoint, _ = detector
    text = config.read_text()
    backbone = ['--backbone', 'rla-resnet']
    with pytest.raises(ToolError, match='mine.py would overwrite BASE_CONFIG'):
        tool.main([str(config), *backbone, '--out', str(config)])
    other = tmp_path / 'base.py'
    other.write_text(text)
    with pytest.raises(ToolError, match='mine.pth would overwrite --checkpoint'):
        out = str(checkpoint.with_suffix('.py'))
        tool.main([str(other), *backbone, '--out', out, '--checkpoint', str(checkpoint)])
    assert config.read_text() == text


@pytest.mark.parametrize(
    'args, message',
    [
        (['absent.py'], "config 'absent.py' does not exist"),
        (['mmdet::absent'], "'mmdet::absent' does not exist"),
        (['absent_library::x.py'], "the package 'absent_library' is not installed"),
    ],
)
def test_wrong_places_are_named(tool: Any, tmp_path: Path, args: list[str], message: str) -> None:
    with pytest.raises(ToolError, match=message):
        tool.main([*args, '--backbone', 'rla-resnet', '--out', str(tmp_path / 'x.py')])


def test_wrong_uses_are_named(tool: Any, detector: Any, tmp_path: Path) -> None:
    config, checkpoint, _ = detector
    start = [str(config), '--backbone', 'rla-resnet', '--out']
    with pytest.raises(ToolError, match='allowed: a path that ends in .py'):
        tool.main([*start, str(tmp_path / 'x.yaml')])
    with pytest.raises(ToolError, match='--init none would have no effect'):
        tool.main([*start, str(tmp_path / 'x.py'), '--checkpoint', str(checkpoint), '--init', 'none'])
    lazy = tmp_path / 'lazy.py'
    lazy.write_text(
        'from mmengine.config import read_base\nwith read_base():\n    from .retinanet import *\n'
    )
    with pytest.raises(ToolError, match='new style'):
        tool.main([str(lazy), *start[1:], str(tmp_path / 'x.py')])
    assert not (tmp_path / 'x.py').exists()


def test_a_file_to_start_from_is_tried_and_its_fit_printed(
    tool: Any, detector: Any, tmp_path: Path, capsys: Any
) -> None:
    config, _, model = detector
    plain, out = tmp_path / 'plain.pth', tmp_path / 'swapped.py'
    torch.save(model.backbone.state_dict(), plain)
    start = [str(config), '--out', str(out), '--shape', '64', '96', '--init']
    tool.main([*start, str(plain), '--backbone', 'resnet50-shared'])
    printed = capsys.readouterr().out
    assert 'Tried now: not the same function as before' in printed
    assert printed.count("||W - W'|| / ||W||: ") == 1 and 'norm_eval would prevent training' in printed
    backbone = Config.fromfile(out).model.backbone
    assert 'norm_eval' not in backbone and 'frozen_stages' not in backbone
    out.unlink()
    with pytest.raises(ToolError, match="absent.pth' does not exist"):
        tool.main([*start, str(tmp_path / 'absent.pth'), '--backbone', 'rla-resnet'])
    assert not out.exists()
