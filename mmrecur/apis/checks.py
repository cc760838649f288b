"""Check the loops, work directory, data sets and classes of a run before it starts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import load
from mmengine.registry import OPTIMIZERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from torch import nn

from mmrecur.apis.mistakes import (
    DATA_HINT,
    argument_mistake,
    traceback_entries,
    unknown_type,
)
from mmrecur.apis.start import prints_into_log
from mmrecur.errors import ToolError

#: Annotation files above this size in bytes are not read again to compare the order of the classes.
_LARGE_FILE = 100 * 2**20


def check_loops(cfg: Config) -> None:
    """Check the arguments of loops whose configs have no type.

    Args:
        cfg (Config): A config.

    Raises:
        ToolError: If a loop does not accept an argument, or lacks a required one.
    """
    by_epoch = (cfg.get('train_cfg') or {}).get('by_epoch', True)
    training = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    kinds = {'train': training, 'val': ValLoop, 'test': TestLoop}
    for name, kind in kinds.items():
        loop = cfg.get(f'{name}_cfg')
        if loop is None or 'type' in loop:
            continue
        given = {key: value for key, value in loop.items() if not (name == 'train' and key == 'by_epoch')}
        problem = argument_mistake(kind, given, ('runner', 'dataloader', 'evaluator'))
        if problem is not None:
            raise ToolError(f'{name}_cfg: {kind.__name__} {problem}')


def check_optimizer(cfg: Config) -> None:
    """Check that the type of the optimizer is registered; MMEngine does not check it.

    Args:
        cfg (Config): A config whose ``default_scope`` is the current scope.

    Raises:
        ToolError: If the type is unknown.
    """
    kind = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise ToolError(f'optim_wrapper.optimizer: {unknown_type(OPTIMIZERS, kind)}')


def check_work_dir(path: str) -> None:
    """Create a work directory and check that it is writable.

    Args:
        path (str): The directory.

    Raises:
        ToolError: If it cannot be created or written.
    """
    check_writable_folder(path, 'work directory', 'choose another one with --work-dir')


def check_writable_folder(path: str | Path, what: str, remedy: str) -> None:
    """Create a folder for results and check that it is writable.

    Args:
        path (str or Path): The folder.
        what (str): Name of the folder in the message.
        remedy (str): Advice in the message.

    Raises:
        ToolError: If it cannot be created or written.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ToolError(f'{what} {str(path)!r} cannot be written: {error.strerror}; {remedy}') from error


def check_data(runner: Runner, *names: str) -> None:
    """Build the data sets of a runner and check them.

    Args:
        runner (Runner): The runner.
        *names (str): Loops whose data are checked: 'train', 'val', 'test'.

    Raises:
        ToolError: If a data set has no images or annotations, if some of its images do not exist, or if its
            classes do not match its annotations or the model.
    """
    for name in names:
        loop = _build_loop(runner, name)
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        if not hasattr(dataset, '__len__'):
            continue
        where = f'{name}_dataloader'
        for part in _parts(dataset):
            _check_names(part, where)
        if len(dataset) == 0:
            raise ToolError(_no_images(dataset, where))
        for part in _parts(dataset):
            _check_images(part, where)
        if name == 'train' or not _only_formats(loop):
            _check_annotations(dataset, where)
        _check_class_counts(runner, dataset, where)


def _build_loop(runner: Runner, name: str) -> Any:
    try:
        with prints_into_log():
            return getattr(runner, f'{name}_loop')
    except Exception as error:
        # MMEngine's data sets raise an obscure error if they have no images.
        for entry in traceback_entries(error.__traceback__):
            dataset = entry.tb_frame.f_locals.get('self')
            if isinstance(dataset, BaseDataset) and getattr(dataset, 'data_list', None) == []:
                if entry.tb_frame.f_code.co_name == '_serialize_data':
                    _check_names(dataset, f'{name}_dataloader')
                    raise ToolError(_no_images(dataset, f'{name}_dataloader')) from error
        raise


def _no_images(dataset: Any, where: str) -> str:
    return f'{where}: {_describe(dataset)} has no images, or none with objects of its classes'


def _parts(dataset: Any) -> Iterator[BaseDataset]:
    """Yield the MMEngine data sets inside wrappers."""
    if isinstance(dataset, BaseDataset):
        yield dataset
    elif hasattr(dataset, 'datasets'):
        for item in dataset.datasets:
            yield from _parts(item)
    elif hasattr(dataset, 'dataset'):
        yield from _parts(dataset.dataset)


def _describe(dataset: Any) -> str:
    part = next(_parts(dataset), dataset)
    values = {name: getattr(part, name, None) for name in ('ann_file', 'data_prefix')}
    given = ', '.join(f'{name}={value!r}' for name, value in values.items() if value)
    return f'{type(part).__name__}({given})'


