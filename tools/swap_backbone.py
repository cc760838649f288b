"""Replace the backbone of any mmdet or mmpretrain config, or of your own, by one of this package.

    python tools/swap_backbone.py mmdet::atss/atss_r50_fpn_1x_coco.py --backbone rla-resnet \\
        --out configs/atss_rla-r50.py

writes a short config that inherits from the base. With --checkpoint, a trained model of the base is grafted
as well: the new model computes what the trained one did, wherever mathematics allows, and learns on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from mmrecur.apis.checkpoints import write_checkpoint
from mmrecur.apis.inherit import inheriting_text, write_checked
from mmrecur.apis.runner import clean_errors, config_path, load_config
from mmrecur.apis.summary import print_results
from mmrecur.apis.swap import list_backbones, plan_swap
from mmrecur.apis.swap.report import print_swap
from mmrecur.apis.swap.trial import Trial, try_swap
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.errors import ToolError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'names: {", ".join(list_backbones())}',
    )
    parser.add_argument('base', help='a config: its path, or mmdet::PATH, mmpretrain::PATH, mmrecur::PATH')
    parser.add_argument(
        '--backbone', required=True, metavar='NAME', help='a name from the list below; one without a depth '
        "keeps the base's; or a module such as 'mmrecur.RLAResNet(depth=50, attention=\"eca\")'",
    )  # fmt: skip
    parser.add_argument('--out', required=True, metavar='CONFIG', help='config to write')
    parser.add_argument(
        '--checkpoint', help="a trained checkpoint of the base's model, to be grafted beside CONFIG"
    )
    parser.add_argument(
        '--init', default='base', metavar='WEIGHTS', help='what the backbone starts from: "base", what the '
        'replaced one starts from, grafted (default); "none", random weights; or a checkpoint of a plain '
        'network, such as torchvision://resnet50',
    )  # fmt: skip
    parser.add_argument(
        '--at', metavar='PLACE', help='which part, if several have a backbone, e.g. model.detector'
    )
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help='images of the trial step (default: 128 128)'
    )
    return parser.parse_args(argv)


def check_places(args: argparse.Namespace) -> Path:
    """The config to write, which must be no file that is read."""
    out = Path(args.out)
    if out.suffix != '.py':
        raise ToolError(f'--out {args.out!r}: a config ends in .py')
    read = {'BASE_CONFIG': Path(config_path(args.base)), '--checkpoint': Path(args.checkpoint or '')}
    for written in (out, out.with_suffix('.pth')):
        for name, path in read.items():
            if path.is_file() and written.exists() and written.samefile(path):
                raise ToolError(f'{written} would overwrite {name}; allowed: another --out')
    return out


def main(argv: list[str] | None = None) -> Trial:
    """Runs the tool."""
    args = parse_args(argv)
    out = check_places(args)
    if args.checkpoint and args.init != 'base':
        raise ToolError(f'--checkpoint has the weights of the backbone too; --init {args.init} goes without')
    if Config._is_lazy_import(config_path(args.base)):
        raise ToolError(
            f'{args.base!r} is a config of the new style (read_base), which no written one can inherit from; '
            'in Python, mmrecur.apis.swap_backbone works for it'
        )
    base = load_config(args.base)
    checkpoint = load_checkpoint(args.checkpoint) if args.checkpoint else None
    weights = out.resolve().with_suffix('.pth') if args.checkpoint else None
    swap = plan_swap(base, args.backbone, args.init, args.at, weights and weights.as_posix())
    trial = try_swap(swap, args.shape and tuple(args.shape), checkpoint)
    header = f'{Path(config_path(args.base)).stem} with {swap.new} instead of {swap.old}.'
    text = inheriting_text(args.base, swap.base, swap.config, out, header)
    if trial.report is not None:
        print(trial.report)
        dataset_meta = (checkpoint.get('meta') or {}).get('dataset_meta')
        write_checkpoint(trial.state, trial.report, args.checkpoint, weights, dataset_meta)
    write_checked(text, out, swap.config)
    print_swap(swap, trial)
    results = {'config': str(out)}
    if weights is not None:
        results['checkpoint'] = str(out.with_suffix('.pth'))
        results['report'] = str(out.with_suffix('.report.json'))
    print('Wrote:')
    print_results(results)
    print(f'Train it: python tools/train.py {out}')
    return trial


if __name__ == '__main__':
    with clean_errors():
        main()
