"""Make a plain network's checkpoint, or a whole detector's, one for a backbone of this package.

    python tools/model_converters/graft_checkpoint.py faster-rcnn_r50.pth faster-rcnn_rla-r50.pth \\
        --config configs/rla/faster-rcnn_rla-r50_fpn_1x_coco.py

The new model computes what the old one did, wherever mathematics allows. Files of MMEngine, timm,
torchvision, Lightning and plain torch will do, with or without a moving average. Nothing in the file is
executed. The result is tried on an image of noise and written beside a report.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
from typing import Any

from torch import Tensor, nn

from mmrecur.apis.checkpoints import add_file_arguments, transfer_file
from mmrecur.apis.runner import clean_errors
from mmrecur.checkpoint import Report, graft


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_file_arguments(parser)
    parser.add_argument(
        '--prefix', help='take only what starts with it, without it, such as "teacher." of a semi-supervised '
        'detector',
    )  # fmt: skip
    parser.add_argument(
        '--no-ema', action='store_true', help='of weights and their moving average take the weights'
    )
    args = parser.parse_args(argv)

    def function(checkpoint: dict[str, Any], model: nn.Module) -> tuple[dict[str, Tensor], Report]:
        return graft(checkpoint, model, not args.no_strict, args.prefix, not args.no_ema)

    report = transfer_file(args, function)
    print(report)
    print(f'Wrote {args.dst}')


if __name__ == '__main__':
    with clean_errors():
        main()
