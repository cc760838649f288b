"""Swap the backbone of any mmdet or mmpretrain config, or of your own, for one of this package.

    python tools/swap_backbone.py mmdet::atss/atss_r50_fpn_1x_coco.py --backbone rla-resnet \\
        --out configs/atss_rla-r50.py

writes a short config that inherits from the base. With --checkpoint, a trained model of the base is grafted
too. The new model then computes the same function where this is possible, and training continues from
there.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
from pathlib import Path

from mmengine.config import Config

from mmrecur.apis.runner import (
    clean_errors,
    config_path,
    load_config,
)
from mmrecur.apis.summary import print_results
from mmrecur.apis.swap import list_backbones, plan_swap
from mmrecur.apis.swap.report import print_swap
from mmrecur.apis.swap.trial import Trial, try_swap
from mmrecur.apis.swap.write import write_swap
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.errors import ToolError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'names: {", ".join(list_backbones())}',
    )
    parser.add_argument('base', help='a config: a path, mmdet::PATH, mmpretrain::PATH or mmrecur::PATH')
    parser.add_argument(
        '--backbone', required=True, metavar='NAME', help='a name from the list below (one without a depth '
        "keeps the base's depth), or a module such as 'mmrecur.RLAResNet(depth=50, attention=\"eca\")'",
    )  # fmt: skip
    parser.add_argument('--out', required=True, metavar='CONFIG', help='config to write')
    parser.add_argument(
        '--checkpoint', help="trained checkpoint of the base's model; grafted to a file next to CONFIG"
    )
    parser.add_argument(
        '--init', default='base', metavar='WEIGHTS', help='weights that the backbone starts from: "base" '
        'grafts the weights that the replaced backbone starts from (default); "none" leaves random weights; '
        'otherwise a checkpoint of a plain network, such as torchvision://resnet50',
    )  # fmt: skip
    parser.add_argument(
        '--at', metavar='PLACE', help='part of the model if several have a backbone, e.g. model.detector'
    )
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help='image size of the trial (default: 128 128)'
    )
    return parser.parse_args(argv)


def check_files(args: argparse.Namespace) -> Path:
    """Return the config to write; raise if writing it would overwrite a file that is read."""
    out = Path(args.out)
    if out.suffix != '.py':
        raise ToolError(f'--out {args.out!r}, allowed: a path that ends in .py')
    read = {'BASE_CONFIG': Path(config_path(args.base)), '--checkpoint': Path(args.checkpoint or '')}
    for written in (out, out.with_suffix('.pth')):
        for name, path in read.items():
            if path.is_file() and written.exists() and written.samefile(path):
                raise ToolError(f'{written} would overwrite {name}; allowed: another --out')
    if args.checkpoint and args.init != 'base':
        raise ToolError(
            f'--checkpoint includes the weights of the backbone, so --init {args.init} would have no effect; '
            'allowed: one of the two'
        )
    if Config._is_lazy_import(config_path(args.base)):
        raise ToolError(
            f'{args.base!r} is a config of the new style (read_base), from which a written config cannot '
            'inherit; mmrecur.apis.swap_backbone supports it in Python'
        )
    return out


def main(argv: list[str] | None = None) -> Trial:
    """Run the tool."""
    args = parse_args(argv)
    out = check_files(args)
    checkpoint = load_checkpoint(args.checkpoint) if args.checkpoint else None
    load_from = out.resolve().with_suffix('.pth').as_posix() if args.checkpoint else None
    swap = plan_swap(load_config(args.base), args.backbone, args.init, args.at, load_from)
    trial = try_swap(swap, args.shape and tuple(args.shape), checkpoint)
    meta = (checkpoint or {}).get('meta') or {}
    results = write_swap(args.base, swap, out, trial.grafted, args.checkpoint, meta.get('dataset_meta'))
    if trial.grafted is not None:
        print(trial.grafted.report)
    print_swap(swap, trial)
    print('Wrote:')
    print_results(results)
    print(f'Train it: python tools/train.py {out}')
    return trial


if __name__ == '__main__':
    with clean_errors():
        main()
