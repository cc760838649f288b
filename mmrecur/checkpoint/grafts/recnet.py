"""Why no plain network becomes a RecNet."""

from __future__ import annotations

from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.errors import TransferError


@register_graft('RecNet')
def _refuse_recnet(transfer: GraftTransfer) -> None:
    """Plain networks have nothing that a CRC layer could start from."""
    raise TransferError(
        'RecNet takes no weights of a plain network: its convolutions read segments of the channels in turn '
        'with the same weights, which no plain convolution has. Use init_cfg=dict(type="Pretrained", '
        'checkpoint=..., prefix="backbone.") with a RecNet that was trained'
    )
