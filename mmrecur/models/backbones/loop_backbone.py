"""Base class of the backbones with blocks that run in loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_flag, check_int
from mmrecur.models.backbones.base import Backbone
from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.loop.block import (
    GATE_POSITIONS,
    LOOP_NORMS,
    GateDecision,
    LoopBlock,
    gated_loop_blocks,
    loop_blocks,
)
from mmrecur.models.layers.loop.gate import GumbelGate, check_rate
from mmrecur.models.losses.auxiliary import AuxiliaryObjective

#: Default objective of the gates. The backbone adds the target rate of its architecture.
GATE_RATE = MappingProxyType(dict(type='mmrecur.GateRateLoss', loss_weight=1.0))


class LoopStage(Stage):
    """Run the blocks of a stage one after the other, some of them in loops.

    Args:
        blocks (Sequence[nn.Module]): Residual blocks and :class:`LoopBlock` s.
        with_cp (bool): Recompute the activations of plain blocks in the backward pass. Loops have an option
            of their own. Defaults to False.
    """

    def __init__(self, blocks: Sequence[nn.Module], with_cp: bool = False) -> None:
        super().__init__(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage.

        Args:
            x (Tensor): Shape (N, C_in, H, W).

        Returns:
            Tensor: Shape (N, C_out, H / stride, W / stride), with sizes rounded up.
        """
        for block in self.blocks:
            x = run_step(block, self.with_cp and not isinstance(block, LoopBlock), block, x)
        return x

    def switch_to_deploy(self) -> None:
        """Switch every block to its inference form."""
        for block in self.blocks:
            block.switch_to_deploy()


