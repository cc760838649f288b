"""Tie the layers of a trained network, write its checkpoint and config, and compare its accuracy."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from mmrecur.analysis.tied_layers import describe_loops, find_loops, layer_sequences
from mmrecur.apis.checkpoints import check_out, put_checkpoint
from mmrecur.apis.runner import build_runner, load_config, stack_batches
from mmrecur.apis.specs import build_model, parse_module
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.checkpoint.tie import TiedLayers, tie_layers
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.engine.file_backend import AtomicLocalBackend
from mmrecur.errors import ToolError


def read_whole_config(name: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config, or build one for a module such as ``mmrecur.SWRN(depth=16, width=2)``.

    Args:
        name (str): See :mod:`mmrecur.apis.specs`.
        options (dict, optional): Values to override, by dotted key. Defaults to None.

    Returns:
        Config: A config with ``model``.

    Raises:
        ToolError: If there is no such config or it has no model.
    """
    module = parse_module(name)
    if module is None:
        cfg = load_config(name, options)
        if cfg.get('model') is None:
            raise ToolError(f'config {name!r} has no model')
        return cfg
    cfg = Config(dict(model=module, default_scope=module['type'].split('.')[0]))
    cfg.merge_from_dict(options or {})
    return cfg


def load_model(cfg: Config, checkpoint: str | Path) -> nn.Module:
    """Build a config's model and load a checkpoint into it.

    Args:
        cfg (Config): The config.
        checkpoint (str or Path): The checkpoint file.

    Returns:
        nn.Module: The model in evaluation mode.

    Raises:
        ToolError: If the weights do not fit.
    """
    model_cfg = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = build_model(model_cfg, cfg.get('default_scope'))
    try:
        model.load_state_dict(unwrap(load_checkpoint_file(checkpoint)))
    except RuntimeError as error:
        raise ToolError(f'checkpoint {str(checkpoint)!r} does not fit the model: {error}') from error
    return model.eval()


def tied_config(cfg: Config, tied: TiedLayers, checkpoint: Path) -> Config:
    """Return the config of a model with tied layers.

    Args:
        cfg (Config): Config of the original model.
        tied (TiedLayers): Result of tying its layers.
        checkpoint (Path): Checkpoint that the new config loads.

    Returns:
        Config: A complete config without ``_base_``.

    Raises:
        ToolError: If the model has no ``tied_layers`` argument.
    """
    new = Config(cfg.to_dict())
    new.pop('filename', None)
    has_backbone = all(name.startswith('backbone.') for name in tied.banks)
    holder = new.model.backbone if has_backbone else new.model
    if not str(holder.type).endswith(('SWRN', 'ShortestPathNet')):
        raise ToolError(
            f'a model of type {holder.type} has no tied_layers argument, allowed: SWRN, ShortestPathNet'
        )
    holder.tied_layers = tied.arguments('backbone.' if has_backbone else '')
    holder.pop('init_cfg', None)  # a checkpoint of the original network does not fit
    new.load_from = str(checkpoint.resolve())
    new.resume = False
    return new


def tie_checkpoint(cfg: Config, source: str | Path, destination: str | Path, threshold: float) -> TiedLayers:
    """Tie the layers of a checkpoint and write the new checkpoint and its config.

    The config is written beside the checkpoint, with the suffix ``.py``.

    Args:
        cfg (Config): Config of the model.
        source (str or Path): Checkpoint to read.
        destination (str or Path): Checkpoint to write, with the suffix ``.pth``.
        threshold (float): Minimum similarity of tied layers.

    Returns:
        TiedLayers: Result of tying the layers.

    Raises:
        ToolError: If the checkpoint does not fit the model, an argument is wrong, or no two layers are
            similar enough. Nothing is written then.
    """
    destination = Path(destination)
    if destination.suffix != '.pth':
        raise ToolError(f'out={str(destination)!r}, allowed: a name that ends in .pth')
    check_out(destination, source)
    model = load_model(cfg, source)
    try:
        state, tied = tie_layers(model.state_dict(), model, threshold)
    except ValueError as error:
        raise ToolError(str(error)) from error
    if not any(bank.is_tied for bank in tied.banks.values()):
        highest = max(
            (bank.similarity - torch.eye(len(bank.similarity))).max().item() for bank in tied.banks.values()
        )
        raise ToolError(
            f'threshold={threshold}: no two layers are that similar, the highest is {highest:.4f}'
        )
    new = tied_config(cfg, tied, destination)
    build_model(copy.deepcopy(new.model), new.get('default_scope')).load_state_dict(state)
    put_checkpoint(state, dict(tied=Path(source).name), destination)
    AtomicLocalBackend().put_text(new.pretty_text, destination.with_suffix('.py'))
    return tied


def evaluate_file(cfg: Config, checkpoint: str | Path, work_dir: str | Path) -> dict[str, float]:
    """Test a checkpoint on the test data of a config.

    Args:
        cfg (Config): Config with test data.
        checkpoint (str or Path): The checkpoint file.
        work_dir (str or Path): Directory for the log.

    Returns:
        dict[str, float]: Metrics by name.

    Raises:
        ToolError: If the config has no test data.
    """
    if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
        raise ToolError('the config has no test data')
    cfg = Config(cfg.to_dict())
    cfg.update(work_dir=str(work_dir), load_from=str(checkpoint), resume=False, launcher='none')
    cfg.experiment_name = f'{Path(checkpoint).stem}-{len(list(Path(work_dir).glob("*")))}'
    stack_batches(cfg)
    return {name: float(value) for name, value in build_runner(cfg).test().items()}


def metrics_before_and_after(before: tuple[Config, str | Path], after: tuple[Config, str | Path]) -> str:
    """Test a network before and after a change and format the metrics.

    Args:
        before (tuple): Config and checkpoint before the change.
        after (tuple): Config and checkpoint after the change.

    Returns:
        str: One line for each metric.

    Raises:
        ToolError: If a config has no test data.
    """
    with tempfile.TemporaryDirectory() as directory:
        old, new = (evaluate_file(*network, directory) for network in (before, after))
    return '\n'.join(f'{name}: {value:.4f} before, {new[name]:.4f} after' for name, value in old.items())


def tying_report(model: nn.Module, tied: TiedLayers) -> str:
    """Format the result of tying layers.

    Args:
        model (nn.Module): The model with tied layers.
        tied (TiedLayers): Result of tying them.

    Returns:
        str: A table of the banks, the loops of every stage and the number of parameters.
    """
    table = Table(box=box.SIMPLE_HEAD, title='Banks', title_justify='left')
    for heading in ('bank', 'layers', 'distinct', 'sign flips at', 'change of weights'):
        table.add_column(heading)
    for name, bank in tied.banks.items():
        flips = ', '.join(str(i + 1) for i, scale in enumerate(bank.scales.tolist()) if scale < 0)
        distinct = str(max(bank.rows) + 1)
        table.add_row(name, str(len(bank.rows)), distinct, flips or '-', f'{bank.error:.3g}')
    console = Console(width=110, color_system=None, markup=False)
    with console.capture() as capture:
        console.print(table)
    lines = [capture.get().rstrip(), '', 'Loops (a layer is numbered by the step at which it first runs):']
    for stage, sequence in layer_sequences(model).items():
        loops = describe_loops(find_loops(sequence))
        lines.append(f'  {stage}: {loops}   [{len(set(sequence))} layers in {len(sequence)} steps]')
    before, after = tied.parameters
    lines.append(f'Parameters: {before:,} before, {after:,} after ({(after - before) / before:+.1%})')
    return '\n'.join(lines)
