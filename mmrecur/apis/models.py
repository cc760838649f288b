"""The models that this package has configs for, by name."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from torch import nn

import mmrecur
from mmrecur.apis.randomness import FreshSeeds
from mmrecur.apis.specs import build_model, read_model
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.checkpoint.unwrap import below, unwrap

#: Task of the models that mmpretrain can build, as the metafiles name it.
CLASSIFICATION = 'Image Classification'
_fresh_seed = FreshSeeds()


@dataclass(frozen=True)
class ModelInfo:
    """An entry of the model index.

    Attributes:
        name (str): The model's name, that of its config.
        config (Path): The config.
        tasks (tuple[str, ...]): What it is for, such as ``'Object Detection'``.
        weights (str, optional): Published weights.
    """

    name: str
    config: Path
    tasks: tuple[str, ...]
    weights: str | None


def _root() -> Path:
    """Where ``model-index.yml`` is: in an installed package, or in the source tree."""
    package = Path(mmrecur.__file__).parent
    for root in (package / '.mim', package.parent):
        if (root / 'model-index.yml').is_file():
            return root
    raise FileNotFoundError('model-index.yml is neither in mmrecur/.mim nor beside the package')


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
    """Names of the models.

    Args:
        pattern (str): Shell pattern, or a part of the name. Defaults to all.
        task (str, optional): Only models for it, e.g. ``'Object Detection'``. Defaults to None.

    Returns:
        list[str]: Names in alphabetical order.

    Raises:
        ValueError: If no model is for ``task``.

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
    """Make mmpretrain's own hub know the classifiers of this package.

    Afterwards ``mmpretrain.get_model``, ``mmpretrain.list_models`` and the inferencers of mmpretrain take
    their names too. A second call does nothing. (Importing ``mmrecur`` does not do it: it would import all
    of mmpretrain.)

    Returns:
        list[str]: Their names.

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
        # the index has detectors too, which mmpretrain could not build
        index = yaml.safe_load((_root() / 'model-index.yml').read_text())['Import']
        files = [yaml.safe_load((_root() / path).read_text()) for path in index]
        models = [entry for file in files for entry in file['Models'] if entry['Name'] in new]
        collections = [entry for file in files for entry in file.get('Collections', [])]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'model-index.yml'
            path.write_text(yaml.safe_dump(dict(Collections=collections, Models=models), sort_keys=False))
            ModelHub.register_model_index(path, config_prefix=_root())
    return names


def get_model(
    name: str,
    pretrained: bool | str = False,
    backbone_only: bool = False,
    options: dict[str, Any] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build a model by name.

    Random weights depend on the state of torch's global generator, which is read and never moved: no other
    random number of a program changes because a model is built. Two models built in a row differ.

    Args:
        name (str): A name that :func:`list_models` gives.
        pretrained (bool or str): A checkpoint file of the model, read without running anything it
            carries; True for published weights. Defaults to False, random weights.
        backbone_only (bool): Build the backbone alone. Defaults to False.
        options (dict, optional): Changes to the config by dotted key, e.g.
            ``{'model.backbone.variant': 'v3'}``. Defaults to None.
        seed (int, optional): Of the random weights, the same ones for the same seed. Defaults to None, by
            the state of torch's generator and the number of models built at it.

    Returns:
        nn.Module: The classifier, the detector or its backbone.

    Raises:
        ValueError: If there is no such model, or no weights are published for it.
        CheckpointError: If the file is damaged or carries code.
        RuntimeError: If its weights do not fit.
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
        if backbone_only:  # of a whole model's file its backbone
            state = below(state, 'backbone.') or state
        model.load_state_dict(state)
    return model
