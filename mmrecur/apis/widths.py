"""Explain necks and heads that do not fit the feature maps that they receive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mmengine.runner import Runner
from torch import Tensor, nn

from mmrecur.errors import ToolError


@contextlib.contextmanager
def explained_widths(runner: Runner) -> Iterator[None]:
    """Explain a failure of the first forward pass by a neck or head that does not fit its inputs.

    Args:
        runner (Runner): Runner of a detector or classifier. Models to be compiled are not watched, because
            the hooks would be compiled, too.

    Raises:
        ToolError: If the first batch failed, and the feature maps did not match the ``in_channels`` of a neck
            or head, or their number did not match the anchors of a head.
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
    """Channels of the inputs of necks and heads that have not returned from their first call."""

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
                    f'model.{name} expects feature maps with {expected} channels (in_channels) and '
                    f'received {shown}; change it or a part before it, such as out_indices of the backbone'
                )
        return self._levels_problem(modules)

    @staticmethod
    def _levels_problem(modules: dict[str, nn.Module]) -> str | None:
        outputs = getattr(modules.get('neck'), 'num_outs', None)
        for name in ('rpn_head', 'bbox_head'):
            levels = getattr(getattr(modules.get(name), 'prior_generator', None), 'num_levels', None)
            if isinstance(outputs, int) and isinstance(levels, int) and outputs != levels:
                return (
                    f'model.neck has {outputs} outputs (num_outs) and model.{name} expects {levels}, one for '
                    'each stride of its anchor_generator; make the two equal'
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
        return channels[-1] == expected  # Classifiers use the last map; other heads need equal widths.
    return sorted(expected) == sorted(channels)  # Some necks list the maps from last to first.
