"""What of a swapped backbone may stay frozen: only what is good as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrecur.apis.swap.plan import Swap


def thaw(swap: Swap, args: dict[str, Any], fixed: Mapping[str, Any], why: str) -> None:
    """Let everything learn: no frozen stages, norms that follow their maps.

    Args:
        swap (Swap): Gets an account of what changes.
        args (dict): Arguments of the new backbone, changed in place.
        fixed (Mapping): Those that the user has named, which stay.
        why (str): Reason, for the note.
    """
    changes: dict[str, Any] = {}
    if args.get('frozen_stages', -1) >= 0:
        changes['frozen_stages'] = -1
    if args.get('norm_eval'):
        changes['norm_eval'] = False
    if (args.get('norm_cfg') or {}).get('requires_grad') is False:
        changes['norm_cfg'] = {**args['norm_cfg'], 'requires_grad': True}
    changes = {key: value for key, value in changes.items() if key not in fixed}
    for key, value in changes.items():
        swap.changes.append((f'backbone.{key}', args.get(key), value))
        args[key] = value
    if changes:
        swap.notes.append(f'{why}: {", ".join(changes)} would keep them so')


def freeze_what_is_trained(swap: Swap, args: dict[str, Any], fixed: Mapping[str, Any]) -> None:
    """Settle what stays frozen, now that it is known what the new backbone starts from.

    Args:
        swap (Swap): With its start and, for a graft, what that computes.
        args (dict): Arguments of the new backbone, changed in place.
        fixed (Mapping): Those that the user has named, which stay.
    """
    if swap.start.kind == 'random':
        thaw(swap, args, fixed, 'random weights at first')
        return
    if not swap.is_exact:
        thaw(swap, args, fixed, 'grafted weights do not compute what they did, norms have other statistics')
        return
    frozen = args.get('frozen_stages', -1)
    if frozen > 0 and 'frozen_stages' not in fixed:
        args['frozen_stages'] = 0
        swap.changes.append(('backbone.frozen_stages', frozen, 0))
        swap.notes.append(
            'frozen_stages: only the stem stays frozen, since what is new in a stage has to learn'
        )
