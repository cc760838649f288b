"""Record the gradients that reach shared filter bases."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmrecur.checks import check_int
from mmrecur.models.backbones.shared_basis_backbone import SharedBasisBackbone
from mmrecur.registry import HOOKS


@dataclass(frozen=True)
class GradientRecord:
    """Absolute gradients of every shared basis at one iteration.

    Attributes:
        epoch (int): Epoch, counted from 0.
        iteration (int): Iteration, counted from 0.
        maximum (dict[str, float]): Largest absolute gradient by basis name.
        mean (dict[str, float]): Mean absolute gradient by basis name.
    """

    epoch: int
    iteration: int
    maximum: dict[str, float]
    mean: dict[str, float]

    @classmethod
    def of(cls, gradients: dict[str, Tensor], epoch: int, iteration: int) -> GradientRecord:
        """Return the record of an iteration's gradients.

        Args:
            gradients (dict[str, Tensor]): Gradients by basis name.
            epoch (int): Epoch.
            iteration (int): Iteration.

        Returns:
            GradientRecord: The record.
        """
        sizes = {name: grad.detach().abs().float() for name, grad in gradients.items()}
        return cls(
            epoch,
            iteration,
            {name: size.max().item() for name, size in sizes.items()},
            {name: size.mean().item() for name, size in sizes.items()},
        )

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(asdict(self))


def shared_filters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the shared filter bases of a model.

    Args:
        model (nn.Module): A backbone with shared bases, or a model with one.

    Returns:
        dict[str, nn.Parameter]: Filters by name, such as ``layer1.basis.conv2``.

    Raises:
        ValueError: If the model has no shared filter bases.
    """
    found = {
        name.removesuffix('.weight'): parameter
        for backbone in model.modules()
        if isinstance(backbone, SharedBasisBackbone)
        for name, parameter in backbone.named_parameters()
        if '.basis.' in name
    }
    if not found:
        raise ValueError(
            f'model of type {type(model).__name__} has no shared filter bases, allowed: a model with a '
            'backbone such as mmrecur.ResNetShared that shares its bases'
        )
    return found


@HOOKS.register_module()
class GradientFlowHook(Hook):
    """Record the largest and the mean absolute gradient of every shared filter basis.

    Figure 3 of Kang and Kim, *Deeply Shared Filter Bases*, shows such gradients. Every ``interval``
    iterations the hook appends a line to ``gradient_flow.jsonl`` in the folder of the run's logs.
    ``tools/analysis_tools/plot_gradient_flow.py`` draws the file. The gradients are those of the whole loss
    in the first process, divided by the loss scale of mixed precision.

    Args:
        interval (int): Number of iterations between records. Defaults to 10.

    Example:
        >>> custom_hooks = [dict(type='mmrecur.GradientFlowHook', interval=10)]  # in a config
    """

    def __init__(self, interval: int = 10) -> None:
        check_int('interval', interval, 1)
        self.interval = interval
        self._gradients: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._path: Path | None = None

    def before_train(self, runner: Runner) -> None:
        """Register hooks on the shared filters.

        Args:
            runner (Runner): The runner of the training.

        Raises:
            ValueError: If the model shares no filter bases.
        """
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        self.after_train(runner)
        filters = {name: weight for name, weight in shared_filters(model).items() if weight.requires_grad}
        if runner.rank == 0:
            self._path = Path(runner.log_dir) / 'gradient_flow.jsonl'
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handles = [
                weight.register_hook(partial(self._listen, runner, name)) for name, weight in filters.items()
            ]

    def _listen(self, runner: Runner, name: str, grad: Tensor) -> None:
        if self.every_n_train_iters(runner, self.interval):
            # Divide now, because the optimizer step may change the scale.
            scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
            self._gradients[name] = grad if scaler is None else grad / scaler.get_scale()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the gradients of the backward pass to the file.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Unused.
            data_batch (Any): Unused. Defaults to None.
            outputs (Any): Unused. Defaults to None.
        """
        if not self._gradients:
            return
        record = GradientRecord.of(self._gradients, runner.epoch, runner.iter)
        self._gradients = {}
        with self._path.open('a') as file:
            file.write(record.to_json() + '\n')

    def after_train(self, runner: Runner) -> None:
        """Remove the hooks from the shared filters.

        Args:
            runner (Runner): The runner of the training.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
