"""Plain ResNets grafted into RLA-ResNets, with and without pre-activation."""

from __future__ import annotations

from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.models.backbones.rla_preact_resnet import RLAPreActResNet
from mmrecur.models.backbones.rla_resnet import RLAResNet


@register_graft(RLAPreActResNet)
@register_graft(RLAResNet)
def graft_rla_resnet(transfer: GraftTransfer) -> None:
    """Fill an RLA-ResNet so that it computes the same as the plain ResNet.

    The weights with which blocks read the recurrent state start at zero. For attention layers see
    :meth:`GraftTransfer.start_attention`. The parameters of a plain pre-activation ResNet have this package's
    names.

    Args:
        transfer (GraftTransfer): The transfer to fill.
    """
    for name in transfer.backbone_keys():
        target = transfer.prefix + name
        if transfer.start_attention(name):
            continue
        if name in transfer.plain:
            transfer.take(name)
        elif name.endswith('conv1_hidden.weight'):
            transfer.zero(target, 'zeros: the state is not read at first')
        elif '.rla.' in name or '.bn1_hidden.' in name or name.startswith('hidden_norm.'):
            transfer.leave(target, 'the recurrent path learns from its own initialisation')
        elif name.startswith(transfer.plugins):
            transfer.leave(target, 'a new plugin, which changes nothing at first')
        else:
            transfer.take(name)
