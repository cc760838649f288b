"""List the models that have a config in this package, and build them by name."""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import mmrecur
from mmrecur.apis.specs import build_model, read_model
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.checkpoint.unwrap import below, unwrap

#: Task of the models that mmpretrain can build, by its name in the metafiles.
CLASSIFICATION = 'Image Classification'


@dataclass(frozen=True)
class ModelInfo:
    """An entry of the model index.

    Attributes:
        name (str): Name of the model and of its config.
        config (Path): Path of the config.
        tasks (tuple[str, ...]): Tasks such as ``'Object Detection'``.
        weights (str, optional): Path or URL of published weights.
    """

    name: str
    config: Path
    tasks: tuple[str, ...]
    weights: str | None


def _root() -> Path:
    """Return the folder with ``model-index.yml``, in the installed package or in the source tree."""
    package = Path(mmrecur.__file__).parent
    for root in (package / '.mim', package.parent):
        if (root / 'model-index.yml').is_file():
            return root
    raise FileNotFoundError('model-index.yml is neither in mmrecur/.mim nor next to the package')


@cache
def _index() -> dict[str, ModelInfo]:
    root = _root()
    models = {}
    for path in yaml.safe_load((root / 'model-index.yml').read_text())['Import']:
        for entry in yaml.safe_load((root / path).read_text())['Models']:
            models[entry['Name']] = ModelInfo(
                name=entry['Name'],
                config=root / entry['Config'],
                tasks=tuple(result['Task'] for result in entry.get('Results', [])),
                weights=entry.get('Weights'),
            )
    return models


def list_models(pattern: str = '*', task: str | None = None) -> list[str]:
    """List the names of the models.

    Args:
        pattern (str): Shell pattern or part of a name. Defaults to ``'*'``.
        task (str, optional): List models for this task only, e.g. ``'Object Detection'``. Defaults to None,
            all tasks.

    Returns:
        list[str]: Names in alphabetical order.

    Raises:
        ValueError: If there is no such task.

    Example:
        >>> from mmrecur.apis import list_models
        >>> list_models('rla-eca-resnet50')
        ['rla-eca-resnet50-d_4xb64-tricks-200e_in1k', 'rla-eca-resnet50_4xb64_in1k']
    """
    tasks = {name for info in _index().values() for name in info.tasks}
    if task is not None and task not in tasks:
        raise ValueError(f'task={task!r}, allowed: None, {", ".join(map(repr, sorted(tasks)))}')
    if not any(character in pattern for character in '*?['):
        pattern = f'*{pattern}*'
    return sorted(
        name
        for name, info in _index().items()
        if fnmatch(name, pattern) and (task is None or task in info.tasks)
    )


def register_models() -> list[str]:
    """Add the classifiers of this package to mmpretrain's model hub.

    Afterwards ``mmpretrain.get_model``, ``mmpretrain.list_models`` and the inferencers of mmpretrain accept
    their names. A second call does nothing. Importing ``mmrecur`` does not add them, because that would
    import all of mmpretrain.

    Returns:
        list[str]: Names of the classifiers.

    Raises:
        ImportError: If mmpretrain is not installed.

    Example:
        >>> import mmpretrain  # doctest: +SKIP
        >>> from mmrecur.apis import register_models
        >>> register_models()  # doctest: +SKIP
        >>> mmpretrain.get_model('rla-resnet50_4xb64_in1k')  # doctest: +SKIP
    """
    from mmpretrain.apis import ModelHub

    names = list_models(task=CLASSIFICATION)
    new = [name for name in names if not ModelHub.has(name)]
    if new:
        # the index also has detectors, which mmpretrain cannot build
        index = yaml.safe_load((_root() / 'model-index.yml').read_text())['Import']
        files = [yaml.safe_load((_root() / path).read_text()) for path in index]
        models = [entry for file in files for entry in file['Models'] if entry['Name'] in new]
        collections = [entry for file in files for entry in file.get('Collections', [])]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'model-index.yml'
            path.write_text(yaml.safe_dump(dict(Collections=collections, Models=models), sort_keys=False))
            ModelHub.register_model_index(path, config_prefix=_root())
    return names


class _FreshSeeds:
    """Callable that derives seeds from the state of torch's global generator without changing it.

    The same program draws the same seeds after ``torch.manual_seed``. Calls in the same state of the
    generator return different seeds.
    """

    def __init__(self) -> None:
        self._state, self._count = 0, 0

    def __call__(self) -> int:
        """Return a seed from 0 to 2**32 - 1."""
        state = zlib.crc32(torch.get_rng_state().numpy().tobytes())
        self._count = self._count + 1 if state == self._state else 0
        self._state = state
        return zlib.crc32(self._count.to_bytes(8, 'little'), state)


_fresh_seed = _FreshSeeds()


def get_model(
    name: str,
    pretrained: bool | str = False,
    backbone_only: bool = False,
    options: dict[str, Any] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build a model by name.

    Without a seed, the random weights depend on the state of torch's global generator, which is not
    changed. Two models built in a row have different weights nevertheless.

    Args:
        name (str): A name from :func:`list_models`.
        pretrained (bool or str): Path of a checkpoint of the model, from which tensors only are read; True
            for published weights. Defaults to False, random weights.
        backbone_only (bool): Build the backbone only. Defaults to False.
        options (dict, optional): Changes to the config, by dotted key, e.g.
            ``{'model.backbone.variant': 'v3'}``. Defaults to None.
        seed (int, optional): Seed of the random weights. None derives a seed from the state of torch's
            generator and the number of models built in that state. Defaults to None.

    Returns:
        nn.Module: The classifier, the detector or its backbone.

    Raises:
        ValueError: If there is no such model, or if no weights are published for it.
        CheckpointError: If the checkpoint is damaged or contains code.
        RuntimeError: If the weights do not fit the model.
    """
    if name not in _index():
        raise ValueError(f'name={name!r}, allowed: {", ".join(list_models())}')
    if pretrained is True and _index()[name].weights is None:
        raise ValueError(
            f'pretrained=True: no weights are published for {name!r}, allowed: False, or the path of a '
            'checkpoint'
        )
    seed = _fresh_seed() if seed is None else seed
    model = build_model(*read_model(str(_index()[name].config), options, backbone_only), seed)
    if pretrained:
        state = unwrap(load_checkpoint(_index()[name].weights if pretrained is True else pretrained))
        if backbone_only:  # the checkpoint may be of the whole model
            state = below(state, 'backbone.') or state
        model.load_state_dict(state)
    return model