def _only_formats(loop: Any) -> bool:
    """Return whether a loop only writes predictions, because the annotations are not public."""
    metrics = getattr(getattr(loop, 'evaluator', None), 'metrics', [])
    return bool(metrics) and all(getattr(metric, 'format_only', False) for metric in metrics)


def _check_images(dataset: BaseDataset, where: str) -> None:
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    first = transforms[0] if transforms else None
    if not isinstance(first, LoadImageFromFile) or first.backend_args is not None or not len(dataset):
        return
    for index in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        path = dataset.get_data_info(index).get('img_path')
        if path is not None and '://' not in path and not Path(path).is_file():
            raise ToolError(f'{where}: there is no image {path!r}\n{DATA_HINT}')


def _check_annotations(dataset: Any, where: str) -> None:
    """Raise ToolError if no image of a detection data set has an object."""
    parts = list(_parts(dataset))
    for part in parts:
        for index in range(len(part)):
            # Data sets of other tasks have no "instances".
            if part.get_data_info(index).get('instances') != []:
                return
    if not parts:
        return
    raise ToolError(
        f'{where}: none of the {len(dataset)} images of {_describe(dataset)} has an annotation of '
        f'its classes {_listed(_classes(dataset, where) or ())}'
    )


# ---------------------------------------------------------------- classes


def _classes(dataset: Any, where: str) -> tuple[str, ...] | None:
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if isinstance(classes, str):
        raise ToolError(
            f'{where}: classes={classes!r} is a string; allowed: a tuple of names, such as ({classes!r},)'
        )
    return None if classes is None else tuple(classes)


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(repr, names[:most])) + more


def _check_names(dataset: Any, where: str) -> None:
    """Compare the class names with those in a COCO file, whose order defines mmdet's labels."""
    found, names = getattr(dataset, 'cat_ids', None), _classes(dataset, where)
    path = Path(str(getattr(dataset, 'ann_file', '')))
    if found is None or names is None or not path.is_file():
        return
    if len(found) == len(names) and path.stat().st_size > _LARGE_FILE:
        return
    content = load(str(path)) if path.suffix == '.json' else None
    if not isinstance(content, dict) or not isinstance(content.get('categories'), list):
        return
    categories = {item['id']: item['name'] for item in content['categories']}
    missing = [name for name in names if name not in categories.values()]
    if missing:
        raise ToolError(
            f'{where}: the classes {_listed(missing)} are not in {str(path)!r}, which has '
            f'{_listed(list(categories.values()))}; change metainfo.classes of the data set'
        )
    labelled = tuple(categories[number] for number in found)
    if set(labelled) == set(names) and labelled != names:
        raise ToolError(
            f'{where}: labels follow the order of {str(path)!r}, so the names in metainfo.classes '
            f'would name the wrong objects; allowed: classes={labelled!r}'
        )


def _check_class_counts(runner: Runner, dataset: Any, where: str) -> None:
    model = runner.model
    while hasattr(model, 'module'):  # distributed training, averaging, test-time augmentation
        model = model.module
    names = _classes(dataset, where)
    head = getattr(model, 'head', None)
    if isinstance(getattr(head, 'num_classes', None), int):
        _check_classifier(runner, head.num_classes, names, dataset, where)
    if names is None or any(getattr(part, 'return_classes', False) for part in _parts(dataset)):
        return  # These detectors receive the names as input, in any number.
    things = (getattr(dataset, 'metainfo', None) or {}).get('thing_classes')
    count = len(names if things is None else things)
    for name, module in _detector_heads(model):
        if module.num_classes != count:
            raise ToolError(
                f'{where}: the data set has {count} classes ({_listed(names)}) and model.{name} is for '
                f'{module.num_classes}; set num_classes={count} there'
            )


def _detector_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if any(kind.__name__.endswith('RPNHead') for kind in type(module).__mro__):
            continue  # The bbox_head of a proposal detector only separates objects from the background.
        is_head = any(part in ('bbox_head', 'mask_head') for part in name.split('.')[-2:])
        counted = isinstance(getattr(module, 'num_classes', None), int)
        if is_head and counted and hasattr(module, 'loss') and not getattr(module, 'class_agnostic', False):
            yield name, module


def _check_classifier(
    runner: Runner, outputs: int, names: Sequence[str] | None, dataset: Any, where: str
) -> None:
    if names is None and hasattr(dataset, 'get_gt_labels') and len(dataset):
        labels = dataset.get_gt_labels()
        count = int(max(labels)) + 1 if len(labels) else 0
        listed = f'labels up to {count - 1}'
    else:
        count, listed = len(names or ()), _listed(names or ())
    if count > outputs:
        raise ToolError(
            f'{where}: the data set has {count} classes ({listed}) and model.head is for {outputs}; '
            f'set model.head.num_classes={count}'
        )
    if 0 < count < outputs:
        runner.logger.warning(f'{where}: {count} classes for the {outputs} outputs of model.head')
