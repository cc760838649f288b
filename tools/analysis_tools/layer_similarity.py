"""Print and draw the similarity of the layers of a network with template banks.

    python tools/analysis_tools/layer_similarity.py CONFIG work_dirs/NAME/epoch_200.pth
    python tools/analysis_tools/layer_similarity.py CONFIG work_dirs/NAME/epoch_*.pth --out evolution.png

CONFIG is a config or a module, as in "mmrecur.SWRN(depth=16, width=2)". For one checkpoint, the matrix of
every bank is printed and drawn. Several checkpoints, such as the epochs of a run or runs of several seeds,
are drawn side by side, in the order of the numbers in their names.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import re
from pathlib import Path

from mmengine.config import DictAction
from torch import Tensor

from mmrecur.apis.runner import (
    clean_errors,
)
from mmrecur.apis.summary import print_results
from mmrecur.apis.tying import load_model, read_whole_config
from mmrecur.engine.figures import picture_path, plot_layer_similarity, save_figure
from mmrecur.errors import ToolError
from mmrecur.models.layers.template_bank.similarity import mean_similarity, similarity_matrices


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config or module; see above')
    parser.add_argument('checkpoints', nargs='+', help='weights of the model')
    parser.add_argument(
        '--out',
        type=picture_path,
        default='layer_similarity.png',
        help='figure to write: png, pdf or svg (default: layer_similarity.png)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args(argv)


def natural(path: Path) -> list:
    """Return a sort key that puts epoch_10 after epoch_9."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r'(\d+)', str(path)))]


def labels(paths: list[Path]) -> list[str]:
    """Return names of files, with as many parent folders as needed to distinguish them."""
    for names in ([p.stem for p in paths], [f'{p.parent.name}/{p.stem}' for p in paths]):
        if len(set(names)) == len(paths):
            return names
    return [str(path.with_suffix('')) for path in paths]


def print_matrix(name: str, matrix: Tensor) -> None:
    """Print a matrix with layer numbers."""
    count = len(matrix)
    print(f'{name}: {count} layers, mean similarity of two layers {mean_similarity(matrix):.3f}')
    print('      ' + ' '.join(f'{i:>5}' for i in range(1, count + 1)))
    for i, row in enumerate(matrix.tolist(), start=1):
        print(f'{i:>5} ' + ' '.join(f'{value:5.2f}' for value in row))


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    cfg = read_whole_config(args.config, args.cfg_options)
    paths = sorted(set(map(Path, args.checkpoints)), key=natural)
    columns = {}
    for path, label in zip(paths, labels(paths)):
        try:
            matrices = similarity_matrices(load_model(cfg, path))
        except ValueError as error:
            raise ToolError(str(error)) from error
        columns[label] = matrices
        if len(paths) == 1:
            for name, matrix in matrices.items():
                print_matrix(name, matrix)
        else:
            means = ', '.join(f'{name} {mean_similarity(matrix):.3f}' for name, matrix in matrices.items())
            print(f'{label}: {means}')
    print_results({'picture': str(save_figure(plot_layer_similarity(columns), args.out))})


if __name__ == '__main__':
    with clean_errors():
        main()
