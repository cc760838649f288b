"""MMCV's plugin layers in a residual network, configured as in MMDetection's ResNets.

Wang et al., *Non-local Neural Networks*, CVPR 2018, https://arxiv.org/abs/1711.07971; Cao et al., *GCNet*,
ICCV Workshops 2019, https://arxiv.org/abs/1904.11492.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmcv.cnn import build_plugin_layer
from mmengine.model import update_init_info
from torch import nn

from mmrecur.checks import check_choice
from mmrecur.registry import WEIGHT_INITIALIZERS

#: Positions of plugins: the residual of every block, or the input of the last block of a stage.
POSITIONS = ('after_conv3', 'before_last_block')


@dataclass(frozen=True)
class Plugins:
    """Checked configs of the plugins of a network.

    Attributes:
        cfgs (Sequence[dict]): The ``plugins`` of :class:`RLAResNet`.
        num_stages (int): Number of stages of the architecture.

    Raises:
        TypeError, ValueError: If a config is wrong, or if two plugins have the same position and stage.
    """

    cfgs: Sequence[dict[str, Any]] = ()
    num_stages: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.cfgs, (list, tuple)):
            raise TypeError(f'plugins={self.cfgs!r}, allowed: None or a list of dicts')
        taken = set()
        for plugin in self.cfgs:
            self._check(plugin)
            for stage in self._stages(plugin):
                place = plugin['position'], stage
                if place in taken:
                    raise ValueError(
                        f'plugins has two {place[0]} in stage {stage + 1}, allowed: one, as their order '
                        'would be open'
                    )
                taken.add(place)

    def _check(self, plugin: Any) -> None:
        allowed = (
            "allowed: dict(cfg=dict(type='ContextBlock', ratio=1 / 16), position='after_conv3', "
            'stages=(False, True, True, True))'
        )
        keys = set(plugin) if isinstance(plugin, dict) else set()
        if not {'cfg', 'position'} <= keys <= {'cfg', 'position', 'stages'}:
            raise TypeError(f'plugins holds {plugin!r}, {allowed}')
        if not isinstance(plugin['cfg'], dict) or 'type' not in plugin['cfg']:
            raise TypeError(f'plugins has cfg={plugin["cfg"]!r}, {allowed}')
        check_choice('position of plugins', plugin['position'], POSITIONS)
        stages = plugin.get('stages')
        listed = isinstance(stages, (list, tuple)) and len(stages) == self.num_stages
        if stages is not None and not (listed and all(isinstance(on, bool) for on in stages)):
            raise ValueError(f'plugins has stages={stages!r}, allowed: None or a boolean for each stage')

    def _stages(self, plugin: dict[str, Any]) -> Iterator[int]:
        stages = plugin.get('stages')
        return (i for i in range(self.num_stages) if stages is None or stages[i])

    def has(self, position: str, stage: int) -> bool:
        """Return whether a stage has a plugin at a position, see :meth:`build`."""
        return any(p['position'] == position and stage in self._stages(p) for p in self.cfgs)

    def build(self, position: str, stage: int, channels: int) -> nn.Module | None:
        """Build the plugin of a stage at a position.

        Args:
            position (str): One of :data:`POSITIONS`.
            stage (int): Index of the stage.
            channels (int): Channels of the map.

        Returns:
            nn.Module, optional: The layer. None if there is no plugin.

        Raises:
            ValueError: If the layer is not registered or its arguments are wrong.
        """
        for plugin in self.cfgs:
            if plugin['position'] == position and stage in self._stages(plugin):
                try:
                    return build_plugin_layer(plugin['cfg'], in_channels=channels)[1]
                except (AssertionError, KeyError, TypeError, ValueError) as error:
                    raise ValueError(
                        f'plugins has cfg={plugin["cfg"]!r}, which builds no plugin: {error}. Allowed: one '
                        "registered with MMCV, e.g. dict(type='ContextBlock', ratio=1 / 16), "
                        "dict(type='NonLocal2d')"
                    ) from error
        return None


@WEIGHT_INITIALIZERS.register_module(name='PluginInit')
class PluginInit:
    """Initialises the plugins of a backbone as MMCV does, so that those of the papers are the identity.

    It runs after the initialisers of all convolutions and before checkpoints are loaded.
    """

    def __call__(self, module: nn.Module) -> None:
        """Initialise the ``plugin_layers()`` of a backbone that have initialisers of their own."""
        for layer in module.plugin_layers():
            own = getattr(layer, 'init_weights', None) or getattr(layer, 'reset_parameters', None)
            if own is not None:
                own()
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=type(self).__name__)


def with_plugin_init(init_cfg: list[dict]) -> list[dict]:
    """Insert :class:`PluginInit` before the checkpoints in a list of initialisers.

    Args:
        init_cfg (list[dict]): Initialisers.

    Returns:
        list[dict]: A new list.
    """
    at = next((i for i, cfg in enumerate(init_cfg) if 'checkpoint' in cfg), len(init_cfg))
    return [*init_cfg[:at], dict(type='mmrecur.PluginInit'), *init_cfg[at:]]
