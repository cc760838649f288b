"""A residual block that runs in a loop, which each sample leaves when the gate decides so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mmrecur.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.modes import is_traced
from mmrecur.models.layers.common.parallel import refuse_data_parallel
from mmrecur.models.layers.loop.norm import LoopNorm, LoopPosition
from mmrecur.models.layers.loop.relaxed import RelaxedConv2d

#: Norms of a loop: one for all iterations, or one for each (LVBN, I-LVBN).
LOOP_NORMS = ('shared', 'lvbn', 'i-lvbn')
#: Position of the gate: before every iteration, or after every iteration but the last.
GATE_POSITIONS = ('before', 'after')


class GateDecision(NamedTuple):
    """Decisions of a gate in one iteration of a training pass.

    Attributes:
        passed (Tensor): 1 for samples that the gate lets pass, 0 for the others, shape (N,), with the
            gradient of a probability. Includes samples that have left the loop.
        reached (Tensor): 1 for samples that were still in the loop, 0 for the others, shape (N,).
    """

    passed: Tensor
    reached: Tensor

    def rate(self) -> Tensor:
        """Return the share of the samples reaching the gate that it lets pass, a scalar; 0 if none did."""
        return (self.passed * self.reached).sum() / self.reached.sum().clamp(min=1)


class LoopBlock(nn.Module):
    """Run a residual block up to ``num_iterations`` times; a gate lets each sample pass or leave the loop.

    The *recursive block* of Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019. All iterations share
    the convolutions. Each has its own norms (:class:`LoopNorm`), unless ``loop_norm='shared'``, and with
    ``relaxation_rank`` a low-rank residual of its own for the weight of each convolution
    (:class:`RelaxedConv2d`).

    Training computes every iteration for all samples, so that the gate gets a gradient; a sample that has
    left the loop keeps its map. Evaluation computes an iteration only for the samples still in the loop.
    Under tracing, export, compilation and the transforms of ``torch.func``, and with ``skip=False``,
    evaluation computes all samples and selects, with the same result.

    Args:
        block (nn.Module): Residual block with stride 1 that keeps the number of channels. Its norms are
            replaced in place. If it has a method ``switch_to_deploy``, the inference form calls it.
        num_iterations (int): Maximum number of iterations.
        gate (nn.Module, optional): Maps (N, C, H, W) to a decision for each sample, see
            :class:`GumbelGate`. All iterations use the same gate. Without one every sample runs all
            iterations. Defaults to None.
        loop_norm (str): ``'shared'``: all iterations share the norms; ``'lvbn'``: each iteration has its
            own; ``'i-lvbn'``: in addition their statistics count only samples that pass, which needs a gate.
            Defaults to 'lvbn'.
        with_cp (bool): Recompute each iteration in the backward pass, with the same noise. Defaults to
            False.
        skip (bool): Whether evaluation leaves out samples that have left the loop. On a GPU the host then
            waits for each gate, which rules out CUDA graphs. Defaults to True.
        gate_position (str): ``'before'``: the gate decides before every iteration, as the multiply-adds in
            the paper's Table 2 imply. ``'after'``: it decides after every iteration but the last, as Section
            2 of the paper says, so that every sample runs the first one. Defaults to 'before'.
        relaxation_rank (int): Rank of the residual that each iteration adds to the weights of the
            convolutions. At full rank the iterations can compute what as many plain blocks compute.
            Convolutions with several groups, such as depthwise ones, have none. Defaults to 0, no residuals.

    Attributes:
        first_gated (int): Index of the first iteration that the gate decides on, 0 or 1.
        decisions (list[GateDecision]): Decisions in the last training pass, one for each gated iteration.

    Raises:
        TypeError, ValueError: If an argument is wrong.

    Example:
        >>> import torch
        >>> from mmrecur.models.layers import Bottleneck, GumbelGate
        >>> block = LoopBlock(Bottleneck(64, 16, 64), 3, GumbelGate(64), loop_norm='i-lvbn')
        >>> block(torch.rand(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(
        self,
        block: nn.Module,
        num_iterations: int,
        gate: nn.Module | None = None,
        loop_norm: str = 'lvbn',
        with_cp: bool = False,
        skip: bool = True,
        gate_position: str = 'before',
        relaxation_rank: int = 0,
    ) -> None:
        super().__init__()
        check_int('num_iterations', num_iterations, 1)
        check_int('relaxation_rank', relaxation_rank, 0)
        check_choice('loop_norm', loop_norm, LOOP_NORMS)
        check_choice('gate_position', gate_position, GATE_POSITIONS)
        check_flag(with_cp=with_cp, skip=skip)
        if gate is None and loop_norm == 'i-lvbn':
            raise ValueError("loop_norm='i-lvbn' without a gate, allowed: 'shared', 'lvbn'")
        if gate is not None and gate_position == 'after' and num_iterations == 1:
            raise ValueError(
                "gate_position='after' with num_iterations=1, allowed: 'before', or more iterations; after a "
                'single iteration there is nothing to decide'
            )
        self.num_iterations = num_iterations
        self.first_gated = 1 if gate_position == 'after' else 0
        self.loop_norm = loop_norm
        self.relaxation_rank = relaxation_rank
        self.with_cp = with_cp
        self.skip = skip
        self.position = LoopPosition()
        self.decisions: list[GateDecision] = []
        self.block: nn.Module | None = block
        self.unrolled: nn.ModuleList | None = None  # inference form: one block for each iteration
        self.gate = gate
        if loop_norm != 'shared':
            masked = loop_norm == 'i-lvbn'
            _replace(block, _is_norm, lambda norm: LoopNorm(norm, num_iterations, self.position, masked))
        if relaxation_rank:
            settings = num_iterations, relaxation_rank, self.position
            _replace(block, _is_dense_conv, lambda conv: RelaxedConv2d(conv, *settings))

    def forward(self, x: Tensor) -> Tensor:
        """Run the loop.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Shape (N, C, H, W).
        """
        if self.gate is None:
            for index in range(self.num_iterations):
                x = run_step(self, self.with_cp, self._iterate, x, index)
            return x
        if self.training:
            return self._run_and_record(x)
        if self.skip and not is_traced(x):
            return self._run_skipping(x)
        return self._run_masked(x)

    def _iterate(self, x: Tensor, index: int, passed: Tensor | None = None) -> Tensor:
        """Run the block once, as iteration ``index``."""
        if self.unrolled is not None:
            output = self.unrolled[min(index, len(self.unrolled) - 1)](x)
        else:
            self.position.iteration, self.position.passed = index, passed
            output = self.block(x)
            self.position.passed = None
        # autocast may have changed the dtype, while samples outside the loop keep theirs
        return output.to(x.dtype)

    def _run_and_record(self, x: Tensor) -> Tensor:
        """Run the loop in training and record the decisions of the gate."""
        reached = x.new_ones(len(x), dtype=torch.promote_types(x.dtype, torch.float32))
        decisions = []
        for index in range(self.num_iterations):
            if index < self.first_gated:
                x = run_step(self, self.with_cp, self._iterate, x, index)
                continue
            x, passed, staying = run_step(self, self.with_cp, self._gated_iteration, x, reached, index)
            decisions.append(GateDecision(passed, reached.detach()))
            reached = staying
        self.decisions = decisions
        return x

    def _gated_iteration(self, x: Tensor, reached: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the map after an iteration in training, the gate's decisions, and who is in the loop."""
        passed = self.gate(x)
        staying = reached * passed
        output = self._iterate(x, index, staying.detach())
        # with a weight of 0 or 1, lerp returns exactly one of the two maps
        return torch.lerp(x, output, _per_sample(staying).to(x.dtype)), passed, staying

    def _run_masked(self, x: Tensor) -> Tensor:
        """Run the loop in evaluation on all samples, then select for each sample its old or new map."""
        staying = None
        for index in range(self.num_iterations):
            if index < self.first_gated:
                x = self._iterate(x, index)
                continue
            passed = self.gate(x)
            staying = passed if staying is None else staying & passed
            x = torch.where(_per_sample(staying), self._iterate(x, index), x)
        return x

    def _run_skipping(self, x: Tensor) -> Tensor:
        """Run the loop in evaluation on the samples that are still in it.

        ``x`` holds the maps of these samples and ``rows`` their indices in the batch; ``output`` receives
        the maps of samples that leave. Both are None while no sample has left.
        """
        output, rows = None, None
        for index in range(self.num_iterations):
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
        """Compute the gate's margin in each iteration in evaluation mode, if every sample runs all of them.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Score of passing minus score of leaving, shape (N, num_iterations - first_gated). A sample
            leaves the loop at its first margin that is not positive.
        """
        margins = []
        for index in range(self.num_iterations):
            if index >= self.first_gated:
                scores = self.gate.scores(x)
                margins.append(scores[:, 1] - scores[:, 0])
            x = self._iterate(x, index)
        return torch.stack(margins, dim=1).float()

    def plain_block(self, index: int) -> nn.Module:
        """Return a copy of the block with the norms and the convolutions of iteration ``index`` alone."""
        block = copy.deepcopy(self.block)
        _replace(block, lambda module: isinstance(module, LoopNorm), lambda norm: norm[index])
        _replace(
            block, lambda module: isinstance(module, RelaxedConv2d), lambda conv: conv.materialise(index)
        )
        return block

    def switch_to_deploy(self) -> None:
        """Unroll the loop into one block for each iteration, with its norms and residuals fused.

        The outputs in evaluation stay the same; the weights take the memory of the unrolled network. With
        ``loop_norm='shared'`` and no residuals a single block serves all iterations. A second call does
        nothing.
        """
        if self.unrolled is not None:
            return
        blocks = []
        alike = self.loop_norm == 'shared' and not self.relaxation_rank
        for index in range(1 if alike else self.num_iterations):
            block = self.plain_block(index)
            if hasattr(block, 'switch_to_deploy'):
                block.switch_to_deploy()
            blocks.append(block)
        self.unrolled, self.block = nn.ModuleList(blocks), None

    def _replicate_for_data_parallel(self) -> LoopBlock:
        if self.unrolled is None:
            what = 'its position in the loop and the decisions of its gate'
            refuse_data_parallel(type(self).__name__, what)
        return super()._replicate_for_data_parallel()

    def __getstate__(self) -> dict[str, Any]:
        # the decisions belong to a pass of the original, and tensors with a history cannot be copied
        return {**self.__dict__, 'decisions': []}


def loop_blocks(module: nn.Module) -> dict[str, LoopBlock]:
    """Return the loops of a network by name, in order."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LoopBlock)}


def gated_loop_blocks(module: nn.Module) -> dict[str, LoopBlock]:
    """Return the loops of a network that have a gate by name, in order."""
    return {name: block for name, block in loop_blocks(module).items() if block.gate is not None}


def _replace(
    module: nn.Module,
    condition: Callable[[nn.Module], bool],
    replacement: Callable[[nn.Module], nn.Module],
) -> None:
    """Replace the outermost submodules that meet a condition."""
    for name, child in module.named_children():
        if condition(child):
            setattr(module, name, replacement(child))
        else:
            _replace(child, condition, replacement)


def _is_norm(module: nn.Module) -> bool:
    # batch norms of other libraries (MMCV's SyncBatchNorm, frozen ones) need not be subclasses of torch's
    return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) or hasattr(module, 'running_mean')


def _is_dense_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == 1


def _per_sample(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1)


def _index(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, device=like.device)
