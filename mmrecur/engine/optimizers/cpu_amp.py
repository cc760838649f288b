"""Mixed precision on the CPU, which MMEngine's ``AmpOptimWrapper`` does not support."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from torch import nn


def _to_float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
        return value.float()
    if isinstance(value, (list, tuple)) and not hasattr(value, '_fields'):
        return type(value)(_to_float32(item) for item in value)
    if type(value) is dict:
        return {name: _to_float32(item) for name, item in value.items()}
    return value


def _inputs_to_float32(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return _to_float32(args), _to_float32(kwargs)


def _output_to_float32(module: nn.Module, args: tuple, output: Any) -> Any:
    return _to_float32(output)


def keep_boxes_in_float32(model: nn.Module) -> None:
    """Compute the coordinates of a detector in float32 instead of bfloat16.

    bfloat16 has 8 significant bits, so its resolution at 1000 pixels is 4 pixels. The outputs of dense and
    RoI heads, from which boxes are decoded, and the inputs of RoI extractors are converted to float32. The
    inputs of MMCV's operators are converted, too, because these have no bfloat16 kernels for the CPU.

    Args:
        model (nn.Module): The detector, to which forward hooks are added.
    """
    for module in model.modules():
        if type(module).__module__.startswith('mmcv.ops.') or hasattr(module, 'roi_layers'):
            module.register_forward_pre_hook(_inputs_to_float32, with_kwargs=True)
        if hasattr(module, 'predict_by_feat'):
            module.register_forward_hook(_output_to_float32)


class CPUAmpOptimWrapper(OptimWrapper):
    """Optimizer wrapper that runs the forward pass under bfloat16 autocast on the CPU.

    bfloat16 has the range of float32, so no loss scaling is needed. Boxes are computed in float32, see
    :func:`keep_boxes_in_float32`.

    Args:
        **kwargs: Arguments of :class:`mmengine.optim.OptimWrapper`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._prepared: set[int] = set()

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the enclosed forward pass of ``model`` in mixed precision.

        Args:
            model (nn.Module): The trained model.
        """
        if id(model) not in self._prepared:
            self._prepared.add(id(model))
            keep_boxes_in_float32(model)
        with super().optim_context(model), autocast(device_type='cpu', dtype=torch.bfloat16):
            yield

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of an optimizer, which may contain a loss scaler from a GPU.

        Args:
            state_dict (dict): State of this class or of ``AmpOptimWrapper``.
        """
        state_dict.pop('loss_scaler', None)
        super().load_state_dict(state_dict)
