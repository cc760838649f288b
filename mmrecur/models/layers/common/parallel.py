"""Support for wrappers that copy or shard weights that a module reads from another module."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor


def refuse_data_parallel(reader: str, what: str) -> NoReturn:
    """Raise for a module that ``nn.DataParallel`` would copy without a module that it shares.

    Args:
        reader (str): Class name of the module.
        what (str): Name of the part that it shares with other modules.

    Raises:
        RuntimeError: Always. The message names the alternatives.
    """
    raise RuntimeError(
        f'nn.DataParallel copies {reader}, but not {what}, which would stay on one device. Use '
        'torch.nn.parallel.DistributedDataParallel with one process for each device instead. For inference, '
        'call mmrecur.apis.deploy(model) or switch_to_deploy() first, after which nothing is shared'
    )


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a ``DTensor``, such as a parameter that FSDP2 has not gathered."""
    # the module that defines DTensor depends on the version and the build of PyTorch
    return isinstance(tensor, Tensor) and hasattr(tensor, 'full_tensor')


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded.

    Use it for results that depend on weights only, so that every process computes the same result.

    Args:
        tensor (Tensor): Any tensor.

    Returns:
        Tensor: The whole of a ``DTensor``, with gradients for the shards. Any other tensor is returned
        as it is.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def check_gathered(weight: Tensor, x: Tensor, reader: str, what: str) -> None:
    """Raise if FSDP2 has sharded a weight that belongs to another module.

    FSDP2 gathers the parameters of a module only while that module runs. The parameters of other modules
    stay sharded.

    Args:
        weight (Tensor): The weight.
        x (Tensor): Input that the weight is applied to.
        reader (str): Name of the class that reads the weight.
        what (str): Name of the weight.

    Raises:
        RuntimeError: If the weight is sharded and ``x`` is not. The message names the alternative.
    """
    if is_sharded(weight) and not is_sharded(x):
        raise RuntimeError(
            f'{reader} reads {what} of another module, whose parameters are sharded now. Call fully_shard '
            'with a module that contains both, such as the stage or the whole backbone'
        )
