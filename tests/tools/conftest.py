"""Fixtures of the tests of the tools: tiny data, tiny configs, and the tools as real processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mmrecur.datasets.shapes import CLASSES
from mmrecur.datasets.shapes_dataset import ShapesConfig, write_split
from tests.tools.forks import Forks

ROOT = Path(__file__).resolve().parents[2]

COMMON = f"""
custom_imports = dict(imports=['mmrecur', 'kill_hook'], allow_failed_imports=False)
classes = {CLASSES!r}
"""

# Settings that the training of a detector or a classifier needs besides the model.
SCHEDULE = """
train_cfg = dict(by_epoch=True, max_epochs=3)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[2])]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best='auto', max_keep_ckpts=1))
log_processor = dict(window_size=1, by_epoch=True)
randomness = dict(seed=3)
auto_scale_lr = dict(base_batch_size=2)
custom_hooks = [dict(type='KillHook')]
"""

DETECTION_DATA = """
loading = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
packing = dict(type='PackDetInputs', meta_keys=keys)
train_pipeline = [*loading, resize, dict(type='PhotoMetricDistortion'),
                  dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [loading[0], resize, loading[1], packing]
data = dict(type='CocoDataset', data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=2, num_workers=1, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='annotations/instances_train.json', data_prefix=dict(img='train/'),
                 pipeline=train_pipeline, **data))
val_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='annotations/instances_val.json', data_prefix=dict(img='val/'),
                 test_mode=True, pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', metric='bbox',
                     ann_file=data_root + '/annotations/instances_val.json')
test_evaluator = val_evaluator
"""

FASTER_RCNN = """
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
model = dict(
    backbone=dict(_delete_=True, type='mmrecur.RLAResNet', depth=50, base_channels=8),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=5)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=20)),
    # Without this threshold, an untrained detector would have no boxes to draw or to save.
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0)))
"""

# FCOS averages its normalisers over the processes and samples nothing, so its loss on a batch is
# the average over the processes that share the batch.
FCOS = """
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py']
model = dict(
    backbone=dict(_delete_=True, type='mmrecur.RLAResNet', depth=50, base_channels=8,
                  norm_cfg=dict(type='GN', num_groups=4)),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=5,
                   norm_cfg=None))
