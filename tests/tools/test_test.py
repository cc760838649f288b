"""tools/test.py on real processes: detectors, classifiers, predictions, pictures, refusals."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch

from mmrecur.apis.runner import load_config
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.errors import CheckpointError, ToolError
from tests.tool_module import load_tool

tool = load_tool('test.py')


def metrics_of(output):
    path = re.search(r'^  metrics +(\S+)$', output.split('Results:')[1], re.MULTILINE).group(1)
    return json.loads(Path(path).read_text())


def test_detector(workshop, detector, trained):
    printed, work_dir = trained
    checkpoint = work_dir / 'epoch_3.pth'
    extra = ['--work-dir', 'test', '--out', 'detections.pkl', '--show-dir', 'shown']
    output = workshop.run('test.py', detector, checkpoint, *extra, own=True)
    metrics = metrics_of(output)
    # The same model on the same images as in the last validation of the training.
    last = re.search(r'coco/bbox_mAP_50 +(\S+)', printed.split('Last validation')[1]).group(1)
    assert metrics['coco/bbox_mAP_50'] == pytest.approx(float(last), abs=1e-4)
    assert 'coco/bbox_mAP_50' in output.split('on the test data')[1]
    # Safe to load, because this test has just written the pickle.
    predictions = pickle.loads((workshop.root / 'detections.pkl').read_bytes())
    assert [p['img_id'] for p in predictions] == [1, 2, 3, 4, 5]
    assert all(p['pred_instances']['bboxes'].shape[1] == 4 for p in predictions)
    shown = sorted(path.name for path in (workshop.root / 'shown').iterdir())
    assert shown == [f'{i:06d}.png' for i in range(5)]


def test_detector_with_tta(workshop, detector, trained):
    extra = ['--work-dir', 'tta', '--tta', '--out', 'flipped.pkl']
    output = workshop.run('test.py', detector, trained[1] / 'epoch_3.pth', *extra)
    assert 'coco/bbox_mAP' in metrics_of(output)
    # Without a tta_model in the config, at most 100 detections of both views are kept.
    predictions = pickle.loads((workshop.root / 'flipped.pkl').read_bytes())
    assert len(predictions) == 5
    assert all(0 < len(p['pred_instances']['scores']) <= 100 for p in predictions)


def test_classifier(workshop, classifier):
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    DefaultScope.get_instance('test_test', scope_name='mmpretrain')
    cfg = Config.fromfile(str(classifier), import_custom_modules=False)
    model = MODELS.build(cfg.model | dict(data_preprocessor=cfg.data_preprocessor))
    torch.save(model.state_dict(), workshop.root / 'random.pth')
    scores = []
    for extra in (['--show-dir', 'classes'], ['--tta']):
        extra += ['--out', 'classes.pkl', '--work-dir', 'c']
        output = workshop.run('test.py', classifier, 'random.pth', *extra)
        predictions = pickle.loads((workshop.root / 'classes.pkl').read_bytes())
        right = [int(p['pred_label']) == int(p['gt_label']) for p in predictions]
        assert metrics_of(output)['accuracy/top1'] == pytest.approx(100 * sum(right) / 5)
        scores.append(torch.stack([p['pred_score'] for p in predictions]))
    assert len(list((workshop.root / 'classes').rglob('*.png'))) == 5
    # The average over a view and its mirror image is close to the scores of the view, but not equal.
    assert not torch.equal(*scores) and torch.allclose(*scores, atol=0.2)


def test_code_carrying_checkpoint_is_refused(workshop, detector, code_carrying):
    write, proof = code_carrying
    path = write('evil.pth', _use_new_zipfile_serialization=False)
    output = workshop.run('test.py', detector, path, code=1)
    assert str(path) in output and 'carries code' in output
    assert 'Traceback' not in output and not proof.exists()


def test_truncated_checkpoint_is_refused(trained, detector, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(trained[1].parent))
    path = tmp_path / 'short.pth'
    path.write_bytes((trained[1] / 'epoch_3.pth').read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        tool.main([str(detector), str(path), '--work-dir', str(tmp_path)])


def test_weights_of_another_model_are_refused(workshop, detector, trained):
    checkpoint = load_checkpoint_file(trained[1] / 'epoch_3.pth')
    state = checkpoint['state_dict']
    removed = next(name for name in state if name.startswith('backbone.layer1'))
    del state[removed]
    torch.save(dict(state_dict=state), workshop.root / 'partial.pth')
    output = workshop.run('test.py', detector, 'partial.pth', '--work-dir', 'p', code=1)
    assert 'partial.pth' in output and removed in output and 'Traceback' not in output


def test_options_that_the_config_cannot_meet(detector, trained, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(trained[1].parent))
    cfg = load_config(str(detector))
    cfg.test_dataloader.dataset.pipeline.pop()
    with pytest.raises(ToolError, match='--tta.*LoadAnnotations'):
        tool.use_tta(cfg)
    cfg.default_scope = 'mmseg'
    with pytest.raises(ToolError, match='mmseg.*allowed: mmdet, mmpretrain'):
        tool.draw_into(cfg, 'shown')
    with pytest.raises(SystemExit):
        tool.parse_args(['a.py', 'a.pth', '--out', 'a.json'])
    assert 'a.json' in capsys.readouterr().err
