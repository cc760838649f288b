"""Read the gradients of shared filter bases that a training has recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmrecur.engine.hooks.gradient_flow import GradientRecord


def read_records(path: str | Path) -> list[GradientRecord]:
    """Read the records of a :class:`~mmrecur.engine.GradientFlowHook`.

    Args:
        path (str or Path): The file, or the folder of the run, in which the newest file is used.

    Returns:
        list[GradientRecord]: The records in order.

    Raises:
        FileNotFoundError: If there is no file.
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
    """Select the records of one epoch.

    Args:
        records (Sequence[GradientRecord]): Records of a run.
        epoch (int): Epoch, counted from 0; negative numbers count from the last.

    Returns:
        list[GradientRecord]: The records of the epoch.

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
