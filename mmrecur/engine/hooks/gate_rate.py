"""Log the rates of gates."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmrecur.registry import HOOKS


@HOOKS.register_module()
class GateRateHook(Hook):
    """Log the share of images that each gate lets pass, under names such as ``gate_rate/layer3.1.0``.

    The hook calls ``gate_rates()`` of every module that has this method. The last number of a name is the
    index of the loop's iteration. Reading the rates makes the host wait for a GPU, so the hook reads them
    only once every ``interval`` training iterations.

    Args:
        interval (int): Training iterations between two readings. The interval of the logger is a good choice.
            Defaults to 10.

    Example:
        >>> custom_hooks = [dict(type='mmrecur.GateRateHook', interval=50)]  # in a config
    """

    # Runs before the logger, which reads the message hub.
    priority = 'NORMAL'

    def __init__(self, interval: int = 10) -> None:
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(f'interval={interval!r}, allowed: an integer of at least 1')
        self.interval = interval

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Pass the rates to the message hub.

        Args:
            runner (Runner): The runner.
            batch_idx (int): Index of the iteration in its epoch.
            data_batch (Any): Unused.
            outputs (dict, optional): Unused.
        """
        if not self.every_n_train_iters(runner, self.interval):
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for module in model.modules():
            if module.training and hasattr(module, 'gate_rates'):
                for name, rate in module.gate_rates().items():
                    runner.message_hub.update_scalar(f'train/gate_rate/{name}', rate)
