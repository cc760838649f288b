"""Plain Wide ResNets made into ones that draw their weights from banks."""

from __future__ import annotations

from mmrecur.checkpoint.converters.soft_sharing import absent, bank_layers, fill_bank, wide_name
from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft


@register_graft('SWRN')
def _graft_swrn(transfer: GraftTransfer) -> None:
    """Exact with one template per layer, else the nearest templates, with the error in the report.

    Four-stage networks come in torchvision's, timm's, mmpretrain's or mmdet's layout of ``wide_resnet50_2``;
    three-stage ones in this package's (``num_templates=None``), the SWRN authors' or that of the PyTorch
    Wide ResNet with ``block1.layer.0.conv1.weight``.
    """
    backbone = transfer.backbone
    if not backbone.has_bottlenecks:
        names = set(transfer.backbone_keys())
        # here bn1 is the last norm if anything, but for a network in this package's layout
        transfer.plain = {
            wide_name(name) if name not in names else name: key for name, key in transfer.plain.items()
        }
        transfer.plain = {name.replace('head.fc.', 'fc.'): key for name, key in transfer.plain.items()}
    errors = {}
    for name, bank, layers in bank_layers(transfer):
        keys = [transfer.plain.get(layer) for layer in layers]
        if None in keys:
            continue  # said by finish(): the bank is missing in the source
        errors[name] = fill_bank(transfer, name, bank, keys), bank
    transfer.report.errors.update({name: error for name, (error, _) in errors.items()})
    for name, (error, bank) in errors.items():
        if bank.num_templates < bank.num_layers:
            transfer.report.notes.append(
                f'{name}: {bank.num_templates} templates make up {bank.num_layers} layers with a relative '
                f'error of {error:.3g}'
            )
    done = {**transfer.report.transformed, **transfer.report.initial}
    for name in transfer.backbone_keys():
        if transfer.prefix + name not in done:
            transfer.take(name)
    used = transfer.used_sources()
    for name, key in transfer.plain.items():
        if key not in used and (why := absent(name, backbone)) and not name.startswith('fc.'):
            transfer.drop(key, why)
