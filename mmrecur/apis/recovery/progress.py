"""Show the progress of a recovery."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RecoveryProgress:
    """A progress bar with the error and the remaining time, to be used as a context.

    Where the output is not a terminal, a line is printed ten times instead.

    Args:
        steps (int): Number of steps.
    """

    def __init__(self, steps: int) -> None:
        console = Console(highlight=False)
        self.steps, self._console, self._task = steps, console, None
        self._average: float | None = None
        self._bar = Progress(
            TextColumn('Recovering'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('error {task.fields[error]:.3f}'),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RecoveryProgress:
        self._bar.start()
        self._task = self._bar.add_task('', total=self.steps, error=float('nan'))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, step: int, error: float) -> None:
        """Show a step.

        Args:
            step (int): Number of steps that are done.
            error (float): Squared relative error of the step.
        """
        previous = error if self._average is None else self._average
        self._average = 0.95 * previous + 0.05 * error
        shown = self._average**0.5
        self._bar.update(self._task, completed=step, error=shown)
        if self._bar.disable and (step % max(1, self.steps // 10) == 0 or step == self.steps):
            self._console.print(f'Step {step} of {self.steps}: relative error {shown:.3f}')
