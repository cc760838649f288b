"""After mmrecur.apis is imported, no loader of checkpoints runs code in a file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

ROOT = Path(__file__).resolve().parents[2]

DETECTOR = """
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py']
custom_imports = dict(imports=['mmrecur'])
model = dict(
    backbone=dict(_delete_=True, type='mmrecur.RLAResNet', depth=50, base_channels=8),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1))
"""

CLASSIFIER = """
_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py']
model = dict(backbone=dict(base_channels=8, stem_channels=8), head=dict(in_channels=64))
"""

PROGRAM = """
import functools, http.server, io, os, pickle, sys, threading, traceback
from pathlib import Path

import mmrecur.apis
import torch
from mmrecur.errors import CheckpointError

import mmdet.apis, mmengine, mmpretrain
from mmengine.runner.checkpoint import _load_checkpoint, _safe_torch_load
from mmengine.runner import load_checkpoint
from mmengine.model import BaseModule

root = Path(sys.argv[1])
detector, classifier = str(root / 'detector.py'), str(root / 'classifier.py')
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
handler.log_message = lambda *args: None
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f'http://127.0.0.1:{server.server_port}/'


class Net(BaseModule):
    def __init__(self, checkpoint):
        super().__init__(dict(type='Pretrained', checkpoint=checkpoint))


def from_memory(path):
    torch.load(io.BytesIO(Path(path).read_bytes()), weights_only=False)


def from_file_object(path):
    with open(path, 'rb') as file:
        torch.load(file, 'cpu', pickle)


callers = dict(
    torch_load=torch.load,
    torch_load_false=functools.partial(torch.load, weights_only=False),
    torch_load_mapped=functools.partial(torch.load, weights_only=False, mmap=True),
    serialization=functools.partial(torch.serialization.load, weights_only=False),
    memory=from_memory,
    file_object=from_file_object,
    mmengine_fallback=_safe_torch_load,
    mmengine_false=functools.partial(_safe_torch_load, weights_only=False),
    mmengine=_load_checkpoint,
    mmengine_model=lambda path: load_checkpoint(torch.nn.Linear(1, 1), path),
    pretrained=lambda path: Net(path).init_weights(),
    download=lambda path: _load_checkpoint(url + Path(path).name),
    hub=lambda path: torch.hub.load_state_dict_from_url(url + Path(path).name),
    init_detector=lambda path: mmdet.apis.init_detector(detector, path, device='cpu'),
    inferencer=lambda path: mmdet.apis.DetInferencer(detector, path, device='cpu'),
    mmpretrain=lambda path: mmpretrain.get_model(classifier, pretrained=path),
    mmrecur=lambda path: mmrecur.apis.get_model('resnet20_1xb256_cifar10', pretrained=path),
)
builders = 'init_detector', 'inferencer', 'mmpretrain', 'mmrecur'


def check(path, load, name, expected):
    try:
        load(str(path))
    except CheckpointError as error:
        assert expected in str(error), (name, path, error)
        # everything that a notebook would show
        shown = traceback.format_exc()
        assert 'weights_only=False' not in shown and 'weights_only` ' not in shown, (name, shown)
        assert path.name in shown or name == 'memory', (name, shown)
    else:
        raise SystemExit(f'{name} loaded {path}')
    assert not (root / 'executed').exists(), (name, path)


for path in sorted(root.glob('evil*.pth')):
    for name, load in callers.items():
        if path.stem == 'evil_legacy' and name == 'torch_load_mapped':
            continue  # PyTorch cannot map this format
        if path.stem not in ('evil_eval', 'evil_getattr') and name in builders:
            continue  # these take longer and load with the functions above
        check(path, load, name, 'carries code')
for name, load in callers.items():
    if name != 'torch_load_mapped':  # a mapped file is not read as a whole
        check(root / 'damaged.pth', load, name, 'damaged')
without_model = functools.partial(mmdet.apis.DetInferencer, None)
check(root / 'program.pth', without_model, 'inferencer', 'model=CONFIG')
try:
    torch.load(root / 'evil_mkdir.pth', pickle_module=os)
except CheckpointError as error:
    assert 'pickle_module' in str(error)
for name in ('s3://bucket/evil.pth', 'pavi://evil.pth'):
    check(Path(name), lambda path: _load_checkpoint(name), 'mmengine', name)
# MMEngine would run this text when it resumes.
assert 'config' not in _load_checkpoint(str(root / 'good.pth'))['meta']

# Harmless files still load, including those of MMEngine's runner and types that the user allows.
for load in (torch.load, _safe_torch_load, _load_checkpoint, callers['memory'], callers['file_object']):
    load(str(root / 'good.pth'))
assert mmdet.apis.DetInferencer(detector, None, device='cpu').model is not None
with torch.serialization.safe_globals([Path]):
    buffer = io.BytesIO()
    torch.save(Path, buffer)
    buffer.seek(0)
    assert torch.load(buffer) is Path
print('refused')
"""


class Call:
    """An object that pickle would turn into a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_every_caller_refuses_code_and_damage(tmp_path):
    proof = str(tmp_path / 'executed')
    payloads = dict(
        mkdir=Call(os.mkdir, proof),
        eval=Call(eval, f'__import__("os").mkdir({proof!r})'),
        # names that MMEngine allows while it loads
        getattr=Call(getattr, HistoryBuffer.__init__, '__globals__'),
        objects=np.array([Call(os.mkdir, proof)], dtype=object),
    )
    for name, payload in payloads.items():
        content = dict(state_dict={'w': torch.ones(2)}, meta=dict(extra=payload))
        torch.save(content, tmp_path / f'evil_{name}.pth')
    torch.save(content, tmp_path / 'evil_legacy.pth', _use_new_zipfile_serialization=False)
    program = f"import os\nos.mkdir({proof!r})\nmodel = dict(type='FCOS')\n"
    hub = dict(runtime_info=dict(cfg=program), log_scalars=dict(loss=HistoryBuffer([1.0], [1])))
    good = dict(state_dict={'w': torch.randn(1000)}, meta=dict(cfg=program, config=program), message_hub=hub)
    for name in ('program.pth', 'good.pth'):
        torch.save(good, tmp_path / name)
    damaged = bytearray((tmp_path / 'good.pth').read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / 'damaged.pth').write_bytes(damaged)
    (tmp_path / 'detector.py').write_text(DETECTOR)
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    env = os.environ | {
        'TORCH_HOME': str(tmp_path / 'hub'),
        'no_proxy': '127.0.0.1',
        'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1',
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
        'CUDA_VISIBLE_DEVICES': '',
    }
    result = subprocess.run(
        [sys.executable, '-c', PROGRAM, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip().endswith('refused'), (result.stdout + result.stderr)[-5000:]
    assert 'weights_only=False' not in result.stdout + result.stderr
    assert not os.path.exists(proof)
