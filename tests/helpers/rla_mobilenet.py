"""RLA-MobileNetV2 as the authors compute it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.backbones import RLAMobileNetV2
from mmrecur.models.layers import RLAInvertedResidual


def norm_of_both(x: Tensor, first: nn.BatchNorm2d, second: nn.BatchNorm2d) -> Tensor:
    """Batch norm of ``cat(x, h)`` with the parameters of the two norms."""
    both = {
        name: torch.cat([getattr(first, name), getattr(second, name)])
        for name in ('running_mean', 'running_var', 'weight', 'bias')
    }
    return F.batch_norm(x, **both, training=first.training, eps=first.eps)


def reference_block(block: RLAInvertedResidual, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Output and residual of a block that concatenates after its expansion."""
    y = x if block.conv1 is None else F.relu6(block.bn1(block.conv1(x)))
    y = torch.cat([y, h], dim=1)
    depthwise = torch.cat([block.conv2.weight, block.conv2_hidden.weight])
    y = F.conv2d(y, depthwise, stride=block.stride, padding=1, groups=len(depthwise))
    y = F.relu6(norm_of_both(y, block.bn2, block.bn2_hidden))
    y = F.conv2d(y, torch.cat([block.conv3.weight, block.conv3_hidden.weight], dim=1))
    y = block.bn3(y)
    if block.attention is not None:
        y = block.attention(y)
    return (x + y if block.has_shortcut else y), y


def reference_forward(model: RLAMobileNetV2, x: Tensor) -> tuple[Tensor, ...]:
    """Appendix B.2.1, block by block, with ``cat(x, h)`` as the authors compute it."""
    x = F.relu6(model.bn1(model.conv1(x)))
    h = x.new_zeros(x.size(0), model.rla_channels, *x.shape[2:])
    outputs = []
    for group, name in enumerate(model.groups):
        stage = getattr(model, name)
        for t in range(stage.num_blocks):
            block = getattr(stage, str(t))
            x, y = reference_block(block, x, h)
            h = F.avg_pool2d(h, 2, 2) if block.stride == 2 else h
            if stage.rla is not None and t < len(stage.rla.norms):
                conv = 0 if model.share == 'network' else (0, 1, 2, 3, 3, 4, 4)[group]
                w_r = model.recurrent_convs[conv].weight
                h = torch.tanh(stage.rla.norms[t](h + F.conv2d(y, stage.rla.conv_out.weight)))
                h = F.conv2d(h, w_r, padding=1, groups=model.rla_channels)
        outputs.append(x)
    if len(model.groups) == 7 and hasattr(model, 'conv2'):
        weight = torch.cat([model.conv2.weight, model.conv2_hidden.weight], dim=1)
        x = torch.cat([x, F.relu6(model.hidden_norm(h))], dim=1)
        outputs.append(F.relu6(model.bn2(F.conv2d(x, weight))))
    return tuple(outputs[i] for i in model.out_indices)
