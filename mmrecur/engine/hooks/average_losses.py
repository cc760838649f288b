"""Losses in the log that are those of the whole batch, not of one process's part of it."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce, broadcast_object_list, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrecur.registry import HOOKS


@HOOKS.register_module()
class AverageLossesHook(Hook):
    """Average the logged losses over the processes.

    MMEngine logs what rank 0 computed on its share of a batch. This hook replaces it by the average
    over the processes that report the value, with one small reduction an iteration. The values
    averaged are those that rank 0 reports in the first iteration. Gradients are not touched.
    """

    # Before RuntimeInfoHook, which hands the values to the log.
    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._names: list[str] | None = None

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Replace the values in ``outputs``.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Unused.
            data_batch (Any): Unused. Defaults to None.
            outputs (dict, optional): Values to log, by name. Defaults to None.
        """
        if get_world_size() == 1 or not isinstance(outputs, dict):
            return
        if self._names is None:
            names = [sorted(outputs)]
            broadcast_object_list(names)
            self._names = names[0]
        # Sums and counts of a fixed number of names, so that no process can wait for another.
        table = torch.zeros(2, len(self._names), dtype=torch.float64)
        tensors = [value for value in outputs.values() if isinstance(value, torch.Tensor)]
        table = table.to(device=tensors[0].device if tensors else None)
        for column, name in enumerate(self._names):
            value = outputs.get(name)
            if isinstance(value, (int, float)) or (torch.is_tensor(value) and value.numel() == 1):
                table[0, column] = value.detach() if torch.is_tensor(value) else value
                table[1, column] = 1
        all_reduce(table)
        for column, name in enumerate(self._names):
            if name in outputs:
                value = outputs[name]
                average = table[0, column] / table[1, column]
                if torch.is_tensor(value) and value.numel() == 1:
                    outputs[name] = average.to(value.dtype).reshape(value.shape)
                elif isinstance(value, (int, float)):
                    outputs[name] = average.item()
