"""Which part of a model was given feature maps that it was not built for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mmengine.runner import Runner
from torch import Tensor, nn

from mmrecur.errors import ToolError


@contextlib.contextmanager
def explained_widths(runner: Runner) -> Iterator[None]:
    """Say which neck or head does not fit the part before it, if the first forward pass fails for that.

    Args:
        runner (Runner): Runs a detector or classifier. Models that are going to be compiled are left
            alone, because hooks would be compiled with them.

    Raises:
        ToolError: If the model failed on its first batch, and a part with ``in_channels`` was given
            other feature maps than these, or a head with anchors another number of them than it has
            anchors for.
    """
    if runner.cfg.get('compile'):
        yield
        return
    model = runner.model
    while hasattr(model, 'module'):  # distributed training, test-time augmentation
        model = model.module
    watch = _FirstPass(model)
    try:
        yield
    except Exception as error:
        problem = watch.problem()
        if problem is None:
            raise
        raise ToolError(problem) from error
    finally:
        watch.stop()


class _FirstPass:
    """Channels that necks and heads are given, until they have computed something from them once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.passed = False
        self.given: dict[str, list[int]] = {}
        self.handles = [model.register_forward_hook(self._finish)]
        for name, module in model.named_modules():
            if _is_neck_or_head(name, module):
                self._watch(name, module)

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()

    def problem(self) -> str | None:
        if self.passed:
            return None
        modules = dict(self.model.named_modules())
        for name, channels in self.given.items():
            expected = modules[name].in_channels
            if not _fits(expected, channels):
                shown = channels[-1] if isinstance(expected, int) else channels
                return (
                    f'model.{name} takes feature maps of {expected} channels (in_channels) and is given '
                    f'{shown}; change it or what comes before it, such as out_indices of the backbone'
                )
        return self._levels_problem(modules)

    @staticmethod
    def _levels_problem(modules: dict[str, nn.Module]) -> str | None:
        outputs = getattr(modules.get('neck'), 'num_outs', None)
        for name in ('rpn_head', 'bbox_head'):
            levels = getattr(getattr(modules.get(name), 'prior_generator', None), 'num_levels', None)
            if isinstance(outputs, int) and isinstance(levels, int) and outputs != levels:
                return (
                    f'model.neck has {outputs} outputs (num_outs) and model.{name} takes {levels}, one for '
                    'each of the strides of its anchor_generator; make the two equal'
                )
        return None

    def _finish(self, *_: Any) -> None:
        self.passed = True
        self.stop()

    def _watch(self, name: str, module: nn.Module) -> None:
        def before(_: nn.Module, args: tuple) -> None:
            features = [args[0]] if args and isinstance(args[0], Tensor) else list(args[0] if args else ())
            if features and all(isinstance(item, Tensor) and item.dim() > 1 for item in features):
                self.given[name] = [item.shape[1] for item in features]

        def after(*_: Any) -> None:
            self.given.pop(name, None)

        self.handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _is_neck_or_head(name: str, module: nn.Module) -> bool:
    expected = getattr(module, 'in_channels', None)
    numbers = expected if isinstance(expected, (list, tuple)) else [expected]
    near_the_top = name.count('.') <= 1 and name.partition('.')[0].endswith(('neck', 'head'))
    return near_the_top and bool(numbers) and all(isinstance(number, int) for number in numbers)


def _fits(expected: int | list[int], channels: list[int]) -> bool:
    if isinstance(expected, int):
        return channels[-1] == expected  # classifiers take the last one, other heads equal ones
    return sorted(expected) == sorted(channels)  # some necks go from the last to the first
