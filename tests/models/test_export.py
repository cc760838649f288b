"""Tracing and both ONNX exporters: every backbone, both forms, both grad modes, other batches and sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_close, build, image
from tests.models.zoo import BACKBONES, DISTINCT

#: Images for the export, and a batch with another number of images of another, odd size.
SEEN, OTHER = (2, 3, 32, 64), (3, 3, 65, 33)
#: One network for each mechanism, for the exporters that take their time.
MECHANISMS = [
    'rla-eca-r50',
    'rla-eca-r50-lstm',
    'rla-se-r50-gru',
    'rla-mobilenet',
    'preact-single',
    'rla-xception',
    'lag-densenet-bc',
    'dpn',
    'shared-r18',
    'swrn-22-2-folded',
    'recnet',
    'dr-r16',
]
#: The newer exporter takes seconds for these, and minutes for some whole networks.
QUICK = ['preact-single', 'recnet']


def traced(model: nn.Module, folder: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Trace with the default arguments of ``torch.jit.trace``, including its checks."""
    return torch.jit.trace(model, image(*SEEN))


def exported(model: nn.Module, folder: Path, dynamo: bool) -> Callable[[Tensor], list[Tensor]]:
    """As an ONNX file with a dynamic batch and dynamic sizes, run by ONNX Runtime."""
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    path, axes = folder / 'model.onnx', {0: 'batch', 2: 'height', 3: 'width'}
    if dynamo:
        dynamic = dict(dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),))
    else:
        dynamic = dict(dynamic_axes=dict(x=axes))
    example = (image(*SEEN),)
    torch.onnx.export(model, example, path, input_names=['x'], dynamo=dynamo, verbose=False, **dynamic)
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda x: [torch.from_numpy(output) for output in session.run(None, dict(x=x.numpy()))]


EXPORTERS = {
    'trace': traced,
    'legacy': lambda model, folder: exported(model, folder, dynamo=False),
    'dynamo': lambda model, folder: exported(model, folder, dynamo=True),
}


def cases() -> list:
    """The default suite exports the first stages of some; all are slow."""
    fast = [('trace', name, True, True) for name in DISTINCT]  # its own checks run without gradients
    fast += [('trace', name, False, True) for name in MECHANISMS]
    fast += [('legacy', name, True, False) for name in MECHANISMS]
    fast += [('dynamo', name, True, False) for name in QUICK]
    slow = [
        pytest.param(exporter, name, deploy, grad, exporter != 'dynamo', marks=pytest.mark.slow)
        for exporter in EXPORTERS
        for name in (DISTINCT if exporter == 'dynamo' else BACKBONES)
        for deploy in (False, True)
        for grad in (False, True)
    ]
    return [(*case, False) for case in fast] + slow


@pytest.mark.parametrize('exporter, name, deploy, grad, whole', cases())
def test_export_computes_the_same_for_other_batches_and_sizes(
    tmp_path: Path, exporter: str, name: str, deploy: bool, grad: bool, whole: bool
) -> None:
    # two stages have all of a family's mechanisms, but for loops and ties, which begin in the third
    cfg = BACKBONES[name]
    shortens = not whole and cfg['type'] != 'mmrecur.DRResNet' and 'tied_layers' not in cfg
    model = build(name, **(dict(out_indices=(1,)) if shortens else {})).eval()
    if deploy:
        model.switch_to_deploy()
    with torch.set_grad_enabled(grad):
        program = EXPORTERS[exporter](model, tmp_path)
    with torch.no_grad():
        for shape in (SEEN, OTHER):
            assert_close(program(image(*shape)), model(image(*shape)), 1e-4)
