"""Take over a trained model but for its backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmrecur.checkpoint.transfer import Report
from mmrecur.checkpoint.unwrap import read_weights
from mmrecur.errors import TransferError


def graft_other_parts(state_dict: Mapping[str, Any], model: nn.Module) -> tuple[dict[str, Tensor], Report]:
    """Turn a checkpoint into one for a model whose backbone keeps its own weights.

    Args:
        state_dict (Mapping): Checkpoint of a model with a backbone.
        model (nn.Module): A model with another ``backbone``. It is not changed.

    Returns:
        tuple[dict[str, Tensor], Report]: A state dict with every key of the model, and the report. Tensors
        outside the backbone that have another shape, such as those of a neck that reads wider maps, keep
        the model's own values.

    Raises:
        TransferError: If the checkpoint has no tensor for the other parts of the model.
    """
    source, notes = read_weights(state_dict)
    report, state = Report(notes=list(notes)), {}
    for name, value in model.state_dict().items():
        state[name] = value.detach().clone()
        if name.startswith('backbone.'):
            report.initial[name] = 'the backbone keeps its own weights'
        elif name not in source:
            report.initial[name] = 'missing in the source'
        elif source[name].shape != value.shape:
            report.initial[name] = 'of another shape in the source'
        else:
            state[name] = source[name].detach().clone()
            report.copied[name] = name
    for name in source:
        if name not in report.copied:
            report.unused[name] = 'the backbone keeps its own weights'
            if not name.startswith('backbone.'):
                report.unused[name] = 'missing in the model or of another shape there'
    if not report.copied:
        raise TransferError('the source has no tensor that fits the model outside its backbone')
    return state, report
