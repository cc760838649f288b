"""Loops: one residual block runs several times, and a gate decides how often for each sample.

The idea of DR-ResNet: Guo, Yu, Wu, Liang, Qin and Yan, *Dynamic Recursive Neural Network*, CVPR 2019. The
paper calls a block that runs in a loop a *recursive block* and the number of its iterations its *loop times*.

- :mod:`.block`: the loop itself, in training and in evaluation.
- :mod:`.gate`: the gate that lets a sample pass to the next iteration or leave the loop.
- :mod:`.norm`: one norm for each iteration (LVBN, I-LVBN).
- :mod:`.masked_norm`: a batch norm with the statistics of some of the samples, which I-LVBN needs.
- :mod:`.relaxed`: convolutions with a low-rank residual for each iteration.
"""

from mmrecur.models.layers.loop.block import GateDecision, LoopBlock, gated_loop_blocks, loop_blocks
from mmrecur.models.layers.loop.gate import GumbelGate, check_rate, expected_iterations
from mmrecur.models.layers.loop.masked_norm import masked_batch_norm
from mmrecur.models.layers.loop.norm import LoopNorm, LoopPosition
from mmrecur.models.layers.loop.relaxed import RelaxedConv2d

__all__ = [
    'GateDecision',
    'GumbelGate',
    'LoopBlock',
    'LoopNorm',
    'LoopPosition',
    'RelaxedConv2d',
    'check_rate',
    'expected_iterations',
    'gated_loop_blocks',
    'loop_blocks',
    'masked_batch_norm',
]
