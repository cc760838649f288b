"""How large the gradients are that reach shared filter bases, over a training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from mmrecur.models.backbones.shared_basis_backbone import SharedBasisBackbone


@dataclass(frozen=True)
class GradientRecord:
    """Absolute gradients of every shared basis at one iteration.

    Attributes:
        epoch (int): Epoch, counted from 0.
        iteration (int): Iteration, counted from 0.
        maximum (dict[str, float]): Largest absolute gradient by the basis' name.
        mean (dict[str, float]): Mean absolute gradient by the basis' name.
    """

    epoch: int
    iteration: int
    maximum: dict[str, float]
    mean: dict[str, float]

    @classmethod
    def of(cls, gradients: dict[str, Tensor], epoch: int, iteration: int) -> GradientRecord:
        """Summarise gradients.

        Args:
            gradients (dict[str, Tensor]): Gradient by the basis' name.
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
        """The record as a line."""
        return json.dumps(asdict(self))


def shared_filters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Shared filter bases of a model.

    Args:
        model (nn.Module): A backbone with shared bases, or a model with one.

    Returns:
        dict[str, nn.Parameter]: Filters by name, such as ``layer1.basis.conv2``.

    Raises:
        ValueError: If there are none.
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
            'backbone such as mmrecur.ResNetShared that shares'
        )
    return found


def read_records(path: str | Path) -> list[GradientRecord]:
    """Read what :class:`GradientFlowHook` wrote.

    Args:
        path (str or Path): The file, or the run's folder, whose newest file is taken.

    Returns:
        list[GradientRecord]: The records in order.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.rglob('gradient_flow.jsonl'), key=lambda file: file.stat().st_mtime_ns)
        if not files:
            raise FileNotFoundError(
                f'no gradient_flow.jsonl in {path}: was the run made with mmrecur.GradientFlowHook?'
            )
        path = files[-1]
    return [GradientRecord(**json.loads(line)) for line in path.read_text().splitlines() if line]


def of_epoch(records: Sequence[GradientRecord], epoch: int) -> list[GradientRecord]:
    """The records of one epoch.

    Args:
        records (Sequence[GradientRecord]): Records of a run.
        epoch (int): Epoch, counted from 0; negative numbers count from the last.

    Returns:
        list[GradientRecord]: Its records.

    Raises:
        ValueError: If there are none.
    """
    epochs = sorted({record.epoch for record in records})
    wanted = epochs[epoch] if epoch < 0 and -epoch <= len(epochs) else epoch
    chosen = [record for record in records if record.epoch == wanted]
    if not chosen:
        allowed = ', '.join(map(str, epochs)) or 'none, the file is empty'
        raise ValueError(f'epoch={epoch}, allowed: {allowed}')
    return chosen
