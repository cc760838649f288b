"""Validate models with the validation data and metrics of a config, without a runner."""

from __future__ import annotations

import copy
from numbers import Real

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch import nn

from mmrecur.apis.runner import stack_batches
from mmrecur.apis.specs import registry_scope
from mmrecur.apis.start import quiet_libraries
from mmrecur.engine.randomness import own_randomness
from mmrecur.errors import ToolError
from mmrecur.models.layers.common.modes import evaluation_mode


class Validation:
    """Validates models on the validation data of a config.

    Args:
        cfg (Config): Config with ``val_dataloader`` and ``val_evaluator``.

    Raises:
        ToolError: If the config has no validation data.

    Example:
        >>> metrics = Validation(cfg)(model)  # doctest: +SKIP
        >>> metrics['coco/bbox_mAP']  # doctest: +SKIP
        0.627
    """

    def __init__(self, cfg: Config) -> None:
        for name in ('val_dataloader', 'val_evaluator'):
            if cfg.get(name) is None:
                raise ToolError(f'--val: config {cfg.filename!r} has no {name}')
        cfg = copy.deepcopy(cfg)
        stack_batches(cfg)
        self._scope = cfg.get('default_scope')
        with registry_scope(self._scope), own_randomness(), quiet_libraries():
            self._loader = Runner.build_dataloader(cfg.val_dataloader.to_dict())
            self._evaluator = Evaluator(cfg.val_evaluator)
        self._evaluator.dataset_meta = getattr(self._loader.dataset, 'metainfo', None)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Validate a model.

        Args:
            model (nn.Module): A model of the config's library, with ``val_step``.

        Returns:
            dict[str, float]: Metrics by name, without those that are not a number, such as lists by class.
        """
        with registry_scope(self._scope), own_randomness(), evaluation_mode(model), quiet_libraries():
            for data in self._loader:
                self._evaluator.process(data_samples=model.val_step(data), data_batch=data)
            metrics = self._evaluator.evaluate(len(self._loader.dataset))
        return {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)
        }
