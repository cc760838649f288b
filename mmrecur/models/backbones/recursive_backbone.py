"""What the backbones with dynamic recursion have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mmrecur.models.backbones.base import Backbone
from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.loop.gate import GumbelGate, check_rate
from mmrecur.models.layers.loop.recursive_block import (
    GATE_POSITIONS,
    LOOP_NORMS,
    GateDecision,
    RecursiveBlock,
    gated_blocks,
    recursive_blocks,
)
from mmrecur.models.losses.auxiliary import AuxiliaryObjective

#: The objective of the gates unless another is given; its target rate is that of the architecture.
GATE_RATE = MappingProxyType(dict(type='mmrecur.GateRateLoss', loss_weight=1.0))


class LoopStage(Stage):
    """Blocks of a stage, some of them in a loop.

    Args:
        blocks (Sequence[nn.Module]): Residual blocks and :class:`RecursiveBlock` s; of blocks that return
            several values the first is the output.
        with_cp (bool): Recompute each block in the backward pass; loops see to it themselves. Defaults to
            False.
    """

    def __init__(self, blocks: Sequence[nn.Module], with_cp: bool = False) -> None:
        super().__init__(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage.

        Args:
            x (Tensor): Shape (N, C_in, H, W).

        Returns:
            Tensor: Shape (N, C_out, H / stride, W / stride), sizes rounded up.
        """
        for block in self.blocks:
            own_cp = isinstance(block, RecursiveBlock)
            x = block(x) if own_cp else run_step(block, self.with_cp, block, x)
            x = x[0] if isinstance(x, tuple) else x
        return x

    def switch_to_deploy(self) -> None:
        """Fold the norms; see :meth:`RecursiveBlock.switch_to_deploy`."""
        for block in self.blocks:
            block.switch_to_deploy()


