"""A residual block that runs in a loop which samples leave when a gate says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.common.modes import is_traced
from mmrecur.models.layers.common.parallel import refuse_data_parallel
from mmrecur.models.layers.loop.norm import LoopNorm, LoopPosition

#: What the iterations of a loop do with a block's norms.
LOOP_NORMS = ('shared', 'lvbn', 'i-lvbn')
#: Where the gate of a loop stands: before every iteration, or after every iteration but the last.
GATE_POSITIONS = ('before', 'after')


class GateDecision(NamedTuple):
    """What a gate decided in one iteration of a training pass.

    Attributes:
        passed (Tensor): 1 for samples that the gate would let pass, 0 for others, shape (N,), with the
            gradient of a probability.
        reached (Tensor): 1 for samples that were still in the loop, 0 for others, shape (N,).
    """

    passed: Tensor
    reached: Tensor

    def rate(self) -> Tensor:
        """Share of the samples that reached the gate which it let pass, a scalar; 0 if none did."""
        return (self.passed * self.reached).sum() / self.reached.sum().clamp(min=1)


class RecursiveBlock(nn.Module):
    """Run a residual block up to ``num_loops`` times; a gate lets each sample pass on or leave the loop.

    Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019. The convolutions are the same in every
    iteration, the norms are not (:class:`LoopNorm`), unless asked for.

    In training all samples are computed, so that the gate gets a gradient, and one that has left keeps its
    map. In evaluation a sample that has left is not computed: the block runs on the remaining ones, and not
    at all when none is left. Traced, exported or compiled, under the transforms of ``torch.func`` and with
    ``skip=False``, evaluation computes all samples and selects: the same result.

    Args:
        block (nn.Module): A residual block of stride 1 that keeps the number of channels, with norms as
            submodules. If it returns several values, the first is its output. It is taken over and changed.
            What its ``switch_to_deploy()`` does, if it has one, is part of the inference form.
        num_loops (int): Iterations.
        gate (nn.Module, optional): Decides from a map of shape (N, C, H, W) for each sample, see
            :class:`GumbelGate`. One gate serves all iterations. None for a loop of fixed length. Defaults to
            None.
        norm (str): ``'shared'``: the iterations share the norms as well; ``'lvbn'``: each has its own;
            ``'i-lvbn'``: in addition only samples that pass count in their statistics, which needs a gate.
            Defaults to 'lvbn'.
        with_cp (bool): Recompute each iteration in the backward pass, with the same noise. Defaults to False.
        skip (bool): Whether evaluation skips samples. It has to know how many are left, so that on a GPU the
            host waits for each gate: not for CUDA graphs. Defaults to True.
        gate_position (str): ``'before'``: the gate decides before every iteration, the first included, as the
            multiply-adds of the paper's Table 2 imply. ``'after'``: it decides after every iteration but the
            last, as Section 2 says, so that every sample goes through the first one. Defaults to 'before'.

    Attributes:
        first_gated (int): Index of the first iteration that the gate decides on.
        decisions (list[GateDecision]): Those of the last training pass, in order of the iterations.

    Raises:
        TypeError, ValueError: If an argument is wrong.

    Example:
        >>> import torch
        >>> from mmrecur.models.layers import Bottleneck, GumbelGate
        >>> block = RecursiveBlock(Bottleneck(64, 16, 64), 3, GumbelGate(64), norm='i-lvbn')
        >>> block(torch.rand(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(
        self,
        block: nn.Module,
        num_loops: int,
        gate: nn.Module | None = None,
        norm: str = 'lvbn',
        with_cp: bool = False,
        skip: bool = True,
        gate_position: str = 'before',
    ) -> None:
        super().__init__()
        check_int('num_loops', num_loops, 1)
        check_choice('norm', norm, LOOP_NORMS)
        check_choice('gate_position', gate_position, GATE_POSITIONS)
        check_flag(with_cp=with_cp, skip=skip)
        if gate is None and norm == 'i-lvbn':
            raise ValueError("norm='i-lvbn' without a gate, allowed: 'shared', 'lvbn'")
        if gate is not None and gate_position == 'after' and num_loops == 1:
            raise ValueError(
                "gate_position='after' with num_loops=1, allowed: 'before', or more loops: behind the only "
                'iteration there is nothing to decide'
            )
        self.num_loops = num_loops
        self.first_gated = 1 if gate_position == 'after' else 0
        self.norm = norm
        self.with_cp = with_cp
        self.skip = skip
        self.position = LoopPosition()
        self.decisions: list[GateDecision] = []
        self.block: nn.Module | None = block
        self.unrolled: nn.ModuleList | None = None  # the inference form: a block for each iteration
        self.gate = gate
        if norm != 'shared':
            _replace_norms(
                block, lambda module: LoopNorm(module, num_loops, self.position, norm == 'i-lvbn'), _is_norm
            )

    def forward(self, x: Tensor) -> Tensor:
        """Run the loop.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Of the same shape.
        """
        if self.gate is None:
            for index in range(self.num_loops):
                x = run_step(self, self.with_cp, self._iterate, x, index)
            return x
        if self.training:
            return self._learn(x)
        if self.skip and not is_traced(x):
            return self._leave_out(x)
        reached = None
        for index in range(self.num_loops):
            if index < self.first_gated:
                x = self._iterate(x, index)
                continue
            passed = self.gate(x)
            reached = passed if reached is None else reached & passed
            x = torch.where(_per_sample(reached), self._iterate(x, index), x)
        return x

    def _iterate(self, x: Tensor, index: int, passed: Tensor | None = None) -> Tensor:
        """Run the block as in iteration ``index``."""
        if self.unrolled is not None:
            output = self.unrolled[min(index, len(self.unrolled) - 1)](x)
        else:
            self.position.iteration, self.position.passed = index, passed
            output = self.block(x)
            self.position.passed = None
        output = output[0] if isinstance(output, tuple) else output
        # autocast may have changed the dtype, and samples that left keep theirs
        return output.to(x.dtype)

    def _learn(self, x: Tensor) -> Tensor:
        reached, decisions = x.new_ones(len(x), dtype=torch.promote_types(x.dtype, torch.float32)), []
        for index in range(self.num_loops):
            if index < self.first_gated:
                x = run_step(self, self.with_cp, self._iterate, x, index)
                continue
            x, passed, still = run_step(self, self.with_cp, self._gated, x, reached, index)
            decisions.append(GateDecision(passed, reached.detach()))
            reached = still
        self.decisions = decisions
        return x

    def _gated(self, x: Tensor, reached: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """One iteration in training: the map, the gate's decisions and which samples are in the loop."""
        passed = self.gate(x)
        still = reached * passed
        output = self._iterate(x, index, still.detach())
        # a weight of 0 or 1 gives one of the two exactly
        return torch.lerp(x, output, _per_sample(still).to(x.dtype)), passed, still

    def _leave_out(self, x: Tensor) -> Tensor:
        """Run the loop in evaluation on the samples that are still in it."""
        output, rows = None, None
        for index in range(self.num_loops):
            if index < self.first_gated:
                x = self._iterate(x, index)
                continue
            passed = self.gate(x).tolist()
            staying = [row for row, stays in enumerate(passed) if stays]
            if not staying:
                break
            if len(staying) < len(passed):
                leaving = [row for row, stays in enumerate(passed) if not stays]
                rows = range(len(passed)) if rows is None else rows
                output = torch.empty_like(x) if output is None else output
                output.index_copy_(0, _index([rows[row] for row in leaving], x), x[_index(leaving, x)])
                x, rows = x[_index(staying, x)], [rows[row] for row in staying]
            x = self._iterate(x, index)
        return x if output is None else output.index_copy_(0, _index(rows, x), x)

    @torch.no_grad()
    def margins(self, x: Tensor) -> Tensor:
        """How far the gate is from its decision in each iteration, if all are executed, in evaluation.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Scores of passing less those of leaving, shape (N, num_loops - first_gated). A sample
            stays in the loop until the first that is not positive.
        """
        margins = []
        for index in range(self.num_loops):
            if index >= self.first_gated:
                scores = self.gate.scores(x)
                margins.append(scores[:, 1] - scores[:, 0])
            x = self._iterate(x, index)
        return torch.stack(margins, dim=1).float()

    def switch_to_deploy(self) -> None:
        """Give each iteration convolutions with its own norms folded in; in evaluation the same function.

        The iterations of ``norm='shared'`` stay one. The weights take the place of the unrolled network's.
        """
        if self.unrolled is not None:
            return
        blocks = []
        for index in range(1 if self.norm == 'shared' else self.num_loops):
            block = copy.deepcopy(self.block)
            _replace_norms(block, lambda module, index=index: module[index], _is_loop_norm)
            if hasattr(block, 'switch_to_deploy'):
                block.switch_to_deploy()
            blocks.append(block)
        self.unrolled, self.block = nn.ModuleList(blocks), None

    def _replicate_for_data_parallel(self) -> RecursiveBlock:
        if self.unrolled is None:
            what = 'its position in the loop and the decisions of its gate'
            refuse_data_parallel(type(self).__name__, what)
        return super()._replicate_for_data_parallel()

    def __getstate__(self) -> dict[str, Any]:
        # copies have no part in a training pass, and tensors with a history cannot be copied
        return {**self.__dict__, 'decisions': []}


def recursive_blocks(module: nn.Module) -> dict[str, RecursiveBlock]:
    """The loops of a network by name, in order."""
    return {name: part for name, part in module.named_modules() if isinstance(part, RecursiveBlock)}


def gated_blocks(module: nn.Module) -> dict[str, RecursiveBlock]:
    """The loops of a network that have a gate, by name, in order."""
    return {name: block for name, block in recursive_blocks(module).items() if block.gate is not None}


def _replace_norms(
    module: nn.Module,
    replacement: Callable[[nn.Module], nn.Module],
    is_replaced: Callable[[nn.Module], bool],
) -> None:
    for name, child in module.named_children():
        if is_replaced(child):
            setattr(module, name, replacement(child))
        else:
            _replace_norms(child, replacement, is_replaced)


def _is_norm(module: nn.Module) -> bool:
    # other libraries' batch norms (MMCV's SyncBatchNorm, frozen ones) need not be torch's
    return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) or hasattr(module, 'running_mean')


def _is_loop_norm(module: nn.Module) -> bool:
    return isinstance(module, LoopNorm)


def _per_sample(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1)


def _index(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, device=like.device)
