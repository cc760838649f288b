"""Plain pre-activation ResNets grafted into RLA ones."""

from __future__ import annotations

from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.models.backbones.rla_preact_resnet import RLAPreActResNet


@register_graft(RLAPreActResNet)
def graft_rla_preact_resnet(transfer: GraftTransfer) -> None:
    """Fill a pre-activation RLA-ResNet so that it computes the same as the plain network.

    The plain network's parameters have this package's names. The weights with which blocks read the
    recurrent state start at zero.

    Args:
        transfer (GraftTransfer): The transfer to fill.
    """
    for name in transfer.backbone_keys():
        target = transfer.prefix + name
        if name in transfer.plain:
            transfer.take(name)
        elif name.endswith('conv1_hidden.weight'):
            transfer.zero(target, 'zeros: the state is not read at first')
        elif '.rla.' in name or '.bn1_hidden.' in name or name.startswith('hidden_norm.'):
            transfer.leave(target, 'the recurrent path learns from its own initialisation')
        else:
            transfer.take(name)
