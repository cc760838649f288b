"""What copying and sharding wrappers do to weights that a module reads from another one."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor


def refuse_data_parallel(reader: str, what: str) -> NoReturn:
    """Raise for a module that ``nn.DataParallel`` would copy without something it shares.

    Args:
        reader (str): Name of the module's class.
        what (str): What it shares with other modules.

    Raises:
        RuntimeError: Always; it names the alternatives.
    """
    raise RuntimeError(
        f'nn.DataParallel copies {reader}, but not {what}, which the copies would go on to share, on one '
        'device. Use torch.nn.parallel.DistributedDataParallel, one process for each device, instead; for '
        'inference mmrecur.apis.deploy(model) or switch_to_deploy(), after which nothing is shared'
    )


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a ``DTensor``, as a parameter of FSDP2 between two uses is."""
    # known by its method: where DTensor is defined depends on the version and the build of PyTorch
    return isinstance(tensor, Tensor) and hasattr(tensor, 'full_tensor')


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor as a whole, for what is computed from weights alone and so alike in each process.

    Args:
        tensor (Tensor): Any tensor.

    Returns:
        Tensor: The whole of a ``DTensor``, which passes a gradient back to the shards; any other tensor
        itself.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def check_gathered(weight: Tensor, x: Tensor, reader: str, what: str) -> None:
    """Raise if FSDP2 has sharded a weight that belongs to another module.

    FSDP2 gathers the parameters of the module that ``fully_shard`` was called with while that module runs.
    Those of another one, which does not run at the time, are in shards.

    Args:
        weight (Tensor): The weight.
        x (Tensor): What it is applied to.
        reader (str): Name of the class that reads it.
        what (str): What it is.

    Raises:
        RuntimeError: If the weight is sharded and ``x`` is not; it names the alternative.
    """
    if is_sharded(weight) and not is_sharded(x):
        raise RuntimeError(
            f'{reader} reads {what} of another module, whose parameters are sharded now. Call fully_shard '
            'with a module that contains both, such as the stage or the whole backbone, and not with the '
            'one that holds the weight alone'
        )
