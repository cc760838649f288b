"""Private interfaces of other libraries, used where there is no public one."""

from __future__ import annotations

import torch


def torch_safe_names() -> set[str] | None:
    """Return the full names that torch's unpickler loads by default; None if this version hides them."""
    # Up to torch 2.13, get_safe_globals() lists only the additions of users, and
    # get_unsafe_globals_in_checkpoint() does not read the format before torch 1.6.
    unpickler = getattr(torch, '_weights_only_unpickler', None)
    names = getattr(unpickler, '_get_allowed_globals', None)
    return None if names is None else set(names())
