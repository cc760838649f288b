"""Convert checkpoint files, for the tools in ``tools/model_converters``."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from torch import Tensor, nn

from mmrecur.apis.specs import build_model, read_model
from mmrecur.checkpoint import Report
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.engine.file_backend import AtomicLocalBackend
from mmrecur.errors import ToolError, TransferError
from mmrecur.version import __version__

#: Maps a checkpoint and a model to a state dict and a report.
Function = Callable[[dict[str, Any], nn.Module], tuple[dict[str, Tensor], Report]]


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a tool that reads one checkpoint and writes another.

    Args:
        parser (argparse.ArgumentParser): Parser to extend.
    """
    parser.add_argument('src', help='checkpoint to read')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument(
        '--config', required=True, help='config of the model to fill, or a backbone such as '
        '"mmrecur.RLAResNet(depth=50)"',
    )  # fmt: skip
    parser.add_argument('--backbone-only', action='store_true', help="fill only the model's backbone")
    parser.add_argument('--no-strict', action='store_true', help='report unexplained keys instead of failing')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='config values to override'
    )


def transfer_file(args: argparse.Namespace, function: Function) -> Report:
    """Transfer a checkpoint to a model, run the model once, and write the new checkpoint and its report.

    Args:
        args (argparse.Namespace): Arguments with the options of :func:`add_file_arguments`. ``DST`` is
            written atomically, the report beside it with the suffix ``.report.json``.
        function (Callable): Maps a checkpoint and a model to a state dict and a report.

    Returns:
        Report: The report on every tensor.

    Raises:
        ToolError: If the config or checkpoint does not fit, or an output of the backbone is not finite or
            constant. Nothing is written then.
    """
    destination = Path(args.dst)
    if destination.exists() and Path(args.src).exists() and destination.samefile(args.src):
        raise ToolError(f'dst={args.dst!r} is src; allowed: another file')
    model = build_model(*read_model(args.config, args.cfg_options, args.backbone_only))
    checkpoint = load_checkpoint_file(args.src)
    try:
        state, report = function(checkpoint, model)
    except (TransferError, ValueError) as error:
        raise ToolError(f'{args.src}: {error}') from error
    model.load_state_dict(state)
    check_outputs(model)
    write_checkpoint(state, report, args.src, destination)
    return report


def write_checkpoint(
    state: dict[str, Tensor],
    report: Report,
    source: str | Path,
    destination: Path,
    dataset_meta: dict[str, Any] | None = None,
) -> None:
    """Write a transferred checkpoint and its report.

    Args:
        state (dict[str, Tensor]): Tensors by name.
        report (Report): Report on every tensor, written beside the checkpoint as ``.report.json``.
        source (str or Path): The original checkpoint, whose name is recorded.
        destination (Path): File to write, atomically.
        dataset_meta (dict, optional): Meta information of the data set, such as the names of the classes.
            Defaults to None.
    """
    meta: dict[str, Any] = dict(source=Path(source).name, config=None)
    if dataset_meta is not None:
        meta['dataset_meta'] = dataset_meta
    text = json.dumps(report.to_dict(), indent=2)
    AtomicLocalBackend().put_text(text, destination.with_suffix('.report.json'))
    put_checkpoint(state, meta, destination)


def put_checkpoint(state: Mapping[str, Tensor], meta: Mapping[str, Any], destination: str | Path) -> None:
    """Write a checkpoint atomically.

    Args:
        state (Mapping[str, Tensor]): Tensors by name.
        meta (Mapping): Meta information, to which this package's version is added.
        destination (str or Path): File to write.
    """
    buffer = io.BytesIO()
    torch.save(dict(meta=dict(meta, mmrecur_version=__version__), state_dict=state), buffer)
    AtomicLocalBackend().put(buffer.getvalue(), destination)


def check_out(out: str | Path, checkpoint: str | Path) -> None:
    """Raise if a tool would overwrite the checkpoint that it reads.

    Args:
        out (str or Path): File to write.
        checkpoint (str or Path): File to read.

    Raises:
        ToolError: If both are the same file.
    """
    if Path(out).exists() and Path(checkpoint).exists() and Path(out).samefile(checkpoint):
        raise ToolError(f'out={str(out)!r} is the checkpoint itself, allowed: another file')


def check_outputs(model: nn.Module) -> None:
    """Run the backbone on random input and check its outputs.

    Args:
        model (nn.Module): A backbone or a model with one, with its weights loaded.

    Raises:
        ToolError: If an output is not finite or is constant.
    """
    backbone = getattr(model, 'backbone', model)
    backbone.eval()
    image = torch.randn(1, backbone.in_channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = backbone(image)
    for index, output in zip(backbone.out_indices, outputs):
        if not output.isfinite().all() or output.std() == 0:
            raise ToolError(f'output {index} of the backbone is not finite or constant: nothing written')
