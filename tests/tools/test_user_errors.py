"""tools/train.py and tools/test.py answer mistakes of a user with a helpful message, not a traceback."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from mmrecur.apis.checks import _detector_heads
from mmrecur.apis.mistakes import DATA_HINT, argument_mistake, clean_errors
from mmrecur.apis.runner import load_config
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.models.backbones import RLAResNet
from tests.tool_module import load_tool
from tests.tools.conftest import CLASSIFICATION_DATA, CLASSIFIER, DETECTION_DATA, FASTER_RCNN, ROOT

train, tool = load_tool('train.py'), load_tool('test.py')


@pytest.fixture(scope='module')
def detector(workshop):
    """Config of the detector of the other tests, without data loading workers."""
    extra = 'train_dataloader.update(num_workers=0, persistent_workers=False)\n'
    return workshop.config('detector_alone', FASTER_RCNN, DETECTION_DATA, extra)


@pytest.fixture(autouse=True)
def quick_dump(monkeypatch):
    """Write configs without formatting them, which would take most of the time of these tests."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda code, **_: (code, True))


@pytest.fixture
def failing(workshop, tmp_path, monkeypatch):
    """Return a function that runs a tool in this process and returns its final message."""
    monkeypatch.syspath_prepend(str(workshop.root))  # the folder of the hook that the configs import

    def run(module, config, *args, options=()):
        argv = [str(config), *map(str, args)]
        if '--work-dir' not in argv:
            argv += ['--work-dir', str(tmp_path / 'work')]
        if options:
            argv += ['--cfg-options', *options]
        with pytest.raises(SystemExit) as caught, clean_errors():
            module.main(argv)
        message = caught.value.code
        assert isinstance(message, str) and message.startswith('error: ')
        return message

    return run


