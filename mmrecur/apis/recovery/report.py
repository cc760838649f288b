"""The report of a recovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass
class StageResult:
    """State of the student after a stage of the recovery.

    Attributes:
        name (str): ``'start'``, ``'norms'``, ``'match'`` or ``'gates'``.
        errors (dict[str, float]): Relative error ``||s - t|| / ||t||`` of each matched output on the images
            of the first batches, in evaluation mode.
        metrics (dict[str, float]): Values that the caller's ``evaluate`` returned.
        seconds (float): Duration of the stage without evaluations.
        is_kept (bool): Whether the stage lowered the errors. Otherwise it left the student as it was.
    """

    name: str
    errors: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    is_kept: bool = True

    @property
    def error(self) -> float:
        """float: Root mean square of the outputs' relative errors."""
        return (sum(value**2 for value in self.errors.values()) / len(self.errors)) ** 0.5


@dataclass
class RecoveryReport:
    """Report on a recovery.

    Attributes:
        parameters (tuple[int, int]): Number of parameters of the teacher and the student.
        stages (list[StageResult]): The student at the start and after each stage.
        history (list[float]): Mean squared relative error of the outputs in each step, as trained.
    """

    parameters: tuple[int, int]
    stages: list[StageResult] = field(default_factory=list)
    history: list[float] = field(default_factory=list)

    @property
    def error(self) -> float:
        """float: Error of the recovered student, see :attr:`StageResult.error`."""
        return self.stages[-1].error

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecoveryReport:
        """Return a report from the result of :meth:`to_dict`."""
        stages = [StageResult(**stage) for stage in values['stages']]
        return cls(tuple(values['parameters']), stages, list(values['history']))

    def __str__(self) -> str:
        """Return the report as a table with a column for each stage."""
        outputs = list(self.stages[0].errors) if self.stages else []
        metrics = list(dict.fromkeys(name for stage in self.stages for name in stage.metrics))
        names = [stage.name if stage.is_kept else f'{stage.name} (undone)' for stage in self.stages]
        table = Table('', *names, box=box.SIMPLE)
        table.add_row('error', *(f'{stage.error:.3f}' for stage in self.stages))
        for output in outputs:
            table.add_row(output, *(f'{stage.errors[output]:.3f}' for stage in self.stages))
        for metric in metrics:
            scores = [stage.metrics.get(metric) for stage in self.stages]
            table.add_row(metric, *('-' if score is None else f'{score:.3f}' for score in scores))
        table.add_row('seconds', *(f'{stage.seconds:.0f}' for stage in self.stages))
        console = Console(width=118, color_system=None, markup=False)
        with console.capture() as capture:
            console.print(table)
        return capture.get().rstrip()