class LoopBackbone(AuxiliaryObjective, Backbone):
    """Base class of the backbones with blocks that run in loops.

    A subclass sets ``loops`` and ``relaxation_rank``, builds ``conv1``, ``bn1`` and ``relu``, passes blocks
    through :meth:`_loop`, adds stages with :meth:`_add_stage`, and calls :meth:`_finish` last.

    Args:
        num_stages (int): Number of stages of the architecture, without the stem.
        gated (bool): Whether gates let samples leave the loops. Otherwise every sample runs all iterations.
            Defaults to True.
        loop_norm (str, optional): ``'shared'``, ``'lvbn'`` or ``'i-lvbn'``, see :class:`LoopBlock`. Defaults
            to None: ``'i-lvbn'`` with gates and ``'lvbn'`` without.
        gate_channels (int): Hidden channels of the gates, 0 for a single linear layer. Defaults to 16.
        gate_position (str): ``'before'`` every iteration or ``'after'`` every iteration but the last, see
            :class:`LoopBlock`. Defaults to 'before'.
        initial_rate (float): Probability with which a gate lets a sample pass before training. Defaults to
            0.85.
        loss_gate (Mapping, optional): Objective of the gates, a loss that takes :class:`GateDecision` s. It
            needs :class:`AuxiliaryLossHook`. A :class:`GateRateLoss` without ``target_rate`` gets the one of
            the architecture. None for no objective. Defaults to
            ``dict(type='mmrecur.GateRateLoss', loss_weight=1.0)``.
        target_rate (float): Target rate of the architecture. Defaults to 0.7.
        skip (bool): Whether evaluation leaves out samples that have left a loop. Otherwise it computes them
            and selects, with the same result. Defaults to True.
        **kwargs: See :class:`Backbone`.

    Attributes:
        stages (list[str]): Names of the stages that contain blocks.
        loops (tuple[int, ...]): Maximum number of iterations of the blocks in each stage.
        relaxation_rank (tuple[int, ...]): Rank of the residuals of each iteration in each stage, see
            :class:`LoopBlock`.
    """

    loss_name = 'loss_gate'
    loss_purpose = 'the target rate of its gates'

    loops: tuple[int, ...]
    relaxation_rank: tuple[int, ...]

    def __init__(
        self,
        num_stages: int,
        gated: bool = True,
        loop_norm: str | None = None,
        gate_channels: int = 16,
        gate_position: str = 'before',
        initial_rate: float = 0.85,
        loss_gate: Mapping | None = GATE_RATE,
        target_rate: float = 0.7,
        skip: bool = True,
        **kwargs: object,
    ) -> None:
        super().__init__(num_stages, **kwargs)
        check_flag(gated=gated, skip=skip)
        check_int('gate_channels', gate_channels, 0)
        check_rate('initial_rate', initial_rate)
        check_choice('gate_position', gate_position, GATE_POSITIONS)
        if loop_norm is not None:
            check_choice('loop_norm', loop_norm, LOOP_NORMS)
        if loop_norm == 'i-lvbn' and not gated:
            raise ValueError("loop_norm='i-lvbn' with gated=False, allowed: 'shared', 'lvbn'")
        self.gated = gated
        self.loop_norm = loop_norm or ('i-lvbn' if gated else 'lvbn')
        self.gate_channels = gate_channels
        self.gate_position = gate_position
        self.initial_rate = initial_rate
        self.skip = skip
        self.stages: list[str] = []
        loss_type = loss_gate.get('type') if isinstance(loss_gate, Mapping) else None
        if loss_type in ('mmrecur.GateRateLoss', 'GateRateLoss'):
            loss_gate = {'target_rate': target_rate, **loss_gate}
        self._build_objective(loss_gate, GATE_RATE)

    def _loop(self, block: nn.Module, channels: int, stage: int) -> nn.Module:
        """Put a block of a stage in a loop; return the block itself for a single iteration."""
        if self.loops[stage] == 1:
            return block
        return LoopBlock(
            block,
            self.loops[stage],
            gate=GumbelGate(channels, self.gate_channels, self.initial_rate) if self.gated else None,
            loop_norm=self.loop_norm,
            with_cp=self.with_cp,
            skip=self.skip,
            gate_position=self.gate_position,
            relaxation_rank=self.relaxation_rank[stage],
        )

    def _add_stage(self, blocks: Sequence[nn.Module]) -> None:
        self.stages.append(f'layer{len(self.stages) + 1}')
        self.add_module(self.stages[-1], LoopStage(blocks, self.with_cp))

    def _finish(self) -> None:
        """Freeze the frozen stages; drop the objective if there are no gates."""
        self._freeze()
        self._finish_objective(is_active=self.has_gates)

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        return [self.conv1, self.bn1] if stage == 0 else [getattr(self, self.stages[stage - 1])]

    def loop_blocks(self) -> dict[str, LoopBlock]:
        """dict[str, LoopBlock]: The loops by name, such as ``layer3.1``, in order."""
        return loop_blocks(self)

    @property
    def has_gates(self) -> bool:
        """bool: Whether any loop has a gate."""
        return bool(gated_loop_blocks(self))

    @property
    def required_hooks(self) -> tuple[dict, ...]:
        """tuple[dict]: Hooks that training needs, including the one that logs the rates of gates."""
        return (*super().required_hooks, *([dict(type='mmrecur.GateRateHook')] if self.has_gates else []))

    def objective_input(self) -> list[GateDecision]:
        """Return the decisions of all gates in the last training pass, see :class:`AuxiliaryObjective`.

        Returns:
            list[GateDecision]: One for each gated iteration of each loop. Loops in evaluation mode, such as
            those of stages frozen since that pass, are left out.
        """
        return [d for block in self.loop_blocks().values() if block.training for d in block.decisions]

    @torch.no_grad()
    def gate_rates(self) -> dict[str, float]:
        """Return the rate of each gate in the last training pass.

        Returns:
            dict[str, float]: Share of the samples reaching a gate that it lets pass, by loop and iteration:
            ``layer3.1.0`` is the first iteration of ``layer3.1``. Iterations that no sample reached are left
            out.
        """
        rates = {
            f'{name}.{index}': (decision.rate(), decision.reached.any())
            for name, block in self.loop_blocks().items()
            for index, decision in enumerate(block.decisions, block.first_gated)
        }
        if not rates:
            return {}
        # one transfer from the device for all rates
        values = torch.stack([torch.stack((rate, some.to(rate))) for rate, some in rates.values()])
        return {name: rate for name, (rate, some) in zip(rates, values.tolist()) if some}

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def _switch_to_deploy(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        for name in self.stages:
            getattr(self, name).switch_to_deploy()
        self._drop_objective()