@pytest.fixture(scope='module')
def weights(workshop):
    """Write a checkpoint that the detector's training can resume from, without training."""
    from mmrecur.apis.runner import build_runner

    sys.path.insert(0, str(workshop.root))
    cfg = load_config(str(workshop.config('whole', FASTER_RCNN, DETECTION_DATA)))
    sys.path.remove(str(workshop.root))
    cfg.work_dir, cfg.launcher = str(workshop.root / 'weights'), 'none'
    runner = build_runner(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.save_checkpoint(cfg.work_dir, 'epoch_1.pth', meta=dict(epoch=1, iter=5),
                           save_param_scheduler=False, by_epoch=False)  # fmt: skip
    return Path(cfg.work_dir) / 'epoch_1.pth'


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize(
    'options, expected',
    [
        (['model.backbone.type=mmrecur.RLAResNett'], ['RLAResNett', 'did you mean mmrecur.RLAResNet']),
        (['model.backbone.type=RestNet'], ["'RestNet'", 'did you mean', 'ResNet']),
        (['model.backbone.dept=50'], ["no argument 'dept'", 'did you mean depth']),
        (['model.backbone.depth=51'], ['RLAResNet', '51', 'allowed']),
        (['model.neck.out_chanels=16'], ["no argument 'out_chanels'", 'out_channels']),
        (['optim_wrapper.optimizer.lr=-1'], ['SGD', '-1']),
        (['optim_wrapper.optimizer.type=Adamm'], ['Adamm', 'Adam']),
        (['param_scheduler.0.type=MultiStepsLR'], ['MultiStepsLR', 'MultiStepLR']),
        (['train_dataloader.dataset.pipeline.0.type=LoadImage'], ["'LoadImage'", 'LoadImageFromFile']),
        (['val_evaluator.metrik=bbox'], ["no argument 'metrik'", 'metric']),
        (['train_cfg.max_epoch=1'], ["no argument 'max_epoch'", 'max_epochs']),
        (['val_cfg=None'], ['val_dataloader', 'val_evaluator']),
    ],
)
def test_config_that_names_what_is_not_there(failing, detector, options, expected):
    message = failing(train, detector, options=options)
    assert all(part in message for part in expected), message
    assert DATA_HINT not in message


def test_missing_argument_is_named(failing, workshop):
    extra = "model.update(neck=dict(type='FPN', in_channels=[32, 64, 128, 256], num_outs=5))\n"
    config = workshop.config('no_channels', CLASSIFIER, CLASSIFICATION_DATA, extra)
    config.write_text(config.read_text().replace("type='FPN'", "type='mmdet.FPN'"))
    assert "FPN needs the argument 'out_channels'" in failing(train, config)


def test_argument_names_of_bases_count():
    assert argument_mistake(RLAResNet, dict(depth=50, norm_eval=True, init_cfg=None)) is None
    assert 'did you mean' in argument_mistake(RLAResNet, dict(depth=50, norm_evall=True))
    assert "needs the argument 'depth'" in argument_mistake(RLAResNet, {})
    assert argument_mistake(lambda **kwargs: None, dict(anything=1)) is None


def test_backbone_with_too_few_outputs_for_the_neck(failing, detector):
    message = failing(train, detector, options=['model.backbone.out_indices=(0,1,2)'])
    assert 'model.neck' in message and '[32, 64, 128, 256]' in message and '[32, 64, 128];' in message


def test_widths_that_do_not_fit(failing, detector, classifier):
    message = failing(train, detector, options=['model.neck.in_channels=[32,64,128,255]'])
    assert 'model.neck' in message and '255' in message and '256' in message
    message = failing(train, classifier, options=['model.head.in_channels=100'])
    assert 'model.head' in message and '100' in message and message.count('256') == 1
    message = failing(train, detector, options=['model.neck.num_outs=4'])
    assert 'num_outs' in message and 'rpn_head' in message


BUG = """
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class BuggyBackbone(nn.Module):
    def __init__(self, when):
        super().__init__()
        self.when = when
        if when == 'built':
            [][0]

    def forward(self, x):
        return x.no_such_method()
"""


@pytest.mark.parametrize('when, error', [('built', IndexError), ('run', AttributeError)])
def test_bugs_keep_their_traceback(workshop, tmp_path, monkeypatch, when, error):
    monkeypatch.syspath_prepend(str(workshop.root))
    (workshop.root / 'buggy.py').write_text(BUG)
    extra = (
        "custom_imports['imports'].append('buggy')\n"
        f"model['backbone'] = dict(type='mmengine.BuggyBackbone', when={when!r})\n"
    )
    config = workshop.config(f'bug_{when}', CLASSIFIER, CLASSIFICATION_DATA, extra)
    with pytest.raises(error), clean_errors():
        train.main([str(config), '--work-dir', str(tmp_path)])


# ---------------------------------------------------------------- data


def test_class_counts_that_do_not_match(failing, detector, classifier, weights):
    option = ['model.roi_head.bbox_head.num_classes=4']
    for module, args, where in ((train, [], 'train'), (tool, [weights], 'test')):
        message = failing(module, detector, *args, options=option)
        assert f'{where}_dataloader' in message and '5 classes' in message and 'num_classes=5' in message
    message = failing(train, classifier, options=['model.head.num_classes=3'])
    assert '5 classes' in message and 'model.head.num_classes=5' in message


def test_detectors_of_proposals_have_no_classes():
    from mmengine.registry import MODELS, DefaultScope

    DefaultScope.get_instance('test_user_errors', scope_name='mmdet')
    heads = {}
    for name in ('rpn/rpn_r50_fpn_1x_coco', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'):
        cfg = load_config(f'mmdet::{name}.py', {'model.backbone.init_cfg': None})
        with torch.device('meta'):
            model = MODELS.build(cfg.model)
        heads[name] = [(where, head.num_classes) for where, head in _detector_heads(model)]
    assert list(heads.values()) == [[], [('roi_head.bbox_head', 80)]]


def test_class_names_that_do_not_match(failing, workshop, classifier):
    def with_names(name, names):
        extra = (
            f"train_dataloader['dataset']['metainfo'] = dict(classes={names!r})\n"
            "model['roi_head']['bbox_head']['num_classes'] = 5\n"
        )
        return workshop.config(name, FASTER_RCNN, DETECTION_DATA, extra)

    names = ('circle', 'rectangle', 'triangle', 'star', 'ring')
    message = failing(train, with_names('typo', (*names[:4], 'rings')))
    assert "the classes 'rings' are not in" in message and "'ring'" in message
    message = failing(train, with_names('swapped', (*names[:3], 'ring', 'star')))
    assert 'order' in message and str(names) in message
    message = failing(train, with_names('text', 'circle'))
    assert "('circle',)" in message
    message = failing(train, classifier, options=["train_dataloader.dataset.classes=['a','b']"])
    assert 'CustomDataset' in message and '5' in message and '2' in message


@pytest.fixture
def altered(workshop, tmp_path):
    """Return a function that writes changed annotations of the validation set and returns their path."""

    def write(**changes):
        source = workshop.root / 'detection/annotations/instances_val.json'
        path = tmp_path / 'instances.json'
        path.write_text(json.dumps(json.loads(source.read_text()) | changes))
        return path

    return write


@pytest.mark.parametrize('lack', ['images', 'annotations'])
def test_no_images_or_annotations_for_validation(failing, detector, altered, tmp_path, lack):
    path = altered(**({'images': [], 'annotations': []} if lack == 'images' else {'annotations': []}))
    options = [f'val_dataloader.dataset.ann_file={path}', f'val_evaluator.ann_file={path}']
    message = failing(train, detector, options=options)
    assert 'val_dataloader' in message and str(path) in message
    assert ('no images' if lack == 'images' else 'none of the 5 images') in message
    assert not list(tmp_path.rglob('*.pth'))  # before the first epoch


def test_no_images_or_annotations_for_training(failing, detector, classifier, altered, tmp_path):
    for changes in ({'images': [], 'annotations': []}, {'annotations': []}):
        options = [f'train_dataloader.dataset.ann_file={altered(**changes)}']
        message = failing(train, detector, options=options)
        assert 'train_dataloader' in message and ('no images' in message or 'none of the' in message)
    (tmp_path / 'empty').mkdir()
    options = [f'val_dataloader.dataset.data_root={tmp_path}', 'val_dataloader.dataset.data_prefix=empty']
    message = failing(train, classifier, options=options)
    assert 'CustomDataset' in message and 'Traceback' not in message


@pytest.mark.parametrize('loader', ['train', 'val'])
def test_images_that_are_not_there(failing, detector, loader, tmp_path):
    message = failing(train, detector, options=[f'{loader}_dataloader.dataset.data_prefix.img=elsewhere'])
    assert f'{loader}_dataloader' in message and 'elsewhere' in message and message.endswith(DATA_HINT)
    assert not list(tmp_path.rglob('*.pth'))


def test_image_that_a_worker_does_not_find(failing, workshop, altered):
    images = json.loads((workshop.root / 'detection/annotations/instances_val.json').read_text())['images']
    images[1]['file_name'] = 'gone.png'  # neither the first nor in the middle nor the last
    extra = "train_dataloader['dataset']['data_prefix'] = dict(img='val/')\n"
    config = workshop.config('gone', FASTER_RCNN, DETECTION_DATA, extra)
    options = [f'train_dataloader.dataset.ann_file={altered(images=images)}']
    message = failing(train, config, options=options)
    assert 'gone.png' in message and message.endswith(DATA_HINT) and 'Traceback' not in message


@pytest.mark.parametrize('workers', [0, 1])
def test_damaged_image_is_named(failing, workshop, tmp_path, workers):
    shutil.copytree(workshop.root / 'detection/val', tmp_path / 'val')
    path = sorted((tmp_path / 'val').iterdir())[1]
    path.write_bytes(path.read_bytes()[:20])
    extra = (
        f"train_dataloader['dataset'].update(data_prefix=dict(img={str(tmp_path / 'val')!r}), "
        "ann_file='annotations/instances_val.json')\n"
        f'train_dataloader.update(num_workers={workers}, persistent_workers=False)\n'
    )
    config = workshop.config(f'damaged_{workers}', FASTER_RCNN, DETECTION_DATA, extra)
    message = failing(train, config)
    assert message == f'error: failed to load image: {path}; the file is damaged or not an image'


def test_hint_about_the_data_only_where_data_are_missing(failing, detector, classifier, tmp_path):
    message = failing(train, detector, options=['val_evaluator.ann_file=nowhere.json'])
    assert 'nowhere.json' in message and message.endswith(DATA_HINT)
    message = failing(train, classifier, options=['train_dataloader.dataset.data_root=nowhere'])
    assert 'nowhere' in message and message.endswith(DATA_HINT)
    for message in (
        failing(train, detector, '--resume', tmp_path / 'nowhere.pth'),
        failing(train, detector, options=['load_from=nowhere.pth']),
        failing(tool, detector, 'nowhere.pth'),
        failing(train, 'nowhere.py'),
    ):
        assert 'nowhere' in message and DATA_HINT not in message


CIFAR = """
_base_ = ['mmpretrain::_base_/datasets/cifar10_bs16.py', 'mmpretrain::_base_/schedules/cifar10_bs128.py',
          'mmpretrain::_base_/default_runtime.py']
model = dict(type='ImageClassifier',
             backbone=dict(type='mmrecur.RLAResNet', depth=50, base_channels=8),
             neck=dict(type='GlobalAveragePooling'),
             head=dict(type='LinearClsHead', num_classes=10, in_channels=256))
custom_imports = dict(imports=['mmrecur'])
"""


def test_no_network_for_cifar(failing, tmp_path, monkeypatch):
    for name in ('http_proxy', 'https_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')  # no server listens on this port
    monkeypatch.setattr(urllib.request, '_opener', None)  # read the environment again
    config = tmp_path / 'cifar.py'
    config.write_text(CIFAR)
    options = [f'train_dataloader.dataset.data_root={tmp_path}/cifar']
    message = failing(train, config, options=options)
    assert 'CIFAR10' in message and 'refused' in message and 'data_root' in message


# ---------------------------------------------------------------- checkpoints and folders


def test_resuming_another_architecture(failing, detector, weights):
    message = failing(train, detector, '--resume', weights, options=['model.backbone.base_channels=4',
        'model.neck.in_channels=[16,32,64,128]'])  # fmt: skip
    assert str(weights) in message and 'does not fit' in message and 'size mismatch' in message
    message = failing(train, detector, '--resume', weights, options=['model.backbone.depth=101'])
    assert str(weights) in message and 'backbone.layer3.6' in message


def test_resuming_with_another_optimizer(failing, detector, weights):
    config = detector.with_name('adamw.py')
    config.write_text(detector.read_text() + "optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.1))\n")
    message = failing(train, config, '--resume', weights)
    assert str(weights) in message and 'momentum' in message and 'AdamW' in message


@pytest.mark.parametrize(
    'name, value', [('meta', [1]), ('meta', {'iter': 5}), ('meta', {'epoch': 'one', 'iter': 5}),
                    ('optimizer', None), ('message_hub', 3)]
)  # fmt: skip
def test_malformed_meta(failing, detector, weights, tmp_path, name, value):
    checkpoint = load_checkpoint_file(weights)
    checkpoint[name] = value
    path = tmp_path / 'malformed.pth'
    torch.save(checkpoint, path)
    message = failing(train, detector, '--resume', path)
    assert str(path) in message and name in message and 'allowed' in message


def test_checkpoints_without_weights(failing, detector, tmp_path):
    for number, content in enumerate(({'state_dict': [1]}, {'state_dict': {}}, {'meta': {}})):
        path = tmp_path / f'{number}.pth'
        torch.save(content, path)
        assert str(path) in failing(tool, detector, path)
        assert str(path) in failing(train, detector, options=[f'load_from={path}'])


@pytest.mark.parametrize('kind', ['file', 'read-only'])
def test_work_dir_that_cannot_be_written(failing, detector, weights, tmp_path, kind):
    place = tmp_path / kind
    if kind == 'file':
        place.write_text('')
    else:
        place.mkdir(mode=0o500)
        if os.access(place, os.W_OK):  # as root
            place = Path('/proc/self/fd')
    for message in (
        failing(train, detector, '--work-dir', place / 'work'),
        failing(tool, detector, weights, '--work-dir', place / 'work'),
        failing(tool, detector, weights, '--out', place / 'work' / 'a.pkl'),
        failing(tool, detector, weights, '--show-dir', place / 'work'),
    ):
        assert str(place) in message and 'cannot be written' in message and 'choose another' in message


# ---------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize('epochs', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_interrupt_says_how_to_go_on(workshop, detector, epochs):
    """Interrupt a process group, so that workers get the signal too, as from a terminal."""
    script, work_dir = ROOT / 'tools/train.py', f'stop{epochs}'
    command = [sys.executable, '-u', str(script), str(detector), '--work-dir', work_dir]
    process = subprocess.Popen(
        [*command, '--num-pictures', '0', '--cfg-options', 'train_cfg.max_epochs=500'],
        cwd=workshop.root, env=workshop.environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # a test run in the background of a script may itself ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    printed = []
    for line in process.stdout:
        printed.append(line)
        if re.search(rf'Epoch\(train\) +\[{epochs + 1}\]', line):
            break
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130, ''.join(printed[-20:]) + rest
    assert 'Traceback' not in rest and 'interrupted' in rest
    if epochs:
        assert 'epoch_1.pth' in rest
        assert rest.strip().endswith('--cfg-options train_cfg.max_epochs=500 --resume auto')
    else:
        assert 'no checkpoint' in rest
