"""Log the losses of the whole batch when several processes train."""

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

    MMEngine logs the losses that rank 0 computed on its share of a batch. This hook replaces each of them by
    its average over the processes that report it. The first iteration of rank 0 determines the names of the
    averaged losses. The hook adds one small reduction per iteration and does not change gradients.
    """

    # Runs before RuntimeInfoHook, which passes the values to the log.
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
        """Replace the losses in ``outputs`` by their averages.

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
        # All processes reduce sums and counts of the same names, so that none waits for another forever.
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
