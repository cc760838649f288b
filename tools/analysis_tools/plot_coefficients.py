"""Compare the coefficients and bases of networks with shared filter bases.

CONFIG is a config or a module, as in "mmrecur.ResNetShared(depth=34)". CHECKPOINT is a file with its weights,
or TITLE=FILE. Several checkpoints are drawn side by side. Without a checkpoint, the network has its initial
weights. --similarity draws the absolute cosine similarities of all coefficients of a stage (Figure 4 of the
filter basis paper). --spectrum draws the eigenvalues of the Gram matrices of the bases, which are 1 for an
orthonormal basis.

    C=configs/resnet_shared/resnet34-s32u1_1xb128_cifar100.py
    python tools/analysis_tools/plot_coefficients.py $C without=A.pth with=B.pth --stage layer2 \\
        --similarity similarity.png --spectrum spectrum.png
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import json
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from mmrecur.analysis.coefficients import coefficients, cosine_similarity, gram_spectra, mean_similarity
from mmrecur.analysis.plots import plot_similarity, plot_spectra
from mmrecur.apis.runner import (
    clean_errors,
)
from mmrecur.apis.specs import build_model, read_model
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.engine.figures import picture_path, save_figure
from mmrecur.errors import ToolError, TransferError
from mmrecur.models.layers import FactorizedConv2d


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config or module; see above')
    parser.add_argument('checkpoints', nargs='*', metavar='CHECKPOINT', help='weights, or TITLE=weights')
    parser.add_argument(
        '--stage', default='layer2', help='stage whose coefficients are drawn (default: layer2)'
    )
    parser.add_argument(
        '--similarity', type=picture_path, help='write the similarities to this file: png, pdf or svg'
    )
    parser.add_argument(
        '--spectrum', type=picture_path, help='write the eigenvalues to this file: png, pdf or svg'
    )
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args(argv)


def load_models(args: argparse.Namespace) -> dict[str, nn.Module]:
    """Build the network once for each checkpoint, by title."""
    models = {}
    for item in args.checkpoints or ['as built=']:
        title, _, path = item.rpartition('=')
        model = build_model(*read_model(args.config, args.cfg_options))
        if path:
            try:
                model.load_state_dict(unwrap(load_checkpoint(path)))
            except (RuntimeError, TransferError) as error:
                raise ToolError(f'{args.config} with {path}: {error}') from error
        models[title or Path(path).stem] = model
    return models


def measure(models: dict[str, nn.Module]) -> dict[str, Any]:
    """Measure the mean similarity of coefficients by stage, and the range of eigenvalues by group.

    Networks that share whole convolutions have bases but no coefficients.
    """
    result = {}
    for title, model in models.items():
        spectra = [(values[-1].item(), values[0].item()) for values in gram_spectra(model)]
        shares_whole = spectra and not any(isinstance(m, FactorizedConv2d) for m in model.modules())
        stages = {
            name: mean_similarity(cosine_similarity(torch.cat([*rows.values()])))
            for name, rows in ({} if shares_whole else coefficients(model)).items()
        }
        result[title] = dict(mean_similarity=stages, eigenvalues=spectra)
    return result


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    # The libraries log to stdout, which is reserved for the result.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            models = load_models(args)
            result = measure(models)
            if args.similarity:
                rows = {title: coefficients(model) for title, model in models.items()}
                known = list(next(iter(rows.values())))
                if args.stage not in known:
                    raise ToolError(f'--stage {args.stage!r}, allowed: {", ".join(known)}')
                matrices = {
                    title: cosine_similarity(torch.cat([*stages[args.stage].values()])).numpy()
                    for title, stages in rows.items()
                }
                save_figure(plot_similarity(matrices, args.stage), args.similarity)
            if args.spectrum:
                spectra = {t: [v.numpy() for v in gram_spectra(model)] for t, model in models.items()}
                save_figure(plot_spectra(spectra), args.spectrum)
        except ValueError as error:
            raise ToolError(str(error)) from error
    if args.json:
        print(json.dumps(result, indent=2))
        return
    table = Table('network', 'stage', 'mean |cos|', 'eigenvalues from', 'to', box=box.SIMPLE_HEAD)
    for title, values in result.items():
        stages = [(name, f'{mean:.4f}') for name, mean in values['mean_similarity'].items()]
        ranges = [(f'{low:.3g}', f'{high:.3g}') for low, high in values['eigenvalues']]
        if not stages:
            stages = [(f'group {i + 1}', '-') for i in range(len(ranges))]
        # the last stage of a DenseNet may use the basis of the stage before
        for stage, pair in zip_longest(stages, ranges, fillvalue=('-', '-')):
            table.add_row(title, *stage, *pair)
    Console(markup=False).print(table)


if __name__ == '__main__':
    with clean_errors():
        main()
