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
import os
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from mmrecur.apis.recovery.summary import print_plans, print_recovery, write_recovery
from mmrecur.apis.recovery.swapped import RecoverySettings, choose_swap_plan, recover_swap
from mmrecur.apis.runner import (
    clean_errors,
    config_path,
    load_config,
)
from mmrecur.apis.summary import print_results
from mmrecur.apis.swap import Swap, list_backbones, plan_swap
from mmrecur.apis.swap.report import print_swap
from mmrecur.apis.swap.start import EXACT
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
    add_recovery_arguments(parser)
    return parser.parse_args(argv)


def add_recovery_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the recovery."""
    group = parser.add_argument_group(
        'recovery', 'match the feature maps of the trained model (--checkpoint)'
    )
    group.add_argument(
        '--recover', metavar='IMAGES', help='images without labels: a folder, a glob, a COCO annotation '
        'file, or "train" for the images that the base trains on',
    )  # fmt: skip
    group.add_argument('--steps', type=int, default=2000, help='number of steps (default: %(default)s)')
    group.add_argument('--batch-size', type=int, default=8, help='images in a step (default: %(default)s)')
    group.add_argument(
        '--lr', type=float, help='highest learning rate (default: chosen from the first errors)'
    )
    group.add_argument('--num-images', type=int, help='use a random choice of this many images')
    group.add_argument('--seed', type=int, default=0, help='order of the images (default: %(default)s)')
    group.add_argument(
        '--keep', type=float, metavar='SHARE', help='choose what each stage shares so that the backbone '
        "keeps at most this share of the old one's parameters, such as 0.6",
    )  # fmt: skip
    group.add_argument('--val', action='store_true', help='validate the model before and after each stage')


def recovery_settings(args: argparse.Namespace) -> RecoverySettings | None:
    """Return the settings of the recovery, or None without one; raise if options contradict each other."""
    if args.recover is None:
        for option in ('keep', 'val', 'num_images', 'lr'):
            if getattr(args, option) is not None and getattr(args, option) is not False:
                raise ToolError(f'--{option.replace("_", "-")} without --recover; allowed: with it')
        return None
    if args.checkpoint is None:
        raise ToolError(
            '--recover without --checkpoint; allowed: with the trained checkpoint of the base, whose feature '
            'maps are matched'
        )
    try:
        return RecoverySettings(
            images=args.recover,
            steps=args.steps,
            batch_size=args.batch_size,
            lr=args.lr,
            num_images=args.num_images,
            keep=args.keep,
            validate=args.val,
            seed=args.seed,
        )
    except ValueError as error:
        raise ToolError(f'an option of the recovery: {error}') from error


def check_files(args: argparse.Namespace) -> Path:
    """Return the config to write; raise if writing it would overwrite a file that is read."""
    out = Path(args.out)
    if out.suffix != '.py':
        raise ToolError(f'--out {args.out!r}, allowed: a path that ends in .py')
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ToolError(f'--out {args.out!r}: {str(folder)!r} is no folder to write to; allowed: one that is')
    read = {'BASE_CONFIG': Path(config_path(args.base)), '--checkpoint': Path(args.checkpoint or '')}
    for written in (out, out.with_suffix('.pth')):
        for name, path in read.items():
            if path.is_file() and written.exists() and written.samefile(path):
                raise ToolError(f'{written} would overwrite {name}; allowed: another --out')
    if args.checkpoint and args.init != 'base' and not (args.recover and args.init == 'none'):
        raise ToolError(
            f'--checkpoint includes the weights of the backbone, so --init {args.init} would have no effect; '
            'allowed: one of the two, or --init none with --recover, which trains a random backbone'
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
    out, settings = check_files(args), recovery_settings(args)
    checkpoint = load_checkpoint(args.checkpoint) if args.checkpoint else None
    load_from = out.resolve().with_suffix('.pth').as_posix() if args.checkpoint else None

    def plan(name: str | dict, unfreeze: bool = True) -> Swap:
        return plan_swap(load_config(args.base), name, args.init, args.at, load_from, unfreeze)

    name, chosen, recovered = args.backbone, None, None
    swap = plan(name)
    if settings is not None and settings.keep is not None:
        chosen = choose_swap_plan(swap, checkpoint, settings)
        name = chosen.backbone
        print_plans(chosen)
        swap = plan(name)
    trial = try_swap(swap, args.shape and tuple(args.shape), checkpoint)
    grafted = trial.grafted
    if settings is not None and grafted.difference <= EXACT:
        print('The new model computes the function of the old one: nothing to recover.')
    elif settings is not None:
        recovered = recover_swap(swap, checkpoint, settings, out.with_suffix('.recovery.pth'))
        swap = plan(name, unfreeze=False)
        grafted = replace(grafted, state=recovered.state, report=recovered.grafted)
    meta = (checkpoint or {}).get('meta') or {}
    results = write_swap(args.base, swap, out, grafted, args.checkpoint, meta.get('dataset_meta'))
    if grafted is not None:
        print(grafted.report)
    print_swap(swap, trial)
    if recovered is not None:
        print_recovery(recovered)
        results |= write_recovery(recovered, chosen, out)
    print('Wrote:')
    print_results(results)
    print(f'Train it: python tools/train.py {out}')
    out.with_suffix('.recovery.pth').unlink(missing_ok=True)
    return trial


if __name__ == '__main__':
    with clean_errors():
        main()
