"""The edits that a swap makes to a config.

Every function here computes edits and changes nothing; :func:`apply_edits` applies them to a copy.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from mmrecur.apis.swap.start import pretrained
from mmrecur.apis.swap.target import Target
from mmrecur.errors import ToolError

#: Value of an edit that deletes the key.
DELETED = object()
#: Keys and list indices that lead to a value in a config.
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Edit:
    """One value of a config that a swap sets.

    Attributes:
        path (tuple): Keys and list indices that lead to the value.
        before (Any): Value in the base, None if there is none.
        after (Any): New value, or :data:`DELETED`.
    """

    path: Path
    before: Any
    after: Any

    @property
    def place(self) -> str:
        """str: The path as text, such as ``'model.neck[0].in_channels'``."""
        keys = (f'[{key}]' if isinstance(key, int) else f'.{key}' for key in self.path)
        return ''.join(keys).removeprefix('.')


def apply_edits(base: Config, edits: Sequence[Edit]) -> Config:
    """Return a copy of a config with edits applied.

    Args:
        base (Config): The config. It is not changed.
        edits (Sequence[Edit]): The edits, applied in this order.

    Returns:
        Config: The copy.
    """
    config = copy.deepcopy(base)
    for edit in edits:
        *parents, key = edit.path
        part = config
        for parent in parents:
            part = part[parent]
        if edit.after is DELETED:
            del part[key]
        else:
            part[key] = copy.deepcopy(edit.after)
    return config


def import_edits(config: Config) -> list[Edit]:
    """Return the edit that makes a config import this package, if it does not yet."""
    before = config.get('custom_imports')
    imports = dict(before or dict(imports=[], allow_failed_imports=False))
    names = [imports['imports']] if isinstance(imports['imports'], str) else list(imports['imports'])
    if 'mmrecur' in names:
        return []
    return [Edit(('custom_imports',), before, dict(imports, imports=[*names, 'mmrecur']))]


def hook_edits(config: Config, hooks: Sequence[Mapping[str, Any]]) -> list[Edit]:
    """Return the edit that adds hooks to ``custom_hooks``, except hooks of types that are there already."""
    own = config.get('custom_hooks') or []
    present = {re.sub(r'^.*\.', '', str(hook.get('type'))) for hook in own}
    missing = [dict(hook) for hook in hooks if hook['type'].rpartition('.')[2] not in present]
    return [Edit(('custom_hooks',), own or None, [*own, *missing])] if missing else []


def optimizer_edits(config: Config, rules: Mapping[str, Any]) -> list[Edit]:
    """Return the edit that adds rules to ``optim_wrapper.paramwise_cfg``; the config's own rules win.

    Raises:
        ToolError: If the config has an optimizer constructor that may ignore the rules.
    """
    wrapper = config.get('optim_wrapper')
    if wrapper is None or not rules:
        return []
    constructor = wrapper.get('constructor', 'DefaultOptimWrapperConstructor')
    if constructor.rpartition('.')[2] != 'DefaultOptimWrapperConstructor':
        raise ToolError(
            f'optim_wrapper.constructor={constructor!r} may not follow the rules that the backbone needs, '
            f'paramwise_cfg={dict(rules)}; allowed: DefaultOptimWrapperConstructor'
        )
    before = wrapper.get('paramwise_cfg')
    after = _merge(before or {}, rules)
    return [] if after == before else [Edit(('optim_wrapper', 'paramwise_cfg'), before, after)]


def _merge(own: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested dicts; values of ``own`` win."""
    merged = dict(own)
    for key, value in added.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged.setdefault(key, value)
    return merged


def drop_edits(config: Config, target: Target) -> list[Edit]:
    """Return the edit that drops a checkpoint of the whole model, if the config loads one.

    Such a checkpoint holds weights of the replaced backbone.
    """
    if config.get('load_from'):
        return [Edit(('load_from',), config.load_from, None)]
    loaded = pretrained(target.model)
    if loaded is None:
        return []
    key = 'init_cfg' if 'init_cfg' in target.model else 'pretrained'
    return [Edit((*target.path, key), loaded['checkpoint'], DELETED)]


def load_edits(config: Config, target: Target, checkpoint: str) -> list[Edit]:
    """Return the edit that makes a config load a grafted checkpoint of the target."""
    loaded = pretrained(target.model)
    if target.is_nested or loaded:  # load_from would be loaded into the whole model
        before = (loaded or {}).get('checkpoint')
        return [Edit((*target.path, 'init_cfg'), before, dict(type='Pretrained', checkpoint=checkpoint))]
    return [Edit(('load_from',), config.get('load_from'), checkpoint)]


