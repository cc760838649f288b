"""Refusal to graft plain networks into RecNets."""

from __future__ import annotations

from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.errors import TransferError
from mmrecur.models.backbones.recnet import RecNet


@register_graft(RecNet)
def refuse_recnet(transfer: GraftTransfer) -> None:
    """Raise, because a channel-recurrent convolution has no counterpart in a plain network.

    Args:
        transfer (GraftTransfer): Not used.

    Raises:
        TransferError: Always.
    """
    raise TransferError(
        'RecNet takes no weights of a plain network: its convolutions read segments of the channels in turn '
        'with the same weights, which no plain convolution has. Use init_cfg=dict(type="Pretrained", '
        'checkpoint=..., prefix="backbone.") with a RecNet that was trained'
    )
