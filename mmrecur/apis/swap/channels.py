"""Who reads the backbone's maps, and how wide they are told these are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmrecur.errors import ToolError

#: Place and key in a host's config, e.g. ``('neck', {...}, 'in_channels')``.
Place = tuple[str, dict[str, Any], str]


def set_channels(model: dict[str, Any], old: Sequence[int], new: Sequence[int]) -> list[tuple[str, Any, Any]]:
    """Tell what reads a backbone how many channels it has now.

    That is the neck, the first of several, or where there is none, or one that changes no channels (such
    as a pooling), the heads and what extracts regions for them.

    Args:
        model (dict): The host's config, changed in place.
        old (Sequence[int]): Channels of each output before.
        new (Sequence[int]): Channels of each output now, as many.

    Returns:
        list[tuple]: Place, value before and value now of what has changed.

    Raises:
        ToolError: If a reader names other channels than the old ones or cannot read others.
    """
    if list(old) == list(new):
        return []
    changes = []
    for place, part, key in _readers(model, new):
        before = part[key]
        after = _translated(before, old, new, f'{place}.{key}')
        if after != before:
            part[key] = after
            changes.append((f'{place}.{key}', before, after))
    changes += _passed_through(model, old, new)
    if not changes:
        raise ToolError(
            f'the outputs have {list(new)} channels instead of {list(old)}, and nothing in the config says '
            'how many the parts behind it read'
        )
    return changes


def _each(node: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A part's config, or each of several."""
    if isinstance(node, dict):
        yield place, node
    elif isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            if isinstance(item, dict):
                yield f'{place}[{index}]', item


def _readers(model: dict[str, Any], new: Sequence[int]) -> Iterator[Place]:
    for place, neck in _each(model.get('neck'), 'neck'):
        if 'in_channels' in neck:
            yield place, neck, 'in_channels'
            return
    for key in [key for key in model if key.endswith('head')]:
        for place, head in _each(model[key], key):
            if 'in_channels' in head:
                yield place, head, 'in_channels'
            if key == 'roi_head':
                yield from _roi_readers(head, new)


def _roi_readers(roi_head: dict[str, Any], new: Sequence[int]) -> Iterator[Place]:
    for key in [key for key in roi_head if key.endswith('roi_extractor')]:
        for place, extractor in _each(roi_head[key], f'roi_head.{key}'):
            if 'out_channels' in extractor:
                yield place, extractor, 'out_channels'
    shared = roi_head.get('shared_head')
    if shared is None:
        for key in [key for key in roi_head if key.endswith('head')]:
            for place, head in _each(roi_head[key], f'roi_head.{key}'):
                if 'in_channels' in head:
                    yield place, head, 'in_channels'
    elif str(shared.get('type')).endswith('ResLayer'):
        reads = 64 * 2 ** (shared.get('stage', 3) - 1) * (4 if shared.get('depth', 50) >= 50 else 1)
        if reads != new[-1]:
            raise ToolError(
                f'roi_head.shared_head, a stage of a ResNet-{shared.get("depth")}, reads {reads} channels '
                f'and no others; the last output of the new backbone has {new[-1]}'
            )


def _passed_through(
    model: dict[str, Any], old: Sequence[int], new: Sequence[int]
) -> list[tuple[str, Any, Any]]:
    """A neck such as SSD's passes the maps on before those it makes: the head reads them in its list."""
    neck, head = model.get('neck'), model.get('bbox_head')
    before = neck.get('out_channels') if isinstance(neck, dict) else None
    if not isinstance(before, (list, tuple)) or list(before[: len(old)]) != list(old):
        return []
    after = type(before)([*new, *before[len(old) :]])
    neck['out_channels'] = after
    changes = [('neck.out_channels', before, after)]
    if isinstance(head, dict) and list(head.get('in_channels') or []) == list(before):
        changes.append(('bbox_head.in_channels', head['in_channels'], after))
        head['in_channels'] = after
    return changes


def _translated(value: Any, old: Sequence[int], new: Sequence[int], place: str) -> Any:
    if isinstance(value, (list, tuple)) and list(value) == list(old):
        return type(value)(new)
    table = dict(zip(old, new, strict=True))
    unambiguous = all(table[o] == n for o, n in zip(old, new))
    items = value if isinstance(value, (list, tuple)) else [value]
    if not unambiguous or any(item not in table for item in items):
        raise ToolError(
            f'{place}={value!r} are not the {list(old)} channels of the outputs of the replaced backbone'
        )
    return type(value)(table[item] for item in items) if isinstance(value, (list, tuple)) else table[value]