class RecursiveBackbone(AuxiliaryObjective, Backbone):
    """Base of the backbones some of whose blocks run in loops.

    A subclass passes those blocks through :meth:`_loop` and calls :meth:`_finish` when all is built.

    Args:
        num_stages (int): Stages after the stem that the architecture has.
        gated (bool): Whether gates let samples leave a loop; without, every loop runs to its end. Defaults to
            True.
        norm (str, optional): ``'shared'``, ``'lvbn'`` or ``'i-lvbn'``, see :class:`RecursiveBlock`. Defaults
            to None: ``'i-lvbn'`` with gates and ``'lvbn'`` without.
        gate_channels (int): Hidden channels of the gates, 0 for a single linear layer. Defaults to 16.
        gate_position (str): ``'before'`` every iteration or ``'after'`` every iteration but the last, see
            :class:`RecursiveBlock`. Defaults to 'before'.
        initial_rate (float): Share of samples that a gate lets pass before training. Defaults to 0.85.
        loss_gate (Mapping, optional): Objective of the gates' rates, a loss that takes
            :class:`GateDecision` s; it needs :class:`AuxiliaryLossHook`. A :class:`GateRateLoss` without
            ``target_rate`` gets that of the architecture. None for none. Defaults to
            ``dict(type='mmrecur.GateRateLoss', loss_weight=1.0)``.
        target_rate (float): Target rate of the architecture. Defaults to 0.7.
        skip (bool): Whether evaluation leaves out samples that have left a loop; otherwise it computes them
            and selects, with the same result. Defaults to True.
        **kwargs: See :class:`Backbone`.
    """

    loss_name = 'loss_gate'
    loss_purpose = 'the target rate of its gates'

    stages: list[str]

    def __init__(
        self,
        num_stages: int,
        gated: bool = True,
        norm: str | None = None,
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
        if norm is not None:
            check_choice('norm', norm, LOOP_NORMS)
        if norm == 'i-lvbn' and not gated:
            raise ValueError("norm='i-lvbn' with gated=False, allowed: 'shared', 'lvbn'")
        self.gated = gated
        self.norm = norm or ('i-lvbn' if gated else 'lvbn')
        self.gate_channels = gate_channels
        self.gate_position = gate_position
        self.initial_rate = initial_rate
        self.skip = skip
        kind = loss_gate.get('type') if isinstance(loss_gate, Mapping) else None
        if kind in ('mmrecur.GateRateLoss', 'GateRateLoss'):
            loss_gate = {'target_rate': target_rate, **loss_gate}
        self._build_objective(loss_gate, GATE_RATE)

    def _loop(self, block: nn.Module, channels: int, num_loops: int) -> nn.Module:
        """The block in a loop; itself if it runs once."""
        if num_loops == 1:
            return block
        gate = GumbelGate(channels, self.gate_channels, self.initial_rate) if self.gated else None
        return RecursiveBlock(block, num_loops, gate, self.norm, self.with_cp, self.skip, self.gate_position)

    def _add_stage(self, blocks: Sequence[nn.Module]) -> None:
        self.stages.append(f'layer{len(self.stages) + 1}')
        self.add_module(self.stages[-1], LoopStage(blocks, self.with_cp))

    def _finish(self) -> None:
        """Freeze what is to be frozen; drop an objective that has nothing to act on."""
        self._freeze()
        self._finish_objective(is_active=self.has_gates)

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        return [self.conv1, self.bn1] if stage == 0 else [getattr(self, self.stages[stage - 1])]

    def recursive_blocks(self) -> dict[str, RecursiveBlock]:
        """dict[str, RecursiveBlock]: The loops by name, such as ``layer3.1``, in order."""
        return recursive_blocks(self)

    @property
    def has_gates(self) -> bool:
        """bool: Whether any loop has a gate."""
        return bool(gated_blocks(self))

    @property
    def required_hooks(self) -> tuple[dict, ...]:
        """tuple[dict]: Hooks that a training needs, and where there are gates the one that logs them."""
        return (*super().required_hooks, *([dict(type='mmrecur.GateRateHook')] if self.has_gates else []))

    def objective_input(self) -> list[GateDecision]:
        """See :class:`AuxiliaryObjective`.

        Returns:
            list[GateDecision]: Of every block and iteration of the last training pass; empty if no gate took
            part in it. Blocks that are in evaluation mode, frozen since then perhaps, are left out.
        """
        return [d for block in self.recursive_blocks().values() if block.training for d in block.decisions]

    @torch.no_grad()
    def gate_rates(self) -> dict[str, float]:
        """What the gates did in the last training pass.

        Returns:
            dict[str, float]: Of each block and gated iteration, ``layer3.1.0`` for the first of ``layer3.1``,
            the share of the samples that reached the gate which it let pass; those that none reached are left
            out.
        """
        rates = {
            f'{name}.{index}': (decision.rate(), decision.reached.any())
            for name, block in self.recursive_blocks().items()
            for index, decision in enumerate(block.decisions, block.first_gated)
        }
        if not rates:
            return {}
        values = torch.stack([torch.stack((rate, some.to(rate))) for rate, some in rates.values()])
        return {name: rate for name, (rate, some) in zip(rates, values.tolist()) if some}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x (Tensor): Images, shape (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: Of each stage in ``out_indices`` its map, shape
            (N, C_i, H / stride_i, W / stride_i), sizes rounded up.
        """
        x = self._stem(x)
        outputs = []
        for i in range(self.num_stages):
            x = self._run_stage(i, x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def _stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def _run_stage(self, index: int, x: Tensor) -> Tensor:
        return getattr(self, self.stages[index])(x)

    def _switch_to_deploy(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        for name in self.stages:
            getattr(self, name).switch_to_deploy()
        self._drop_objective()


def check_per_stage(name: str, value: Sequence[int], number: int | None = None) -> None:
    """Raise unless ``value`` has a positive integer for each stage.

    Args:
        name (str): The argument's name, for the message.
        value (Sequence[int]): What was given.
        number (int, optional): Stages; None for any number of at least one. Defaults to None.

    Raises:
        ValueError: If it has not.
    """
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    fits = is_list and all(type(v) is int and v > 0 for v in value)
    if not fits or len(value) != (number or len(value)):
        stages = 'stage' if number is None else f'of {number} stages'
        raise ValueError(f'{name}={value!r}, allowed: a positive integer for each {stages}')
