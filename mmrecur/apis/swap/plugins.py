"""Keep the plugin layers of the replaced backbone where the new backbone has a place for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrecur.apis.swap.target import Replaced
from mmrecur.models.backbones.plugins import POSITIONS, Plugins


def _translated(plugin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a plugin for four stages, without the postfix of its name.

    A ResNet of mmdet may have fewer stages.
    """
    config = dict(plugin, cfg={key: value for key, value in plugin['cfg'].items() if key != 'postfix'})
    if plugin.get('stages') is not None:
        stages = tuple(plugin['stages'])
        config['stages'] = stages + (False,) * (4 - len(stages))
    return config


def kept_plugins(replaced: Replaced, attention: Any) -> list[dict[str, Any]]:
    """Return the plugins that a backbone with the option ``plugins`` keeps.

    Args:
        replaced (Replaced): The replaced backbone.
        attention (Any): Attention of the new backbone, which takes the place ``'after_conv3'``. None if there
            is none.

    Returns:
        list[dict]: Configs of the plugins at allowed positions; empty if they contradict each other, such as
        two in the same place.
    """
    places = [place for place in POSITIONS if place != 'after_conv3' or attention is None]
    plugins = [_translated(plugin) for plugin in replaced.unknown.get('plugins') or ()]
    kept = [plugin for plugin in plugins if plugin['position'] in places]
    try:
        Plugins(kept)
    except (TypeError, ValueError):
        return []
    return kept


def lost_plugins(replaced: Replaced, new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the plugins of the replaced backbone that the new one, of the given config, lacks."""
    kept = new.get('plugins') or ()
    return [plugin for plugin in replaced.unknown.get('plugins') or () if _translated(plugin) not in kept]
