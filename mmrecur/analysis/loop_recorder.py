"""Recording of the gates' decisions while a network runs in evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrecur.analysis.gate_maps import GateMaps, MapStatistics
from mmrecur.analysis.loop_times import LoopTimes
from mmrecur.models.backbones.loop_backbone import LoopBackbone
from mmrecur.models.layers.loop.block import LoopBlock, gated_loop_blocks

_NO_GATES = '{} has no gates, allowed: a backbone with gated loops, such as mmrecur.DRResNet'


class LoopRecorder:
    """Record the decisions of all gates of a backbone in evaluation, within a context.

    The number of iterations is recorded for each image, and optionally statistics of the feature maps that
    reach the gates.

    Args:
        backbone (LoopBackbone): Backbone with gates, in training or inference form. Its loops may skip or
            mask samples.
        with_maps (bool): Whether to record statistics of the maps. Defaults to True.

    Attributes:
        maps (list[GateMaps]): Statistics for each gated iteration of each loop.

    Raises:
        ValueError: If the backbone has no gates, or if it runs in training mode.

    Example:
        >>> from mmrecur.models.backbones import DRResNet
        >>> model = DRResNet(depth=16).eval()
        >>> with LoopRecorder(model) as recorder, torch.no_grad():
        ...     features = model(torch.rand(4, 3, 32, 32))
        >>> recorder.times().totals
        array([4, 4, 4, 4])
    """

    def __init__(self, backbone: LoopBackbone, with_maps: bool = True) -> None:
        self._blocks = gated_loop_blocks(backbone)
        if not self._blocks:
            raise ValueError(_NO_GATES.format(type(backbone).__name__))
        self.with_maps = with_maps
        self.maps = [
            GateMaps(name, k, MapStatistics(), MapStatistics())
            for name, block in self._blocks.items()
            for k in range(block.first_gated, block.num_iterations)
        ]
        self._counts: dict[str, list[Tensor]] = {name: [] for name in self._blocks}
        self._handles: list[Any] = []

    def __enter__(self) -> LoopRecorder:
        for name, block in self._blocks.items():
            self._handles += self._watch(name, block)
        return self

    def __exit__(self, *error: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def times(self) -> LoopTimes:
        """Return the recorded numbers of iterations.

        Returns:
            LoopTimes: Numbers for all images so far, in the order in which they ran.
        """
        limits = {name: block.num_iterations for name, block in self._blocks.items()}
        counts = {
            name: torch.cat(own).cpu().numpy() if own else np.empty(0, np.int64)
            for name, own in self._counts.items()
        }
        return LoopTimes(limits, counts)

    def _watch(self, name: str, block: LoopBlock) -> list[Any]:
        """Add hooks to a loop and its gate; return their handles."""
        maps = [maps for maps in self.maps if maps.block == name]
        rows = counts = iteration = None  # rows: indices of the samples that are still in the loop

        def start(module: nn.Module, args: tuple) -> None:
            nonlocal rows, counts, iteration
            if module.training:
                raise ValueError('the backbone is in training mode, allowed: evaluation, after eval()')
            x = args[0]
            rows, iteration = torch.arange(len(x), device=x.device), 0
            counts = torch.full((len(x),), block.first_gated, device=x.device)
            self._counts[name].append(counts)

        def decide(gate: nn.Module, args: tuple, passed: Tensor) -> None:
            nonlocal rows, iteration
            x = args[0]
            if len(passed) > len(rows):  # a masked loop also asks about samples that have left
                x, passed = x[rows], passed[rows]
            if self.with_maps:
                maps[iteration].passed.add(x[passed])
                maps[iteration].skipped.add(x[~passed])
            rows, iteration = rows[passed], iteration + 1
            counts[rows] += 1

        return [block.register_forward_pre_hook(start), block.gate.register_forward_hook(decide)]


def find_loop_backbone(model: nn.Module) -> tuple[str, LoopBackbone]:
    """Find the backbone with gated loops in a model.

    Args:
        model (nn.Module): A backbone, classifier or detector.

    Returns:
        tuple[str, LoopBackbone]: Name of the backbone in the model, ``''`` for the model itself, and the
        backbone.

    Raises:
        ValueError: If no module of the model is such a backbone.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoopBackbone) and gated_loop_blocks(module):
            return name, module
    backbone = getattr(model, 'backbone', model)
    raise ValueError(_NO_GATES.format(type(backbone).__name__))
