"""Use models of this package through the interfaces of OpenMMLab's libraries."""

from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import mmrecur
from mmrecur.apis import list_models, register_models
from mmrecur.apis.runner import load_config
from mmrecur.apis.specs import build_model

ROOT = Path(mmrecur.__file__).parents[1]
DEMO = ROOT / 'configs' / 'demo' / 'faster-rcnn_rla-r50-mini_fpn_shapes.py'
CLASSES = ('circle', 'square')


@pytest.fixture
def image() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 255, (64, 96, 3), dtype=np.uint8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Checkpoint of the demo detector with random weights."""
    model = build_model(load_config(str(DEMO)).model, 'mmdet')
    path = tmp_path / 'detector.pth'
    meta = dict(dataset_meta=dict(CLASSES=CLASSES, classes=CLASSES))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def test_mmpretrain_finds_the_classifiers() -> None:
    mmpretrain = pytest.importorskip('mmpretrain')
    names = register_models()
    assert register_models() == names  # a second call changes nothing
    assert set(names) == set(list_models(task='Image Classification')) >= {'rla-resnet50_4xb64_in1k'}
    assert set(mmpretrain.list_models('rla-*')) == {name for name in names if name.startswith('rla-')}
    # its own models are still listed; our detectors are not, because it cannot build them
    assert 'resnet50_8xb32_in1k' in mmpretrain.list_models('resnet50*')
    assert not mmpretrain.list_models('*rcnn*rla*')
    model = mmpretrain.get_model('rla-resnet50_4xb64_in1k')
    assert sum(p.numel() for p in model.parameters()) == 25_870_696
    assert type(model.backbone).__name__ == 'RLAResNet'
    assert model._metainfo.in_collection == 'RLA-ResNet'


def test_init_detector(checkpoint: Path, image: np.ndarray) -> None:
    mmdet_apis = pytest.importorskip('mmdet.apis')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = mmdet_apis.init_detector(str(DEMO), str(checkpoint), device='cpu')
        result = mmdet_apis.inference_detector(model, image)
    assert model.dataset_meta['classes'] == CLASSES
    saved = torch.load(checkpoint, weights_only=True)['state_dict']
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert result.pred_instances.bboxes.shape == (len(result.pred_instances), 4)


def test_det_inferencer(checkpoint: Path, image: np.ndarray, tmp_path: Path) -> None:
    mmdet_apis = pytest.importorskip('mmdet.apis')
    inferencer = mmdet_apis.DetInferencer(
        model=str(DEMO), weights=str(checkpoint), device='cpu', show_progress=False
    )
    picture = tmp_path / 'picture.png'
    mmcv.imwrite(image, str(picture))
    result = inferencer(str(picture), out_dir=str(tmp_path / 'out'), no_save_pred=False)
    (prediction,) = result['predictions']
    assert set(prediction) == {'labels', 'scores', 'bboxes'}
    assert len(prediction['labels']) == len(prediction['scores']) == len(prediction['bboxes'])
    assert (tmp_path / 'out' / 'vis' / 'picture.png').is_file()
    assert (tmp_path / 'out' / 'preds' / 'picture.json').is_file()


def test_a_config_of_this_package_is_a_base(tmp_path: Path) -> None:
    path = tmp_path / 'mine.py'
    path.write_text(f'_base_ = {str(DEMO)!r}\nmodel = dict(backbone=dict(attention="eca"))\n')
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.attention == 'eca' and cfg.custom_imports.imports == ['mmrecur']
