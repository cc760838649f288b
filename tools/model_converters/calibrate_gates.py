"""Shift the gates of a trained DR-ResNet or DR-MobileNetV2 so that its loops keep their rate in evaluation.

CONFIG is a config of a classifier or a detector with such a backbone, CHECKPOINT its weights. In training
gates decide with noise, in evaluation without, where they may let nearly all images pass. This writes the
checkpoint with other biases of the gates, for evaluation. They are found on training images, processed as for
a test, whose labels are not used; all of them are in memory at once.

    python tools/model_converters/calibrate_gates.py configs/dr_resnet/dr-resnet32_1xb256_cifar10.py \\
        epoch_350.pth calibrated.pth --test
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from mmengine.config import DictAction
from mmengine.device import get_device
from torch import Tensor, nn

from mmrecur.analysis.loop_times import find_backbone
from mmrecur.apis.checkpoints import check_out, put_checkpoint
from mmrecur.apis.dataset_images import build_test_loader
from mmrecur.apis.runner import clean_errors, load_config
from mmrecur.apis.specs import registry_scope
from mmrecur.apis.summary import print_results
from mmrecur.apis.tying import load_model, metrics_before_and_after
from mmrecur.checkpoint.calibrate_gates import calibrate_gates
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.errors import ToolError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of a config, or mmrecur::PATH')
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument('--rate', type=float, help='rate of the gates (default: what they were trained for)')
    parser.add_argument('--num-images', type=int, default=512, help='images used (default: 512)')
    parser.add_argument('--test', action='store_true', help="run the config's test before and after")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
    )
    args = parser.parse_args(argv)
    if args.num_images < 2:
        parser.error(f'argument --num-images: {args.num_images} given; allowed: at least 2')
    return args


def read_images(cfg: dict, model: nn.Module, number: int) -> Tensor:
    """Training images as the model's backbone gets them."""
    loader, _ = build_test_loader(cfg, number, number, training=True, spread=True)
    with registry_scope(cfg.get('default_scope')):
        (batch,) = loader
        return model.data_preprocessor(batch, False)['inputs']


def write(source: str, destination: str, model: nn.Module) -> None:
    """Writes the source with the model's weights."""
    meta = load_checkpoint_file(source).get('meta') or {}
    state = {key: value.cpu() for key, value in model.state_dict().items()}
    put_checkpoint(state, dict(meta, calibrated=Path(source).name), destination)


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    check_out(args.out, args.checkpoint)
    # The libraries log to stdout, which is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        cfg = load_config(args.config, args.cfg_options)
        model = load_model(cfg, args.checkpoint).to(get_device())
        try:
            _, backbone = find_backbone(model)
            shifts = calibrate_gates(backbone, read_images(cfg, model, args.num_images), args.rate)
        except ValueError as error:
            raise ToolError(f'{args.config}: {error}') from error
        write(args.checkpoint, args.out, model)
        metrics = ''
        if args.test:
            metrics = metrics_before_and_after((cfg, args.checkpoint), (cfg, args.out))
    for name, shift in shifts.items():
        print(f'{name}: score of passing {shift:+.4f}')
    if metrics:
        print(metrics)
    print_results({'checkpoint': args.out})


if __name__ == '__main__':
    with clean_errors():
        main()
