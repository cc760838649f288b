"""Update the parameters and multiply-adds that the READMEs and metafiles of the model zoo state.

The numbers are counted with the configs. --check writes nothing; it prints each number that differs and
exits with status 1 if there is one.

    python tools/update_model_zoo.py --check --parameters-only

Parameters take seconds to minutes, multiply-adds of the detectors much longer.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import sys
from pathlib import Path

from mmrecur.apis.model_zoo import COLUMNS, Counter, update, zoo_files
from mmrecur.apis.runner import clean_errors

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('files', nargs='*', type=Path, help='READMEs and metafiles; default: all of the zoo')
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 if a number differs')
    parser.add_argument('--parameters-only', action='store_true', help='leave multiply-adds alone')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    args = parse_args(argv)
    kinds = {'parameters'} if args.parameters_only else set(COLUMNS.values())
    count, differ = Counter(), False
    for path in args.files or zoo_files(ROOT):
        with contextlib.redirect_stdout(sys.stderr):  # the libraries log to stdout
            changes = update(path.resolve(), ROOT, count, kinds, write=not args.check)
        differ |= bool(changes)
        for change in changes:
            print(change)
    return int(args.check and differ)


if __name__ == '__main__':
    with clean_errors():
        sys.exit(main())
