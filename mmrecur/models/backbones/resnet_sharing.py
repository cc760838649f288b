"""How the blocks of each stage of a ResNet-Shared share: the options, checked and resolved by stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from mmrecur.checks import check_choice, check_flag, check_int
from mmrecur.models.backbones.per_stage import is_per_stage, one_per_stage

#: Convolutions that bottlenecks share, for each value of ``share``.
SHARES = {None: (), 'single': ('conv2',), 'double': ('conv2', 'conv3'), 'all': ('conv1', 'conv2', 'conv3')}


@dataclass(frozen=True)
class StageSharing:
    """How the blocks of one stage share.

    Attributes:
        share (str, optional): A key of :data:`SHARES`; None for a plain stage.
        share_first (bool): Whether the first block reads the bases too.
        relaxation_rank (int): Rank of the residual that each reader adds to a shared convolution of
            bottlenecks.
        shared_rank (int): Number of shared filters of basic blocks.
        unique_rank (int): Number of filters of a single convolution of basic blocks.
        bases (int): Number of bases of basic blocks.
    """

    share: str | None
    share_first: bool = False
    relaxation_rank: int = 0
    shared_rank: int = 0
    unique_rank: int = 0
    bases: int = 1


def bottleneck_sharing(
    depth: int,
    num_stages: int,
    share: Any,
    share_first: Any,
    relaxation_rank: Any,
    only_basic: dict[str, Any],
) -> tuple[StageSharing, ...]:
    """Resolve the options of a network of bottlenecks.

    Args:
        depth (int): Depth of the network, for the messages.
        num_stages (int): Number of stages of the architecture.
        share (str or Sequence[str], optional): See :class:`ResNetShared`, as the following options.
        share_first (bool or Sequence[bool]): Whether the first block shares.
        relaxation_rank (int or Sequence[int]): Rank of the residuals.
        only_basic (dict): Options of basic blocks by name; each must be None.

    Returns:
        tuple[StageSharing, ...]: One for each stage.

    Raises:
        TypeError, ValueError: If an option is wrong. The message names it.
    """
    for name, value in only_basic.items():
        if value is not None:
            raise ValueError(
                f'{name}={value!r} with depth={depth}, allowed: None, because bottlenecks share whole '
                'convolutions (see share)'
            )
    return tuple(
        map(
            StageSharing,
            one_per_stage('share', share, num_stages, partial(check_choice, allowed=SHARES)),
            one_per_stage('share_first', share_first, num_stages, _check_flag),
            one_per_stage('relaxation_rank', relaxation_rank, num_stages, partial(check_int, minimum=0)),
        )
    )


def basic_sharing(
    depth: int,
    num_stages: int,
    share: Any,
    share_first: Any,
    relaxation_rank: Any,
    shared_rank: Any,
    unique_rank: Any,
    bases: Any,
) -> tuple[StageSharing, ...]:
    """Resolve the options of a network of basic blocks.

    Args:
        depth (int): Depth of the network, for the messages.
        num_stages (int): Number of stages of the architecture.
        share (str or Sequence[str], optional): See :class:`ResNetShared`, as the following options.
        share_first (bool or Sequence[bool]): Whether the first block shares.
        relaxation_rank (int or Sequence[int]): Must be 0.
        shared_rank (int or Sequence[int]): Number of shared filters.
        unique_rank (int or Sequence[int]): Number of filters of a single convolution.
        bases (int or Sequence[int]): Number of bases.

    Returns:
        tuple[StageSharing, ...]: One for each stage. A stage with ``shared_rank`` 0 shares nothing.

    Raises:
        TypeError, ValueError: If an option is wrong. The message names it.
    """

    def check_share(name: str, value: Any) -> None:
        check_choice(name, value, SHARES)
        if value not in (None, 'single'):
            raise ValueError(f"{name}={value!r} with depth={depth}, allowed: 'single', None")

    if type(relaxation_rank) is not int or relaxation_rank != 0:
        raise ValueError(
            f'relaxation_rank={relaxation_rank!r} with depth={depth}, allowed: 0, because the convolutions '
            'of basic blocks have filters of their own (see unique_rank)'
        )
    shares = one_per_stage('share', share, num_stages, check_share)
    firsts = one_per_stage('share_first', share_first, num_stages, _check_flag)
    shared = _ranks('shared_rank', shared_rank, num_stages)
    unique = _ranks('unique_rank', unique_rank, num_stages)
    counts = one_per_stage('bases', bases, num_stages, partial(check_choice, allowed=[1, 2]))
    return tuple(
        StageSharing(shares[i] if shared[i] else None, firsts[i], 0, shared[i], unique[i], counts[i])
        for i in range(num_stages)
    )


def _ranks(name: str, value: Any, num_stages: int) -> tuple[int, ...]:
    """Return the rank of each stage. A single one is that of the first stage and doubles with the width."""
    ranks = one_per_stage(name, value, num_stages, partial(check_int, minimum=0))
    return ranks if is_per_stage(value) else tuple(rank * 2**i for i, rank in enumerate(ranks))


def _check_flag(name: str, value: Any) -> None:
    check_flag(**{name: value})
