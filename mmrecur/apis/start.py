"""Keep the console short until a run starts; the log file contains everything."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

import mmrecur
from mmrecur.apis.summary import print_results, run_summary

_OWN_CODE = str(Path(mmrecur.__file__).parent) + os.sep
#: Modules whose warnings concern the libraries' own code or defaults.
_NOISY_CODE = ('mmengine.fileio', 'mmengine.evaluator', 'mmengine.registry', 'mmengine.visualization')
#: Modules that print unimportant messages.
_PRINTING_CODE = {
    'mmdet.datasets',
    'mmdet.datasets.transforms',
    'mmpretrain.datasets',
    'pycocotools.coco',
}


class StartFilter(logging.Filter):
    """Pass all records of a run that has started, and only those that a user can act on before.

    Before the start, these are errors, warnings except those about the libraries' own code, and messages of
    this package.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown on the console."""
        if getattr(record, 'was_printed', False):
            return False
        if self.started or record.levelno >= logging.ERROR or record.pathname.startswith(_OWN_CODE):
            return True
        return record.levelno >= logging.WARNING and not _speaker().startswith(_NOISY_CODE)


def _speaker() -> str:
    """Return the name of the logging module; records contain that of print_log instead."""
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get('__name__', '')
        if name != __name__ and not name.startswith(('logging', 'mmengine.logging')):
            return name
        frame = frame.f_back
    return ''


class StartHook(Hook):
    """Print a summary of the run at its start and stop filtering the console."""

    priority = 'LOWEST'

    def __init__(self, console: StartFilter) -> None:
        self.console = console

    def before_train(self, runner: Runner) -> None:
        """Print the summary of a training."""
        self._start(runner, ('train', 'val'))

    def before_test(self, runner: Runner) -> None:
        """Print the summary of a test."""
        self._start(runner, ('test',))

    def _start(self, runner: Runner, loops: tuple[str, ...]) -> None:
        if not self.console.started:
            self.console.started = True
            if is_main_process():
                print_results(run_summary(runner, loops))


def short_start(runner_class: type[Runner]) -> type[Runner]:
    """Derive a runner class that logs its start to the file and little of it to the console.

    Args:
        runner_class (type): Runner class to derive from.

    Returns:
        type: The derived class.
    """

    class ShortStartRunner(runner_class):
        def build_logger(self, *args, **kwargs) -> MMLogger:
            logger = super().build_logger(*args, **kwargs)
            self.start_filter = StartFilter()
            for handler in logger.handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.addFilter(self.start_filter)
                    if isinstance(handler.stream, _StartOutput):
                        handler.setStream(handler.stream.console)
            return logger

        def register_hooks(self, *args, **kwargs) -> None:
            super().register_hooks(*args, **kwargs)
            self.register_hook(StartHook(self.start_filter))

    return ShortStartRunner


class _StartOutput:
    """Standard output during the start, which keeps unimportant messages of libraries apart."""

    def __init__(self, console: TextIO) -> None:
        self.console = console
        self.kept = io.StringIO()

    def write(self, text: str) -> int:
        return (self.kept if _speaker() in _PRINTING_CODE else self.console).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)


@contextlib.contextmanager
def prints_into_log() -> Iterator[None]:
    """Log the messages that libraries print while they are imported or read annotations."""
    output = _StartOutput(sys.stdout)
    with contextlib.redirect_stdout(output):
        yield
    text = output.kept.getvalue().rstrip()
    if text:
        MMLogger.get_current_instance().info(text, extra=dict(was_printed=True))


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep libraries from printing and logging, except errors, while they read data or compute metrics."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