"""

CLASSIFIER = """
_base_ = ['mmpretrain::_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmrecur.RLAResNet', depth=50, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=256,
              loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
data_preprocessor = dict(num_classes=5, mean=[128] * 3, std=[64] * 3, to_rgb=True)
"""

CLASSIFICATION_DATA = """
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5),
                  dict(type='PackInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
data = dict(type='CustomDataset', data_root=data_root, classes=classes, with_label=True)
train_dataloader = dict(
    batch_size=5, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(data_prefix='train', pipeline=train_pipeline, **data))
val_dataloader = dict(
    batch_size=5, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(data_prefix='val', pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
"""

# Kills the process in a chosen iteration.
KILL_HOOK = """
import os
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KillHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == int(os.environ.get('KILL_AT_ITERATION', 0)):
            os.kill(os.getpid(), signal.SIGKILL)
"""


class Workshop:
    """A directory with data, configs and the results of tools."""

    def __init__(self, root: Path) -> None:
        self.root, self.forks = root, None
        (root / 'kill_hook.py').write_text(KILL_HOOK)

    def environment(self) -> dict[str, str]:
        """Return an environment in which tools find the source tree and the hook, and use one thread."""
        paths = [str(ROOT), str(self.root), *filter(None, [os.environ.get('PYTHONPATH')])]
        return os.environ | {
            'PYTHONPATH': os.pathsep.join(paths),
            'OMP_NUM_THREADS': '1',
            'CUDA_VISIBLE_DEVICES': '',
        }

    def config(self, name: str, model: str, data: str, extra: str = '') -> Path:
        """Writes a config, from its parts."""
        kind = 'detection' if data == DETECTION_DATA else 'classification'
        path = self.root / f'{name}.py'
        root = f"data_root = '{(self.root / kind).as_posix()}'\n"
        path.write_text(model + COMMON + root + data + SCHEDULE + extra)
        return path

    def run(self, *command, code=0, own=False, **environment) -> str:
        """Run a tool, check its exit code and return its output.

        ``own`` starts a new process. Otherwise a Python tool runs in a fork, which is faster.
        """
        script, *args = map(str, command)
        argv = [str(ROOT / 'tools' / script), *args]
        env = self.environment() | {'PYTHON': sys.executable} | environment
        # A file, because the workers that outlive a killed process keep a pipe open.
        with tempfile.NamedTemporaryFile('r') as output:
            if own or script.endswith('.sh'):
                program = ['bash'] if script.endswith('.sh') else [sys.executable]
                with open(output.name, 'w') as file:
                    result = subprocess.run(
                        [*program, *argv], cwd=self.root, env=env, stdout=file, stderr=subprocess.STDOUT,
                        timeout=300,
                    ).returncode  # fmt: skip
            else:
                self.forks = self.forks or Forks(self.environment())
                result = self.forks.run(argv, output.name, self.root, env)
            text = output.read()
        assert result == code, text[-5000:]
        return text


@pytest.fixture(scope='session')
def workshop(tmp_path_factory):
    root = tmp_path_factory.mktemp('workshop')
    for task in ('detection', 'classification'):
        shapes = ShapesConfig(num_train=10, num_val=5, size=(64, 64), max_objects=3, task=task)
        for split in ('train', 'val'):
            write_split(root / task, shapes, split)
    made = Workshop(root)
    yield made
    if made.forks is not None:
        made.forks.close()


@pytest.fixture(scope='session')
def detector(workshop):
    return workshop.config('detector', FASTER_RCNN, DETECTION_DATA)


@pytest.fixture(scope='session')
def classifier(workshop):
    return workshop.config('classifier', CLASSIFIER, CLASSIFICATION_DATA)


@pytest.fixture(scope='session')
def iterations(workshop):
    """Config of an iteration-based training with two workers that load and augment the data."""
    extra = (
        "train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=4)\n"
        "param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[5])]\n"
        'default_hooks = dict(logger=dict(interval=1),\n'
        '                     checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=2))\n'
        'log_processor = dict(window_size=1, by_epoch=False)\n'
        'train_dataloader.update(num_workers=2, persistent_workers=True,\n'
        "                        sampler=dict(type='InfiniteSampler', shuffle=True))\n"
        "train_dataloader['dataset']['pipeline'].insert(1, dict(type='RandomCrop', crop_size=48))\n"
    )
    return workshop.config('iterations', CLASSIFIER, CLASSIFICATION_DATA, extra)


@pytest.fixture(scope='session')
def fcos(workshop):
    # Only the order of the images is random.
    extra = (
        "train_pipeline = [*loading, resize, dict(type='PackDetInputs')]\n"
        'train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)\n'
        "train_dataloader['dataset'].update(pipeline=train_pipeline)\n"
        'train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=2)\n'
        # Sums in another order differ in the last bits, and large steps would amplify the difference.
        "optim_wrapper['optimizer'].update(lr=0.001)\n"
    )
    return workshop.config('fcos', FCOS, DETECTION_DATA, extra)


@pytest.fixture(scope='session')
def trained(workshop, detector):
    """Train the detector without interruption; return the output and the work directory."""
    output = workshop.run('train.py', detector, '--work-dir', 'whole', own=True)
    return output, workshop.root / 'whole'


@pytest.fixture
def code_carrying(tmp_path):
    """Return a function that writes a checkpoint whose loading would create a file, and that file."""
    import pickle

    import torch

    proof = tmp_path / 'executed'

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    def write(name: str, **kwargs) -> Path:
        path = tmp_path / name
        content = {'state_dict': {'a': torch.ones(1)}, 'meta': {'extra': Payload()}}
        if name.endswith('.pkl'):
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, **kwargs)
        return path

    return write, proof