def channel_edits(target: Target, old: Sequence[int], new: Sequence[int]) -> list[Edit]:
    """Return the edits of the input channels of the modules that read the backbone's feature maps.

    These are the neck (the first of several). Without a neck, or with one that does not change the number
    of channels, such as a pooling layer, they are the heads and their RoI extractors.

    Args:
        target (Target): The part of the config with the backbone.
        old (Sequence[int]): Channels of each output of the replaced backbone.
        new (Sequence[int]): Channels of each output of the new backbone, equally many.

    Returns:
        list[Edit]: The edits.

    Raises:
        ToolError: If a module declares other channels than the old ones, or cannot read the new ones.
    """
    if list(old) == list(new):
        return []
    edits = []
    for path, before in _readers(target.model, new):
        edit = Edit((*target.path, *path), before, before)
        after = _translate(before, old, new, edit.place)
        if after != before:
            edits.append(Edit(edit.path, before, after))
    edits += _pass_through_edits(target, old, new)
    if not edits:
        raise ToolError(
            f'the outputs have {list(new)} channels instead of {list(old)}, and nothing in the config '
            'declares how many channels the following modules read'
        )
    return edits


def _items(node: Any, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a module's config, or each config of a list of modules, with its path."""
    if isinstance(node, dict):
        yield path, node
    elif isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            if isinstance(item, dict):
                yield (*path, index), item


def _readers(model: dict[str, Any], new: Sequence[int]) -> Iterator[tuple[Path, Any]]:
    """Yield path and value of every option that declares the channels of the backbone's maps."""
    for path, neck in _items(model.get('neck'), ('neck',)):
        if 'in_channels' in neck:
            yield (*path, 'in_channels'), neck['in_channels']
            return
    for key in [key for key in model if key.endswith('head')]:
        for path, head in _items(model[key], (key,)):
            if 'in_channels' in head:
                yield (*path, 'in_channels'), head['in_channels']
            if key == 'roi_head':
                yield from _roi_readers(head, path, new)


def _roi_readers(roi_head: dict[str, Any], root: Path, new: Sequence[int]) -> Iterator[tuple[Path, Any]]:
    for key in [key for key in roi_head if key.endswith('roi_extractor')]:
        for path, extractor in _items(roi_head[key], (*root, key)):
            if 'out_channels' in extractor:
                yield (*path, 'out_channels'), extractor['out_channels']
    shared = roi_head.get('shared_head')
    if shared is None:
        for key in [key for key in roi_head if key.endswith('head')]:
            for path, head in _items(roi_head[key], (*root, key)):
                if 'in_channels' in head:
                    yield (*path, 'in_channels'), head['in_channels']
    elif str(shared.get('type')).endswith('ResLayer'):
        channels = 64 * 2 ** (shared.get('stage', 3) - 1) * (4 if shared.get('depth', 50) >= 50 else 1)
        if channels != new[-1]:
            raise ToolError(
                f'roi_head.shared_head, a stage of a ResNet-{shared.get("depth")}, reads {channels} channels '
                f'and no other number; the last output of the new backbone has {new[-1]}'
            )


def _pass_through_edits(target: Target, old: Sequence[int], new: Sequence[int]) -> list[Edit]:
    """Return the edits for a neck, such as SSD's, that passes the backbone's maps on before its own maps."""
    neck, head = target.model.get('neck'), target.model.get('bbox_head')
    before = neck.get('out_channels') if isinstance(neck, dict) else None
    if not isinstance(before, (list, tuple)) or list(before[: len(old)]) != list(old):
        return []
    after = type(before)([*new, *before[len(old) :]])
    edits = [Edit((*target.path, 'neck', 'out_channels'), before, after)]
    if isinstance(head, dict) and list(head.get('in_channels') or []) == list(before):
        edits.append(Edit((*target.path, 'bbox_head', 'in_channels'), head['in_channels'], after))
    return edits


def _translate(value: Any, old: Sequence[int], new: Sequence[int], place: str) -> Any:
    """Replace old channels by new ones in an int or a sequence of ints."""
    if isinstance(value, (list, tuple)) and list(value) == list(old):
        return type(value)(new)
    table = dict(zip(old, new, strict=True))
    is_unique = all(table[o] == n for o, n in zip(old, new))
    items = value if isinstance(value, (list, tuple)) else [value]
    if not is_unique or any(item not in table for item in items):
        raise ToolError(
            f'{place}={value!r} are not the {list(old)} channels of the outputs of the replaced backbone'
        )
    return type(value)(table[item] for item in items) if isinstance(value, (list, tuple)) else table[value]
