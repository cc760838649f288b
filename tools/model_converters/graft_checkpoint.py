"""Make a plain network's checkpoint, or a whole detector's, one for a backbone of this package.

    python tools/model_converters/graft_checkpoint.py faster-rcnn_r50.pth faster-rcnn_rla-r50.pth \\
        --config configs/rla/faster-rcnn_rla-r50_fpn_1x_coco.py

The new model computes what the old one did, wherever mathematics allows. Nothing in the file is
executed. The result is tried on an image of noise and written beside a report.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse

from mmrecur.apis.checkpoints import add_file_arguments, transfer_file
from mmrecur.apis.runner import clean_errors
from mmrecur.checkpoint import graft


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_file_arguments(parser)
    args = parser.parse_args(argv)
    report = transfer_file(args, lambda state, model: graft(state, model, strict=not args.no_strict))
    print(report)
    print(f'Wrote {args.dst}')


if __name__ == '__main__':
    with clean_errors():
        main()
