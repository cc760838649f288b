"""Search for the newest intact checkpoint of a training run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrecur.checkpoint.checksums import find_damage, is_zip
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.errors import CheckpointError, DamagedCheckpointError


def find_checkpoint_to_resume(
    work_dir: str | os.PathLike, report: Callable[[str], Any] | None = None
) -> Path | None:
    """Find the newest intact checkpoint of a run.

    Args:
        work_dir (str or PathLike): Directory of the run, which may have been moved.
        report (Callable, optional): Function that is called with a message if newer checkpoints are
            damaged. Defaults to None.

    Returns:
        Path, optional: The file named in ``last_checkpoint``. If that file is damaged or missing, which a
            kill at the wrong moment can cause, the newest intact ``epoch_*.pth`` or ``iter_*.pth``. None if
            there are no checkpoints.

    Raises:
        DamagedCheckpointError: If there are checkpoints but none is intact.
    """
    damaged = []
    for path in _checkpoints(Path(work_dir)):
        damage = _damage_of(path)
        if damage is None:
            if damaged and report is not None:
                report(f'{"; ".join(damaged)}. {str(path)!r} is the newest that is intact.')
            return path
        damaged.append(f'checkpoint {str(path)!r} refused: {damage}')
    if damaged:
        raise DamagedCheckpointError('; '.join(damaged) + f'. {str(work_dir)!r} has no intact one.')
    return None


def load_run_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint of a run.

    Args:
        path (str or PathLike): A local file.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError, CheckpointError: See :func:`load_checkpoint_file`. If the file is damaged, the
            message names an intact checkpoint of the same run, if there is one.
    """
    try:
        return load_checkpoint_file(path)
    except DamagedCheckpointError as error:
        path = Path(path).expanduser()
        others = _saved_like(path, path.parent)
        # prefer checkpoints saved before it, because later ones may belong to another run
        others.sort(key=lambda other: _age(other) > _age(path))
        intact = next((other for other in others if other != path and _damage_of(other) is None), None)
        if intact is None:
            raise
        raise DamagedCheckpointError(f'{error}. {str(intact)!r} is intact: resume from that') from error


def _checkpoints(work_dir: Path) -> list[Path]:
    """List the checkpoints that a run can resume from, the best choice first."""
    pointer = work_dir / 'last_checkpoint'
    named = None
    if pointer.is_file():
        text = pointer.read_text(errors='replace').strip()
        # look in the directory first: it may have been moved or copied
        places = (work_dir / Path(text).name, Path(text)) if text else ()
        named = next((place for place in places if place.is_file()), None)
    if named is None:
        return _saved_like(None, work_dir)
    others = [path for path in _saved_like(named, named.parent) if path != named]
    return [named, *others]


def _saved_like(example: Path | None, directory: Path) -> list[Path]:
    """List the training checkpoints in a directory, the newest first.

    Their names are epoch_N.pth, iter_N.pth, or that of the example with another number.
    """
    pattern = r'(epoch|iter)_\d+\.pth'
    if example is not None and (number := re.fullmatch(r'(.*?)\d+(\D*)', example.name)):
        before, after = map(re.escape, number.groups())
        # best_* lacks the optimizer's state
        pattern += rf'|(?!best_){before}\d+{after}'
    saved = [path for path in directory.glob('*.pth') if re.fullmatch(pattern, path.name)]
    return sorted(saved, key=_age, reverse=True)


def _age(path: Path) -> tuple[int, int]:
    """Return a sort key: the time of modification, then the number in the name."""
    numbers = re.findall(r'\d+', path.name)
    return path.stat().st_mtime_ns, int(numbers[-1]) if numbers else 0


def _damage_of(path: Path) -> str | None:
    """Describe the damage of a file; None if it is intact."""
    try:
        with open(path, 'rb') as file:
            if is_zip(file):
                damage = find_damage(file)
                return damage and f'it is damaged ({damage})'
        load_checkpoint_file(path)  # a file without checksums has to be read
    except DamagedCheckpointError as error:
        return str(error).partition('refused: ')[2]
    except CheckpointError:
        return None  # intact, but refused for another reason when it is loaded
    except OSError as error:
        return f'it cannot be read ({error.strerror})'
    return None
