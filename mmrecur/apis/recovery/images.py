"""Read unlabelled images for a recovery."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmrecur.apis.recovery.sources import Entry, dataset_configs, find_images
from mmrecur.apis.specs import registry_scope
from mmrecur.checks import check_int
from mmrecur.engine.randomness import own_randomness
from mmrecur.errors import ToolError

#: Steps of a pipeline that read labels or proposals, such as LoadAnnotations and FilterAnnotations.
_NEEDS_LABELS = re.compile('Annotation|Proposals')


class RecoveryImages:
    """Re-iterable batches of unlabelled images, preprocessed as for a test.

    Each image passes through the test pipeline of a config, without the steps that load labels, and then
    alone through the data preprocessor of a model. It is therefore padded as in a test of single images. A
    batch is a list of tensors of shape (N, C, H, W): images of equal padded size share a tensor, and all N
    together are at most ``batch_size``. The batches of one pass differ in size by at most one image.

    Each pass has its own order, which depends on the seed and the number of the pass only. Files are read
    when their batch is due. An unreadable image is replaced by the next readable one, with one warning.

    Args:
        cfg (Config): Config with a ``test_dataloader`` and, for ``source='train'``, a ``train_dataloader``.
        source (str or Path): A folder, which is searched recursively; a glob; a COCO annotation file, from
            which only the names of the images are used; or ``'train'``, the config's training images (give
            a folder of this name as ``'./train'``).
        model (nn.Module): Model with the ``data_preprocessor``, whose device the batches are on.
        batch_size (int): Maximum number of images in a batch. Defaults to 8.
        num_images (int, optional): Use a random choice of this many images. Defaults to None, all images.
        seed (int): Seed of the choice and of the order. Defaults to 0.
        min_images (int, optional): Minimum number of readable images. Defaults to None, ``batch_size``: with
            fewer images, no batch would be full, and the statistics of norms would depend on the repetition
            of a few images.
        num_workers (int): Number of processes that read images. Defaults to 0, the current process.

    Attributes:
        skipped (dict[str, str]): Reason by name for each unreadable image found so far.

    Raises:
        ToolError: If the source does not exist, has too few images or does not fit the config. The message
            calls the source ``--recover``.
        ValueError: If a number is not allowed, or if the model has no data preprocessor.

    Example:
        >>> images = RecoveryImages(cfg, 'photos', model)  # doctest: +SKIP
        >>> images, held_out = images.split(16)  # doctest: +SKIP
        >>> for batch in images:  # doctest: +SKIP
        ...     features = [model.backbone(x) for x in batch]
    """

    def __init__(
        self,
        cfg: Config,
        source: str | Path,
        model: nn.Module,
        batch_size: int = 8,
        num_images: int | None = None,
        seed: int = 0,
        min_images: int | None = None,
        num_workers: int = 0,
    ) -> None:
        check_int('batch_size', batch_size, 1)
        check_int('seed', seed, 0, 2**32 - 1)
        check_int('num_workers', num_workers, 0)
        self.min_images = batch_size if min_images is None else min_images
        check_int('min_images', self.min_images, 1)
        if num_images is not None:
            check_int('num_images', num_images, self.min_images)
        if not hasattr(model, 'data_preprocessor'):
            raise ValueError(f'model is a {type(model).__name__}, allowed: one with a data_preprocessor')
        self.source, self.batch_size, self.seed, self.num_workers = source, batch_size, seed, num_workers
        self.skipped: dict[str, str] = {}
        self._preprocess = model.data_preprocessor
        self._shuffle, self._next = True, 0
        self._load, self._transform = _build_pipeline(cfg)
        self._entries = find_images(cfg, source)
        self._check_number('found')
        if num_images is not None and num_images < len(self._entries):
            self._entries = self._choose(self._permutation()[:num_images])

    @property
    def names(self) -> list[str]:
        """Return the paths of the images, or their places in a data set that holds arrays."""
        return [_name(entry) for entry in self._entries]

    def __len__(self) -> int:
        """Return the number of batches in one pass."""
        return -(-len(self._entries) // self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Iterate over the batches of the next pass."""
        start = self._next
        self._next = (start // len(self) + 1) * len(self)
        return self._read(islice(self._order(start), self._next - start))

    def start_at(self, step: int) -> None:
        """Let the next pass begin in the middle, to resume.

        Args:
            step (int): Number of batches that were used, over all passes.
        """
        check_int('step', step, 0)
        self._next = step

    def batches(self, start: int = 0) -> Iterator[list[Tensor]]:
        """Iterate endlessly over passes.

        The result is independent of other iterations over the same images, so that a recovery which has used
        ``start`` batches resumes with the batches that it would have seen.

        Args:
            start (int): Number of batches to leave out. Defaults to 0.
        """
        check_int('start', start, 0)
        return self._read(self._order(start))

    def split(self, number: int) -> tuple[RecoveryImages, RecoveryImages]:
        """Hold images out, for example to measure the error on images that were not used.

        Args:
            number (int): Number of images to hold out; ``seed`` selects them.

        Returns:
            tuple[RecoveryImages, RecoveryImages]: The remaining images, and those held out, which come in
            the same order in each pass. Both share ``skipped``.

        Raises:
            ToolError: If fewer than ``min_images`` remain.
        """
        check_int('number', number, 1)
        chosen = self._permutation()
        rest, held_out = copy.copy(self), copy.copy(self)
        rest._entries, rest._next = self._choose(chosen[number:]), 0
        held_out._entries, held_out._next = self._choose(chosen[:number]), 0
        held_out._shuffle, held_out.min_images = False, 1
        rest._check_number(f'left after {number} are held out')
        return rest, held_out

    def _permutation(self, *number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, *number]).permutation(len(self._entries))

    def _choose(self, indices: np.ndarray) -> list[Entry]:
        return [self._entries[i] for i in sorted(indices)]

    def _check_number(self, which: str) -> None:
        unread = [name for name in self.names if name in self.skipped] if self.skipped else []
        number = len(self._entries) - len(unread)
        if number < self.min_images:
            listed = ''.join(f'\n  {name}: {self.skipped[name]}' for name in unread[:5])
            raise ToolError(
                f'--recover {str(self.source)!r}: {number} images {which}, needed: at least '
                f'{self.min_images}{listed and f"; {len(unread)} cannot be read:{listed}"}'
            )

    def _order(self, start: int) -> Iterator[list[int]]:
        """Yield the indices of each batch, over all passes, from batch ``start`` on."""
        first, inside = divmod(start, len(self))
        for number in count(first):
            order = self._permutation(number) if self._shuffle else np.arange(len(self._entries))
            yield from (part.tolist() for part in np.array_split(order, len(self))[inside:])
            inside = 0

    def _read(self, order: Iterable[list[int]]) -> Iterator[list[Tensor]]:
        loader = DataLoader(
            _Files(self),
            batch_sampler=order,
            num_workers=self.num_workers,
            collate_fn=list,
            generator=torch.Generator().manual_seed(self.seed),  # a loader would draw from the global one
        )
        for items in loader:
            by_size: dict[tuple[int, ...], list[Tensor]] = {}
            for packed, failures in items:
                self._note(failures)
                if not packed:
                    self._check_number('can be read')
                x = self._prepare(packed)
                by_size.setdefault(tuple(x.shape), []).append(x)
            yield [torch.cat(images) for images in by_size.values()]

    def _note(self, failures: dict[str, str]) -> None:
        new = {name: reason for name, reason in failures.items() if name not in self.skipped}
        self.skipped.update(new)
        for name, reason in new.items():
            print_log(f'--recover: skipped {name!r}: {reason}', logger='current', level=logging.WARNING)
        if new:
            self._check_number('can be read')

    def _prepare(self, packed: dict[str, Any]) -> Tensor:
        batch = {key: [value] for key, value in packed.items()}
        with torch.no_grad():
            inputs = self._preprocess(batch, False)['inputs']
        # MMEngine's BaseDataPreprocessor does not stack images
        return inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))


class _Files(Dataset):
    """Packed images by index, each with the failures to read one in its place."""

    def __init__(self, images: RecoveryImages) -> None:
        self.entries, self.seed, self.min_images = images._entries, images.seed, images.min_images
        self.load, self.transform = images._load, images._transform

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], dict[str, str]]:
        failures: dict[str, str] = {}
        # the reader of the batches ends with an error if more images fail
        for i in range(len(self) - self.min_images + 1):
            entry = self.entries[(index + i) % len(self)]
            with own_randomness(self.seed):
                try:
                    results = self._results(entry)
                except Exception as error:  # each decoder raises its own kinds
                    failures[_name(entry)] = f'{type(error).__name__}: {error}'
                    continue
                return self._pack(entry, results), failures
        return {}, failures

    def _results(self, entry: Entry) -> dict[str, Any]:
        if isinstance(entry, str):
            results = self.load(dict(img_path=entry, img_id=0))
            if results is None:
                raise ValueError('the pipeline drops it')
            return results
        dataset, index = entry
        image = dataset.get_data_info(index)['img']
        return dict(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2], img_id=0)

    def _pack(self, entry: Entry, results: dict[str, Any]) -> dict[str, Any]:
        try:
            packed = self.transform(results)
            packed['inputs']
        except Exception as error:
            reason = f'{type(error).__name__}: {error}'
            raise ToolError(
                f"the config's test pipeline fails on {_name(entry)!r} without annotations: {reason}"
            ) from error
        return packed


def _name(entry: Entry) -> str:
    return entry if isinstance(entry, str) else f'image {entry[1]} of {type(entry[0]).__name__}'


def _build_pipeline(cfg: Config) -> tuple[Compose, Compose]:
    """Return the step that loads an image, and the later steps of the test pipeline."""
    pipelines = [part['pipeline'] for part in dataset_configs(cfg, 'test') if part.get('pipeline')]
    if not pipelines:
        raise ToolError(f'config {cfg.filename!r} has no test_dataloader with a pipeline')
    steps = [step for step in _plain_steps(pipelines[0]) if not _NEEDS_LABELS.search(_type(step))]
    loads = [i for i, step in enumerate(steps) if 'LoadImage' in _type(step)]
    after = loads[0] + 1 if loads else 0
    with registry_scope(cfg.get('default_scope')):
        # without such a step, the data set holds RGB arrays, such as CIFAR's
        load = steps[:after] or [dict(type='LoadImageFromFile'), _bgr_to_rgb]
        return Compose(load), Compose(steps[after:])


def _plain_steps(pipeline: Iterable[Any]) -> Iterator[Any]:
    """Yield steps without wrappers: the first choice of TestTimeAug, and the steps of broadcasters.

    The step that packs the frames of a video is replaced by the one that packs an image.
    """
    for step in pipeline:
        kind = _type(step)
        if kind.endswith('TestTimeAug'):
            yield from _plain_steps(choices[0] for choices in step['transforms'])
        elif kind.endswith(('ProposalBroadcaster', 'TransformBroadcaster')):
            yield from _plain_steps(step['transforms'])
        elif kind.endswith('PackTrackInputs'):
            yield dict(type='mmdet.PackDetInputs')
        else:
            yield step


def _type(step: Any) -> str:
    kind = step.get('type') if isinstance(step, dict) else type(step)
    return kind if isinstance(kind, str) else kind.__name__


def _bgr_to_rgb(results: dict[str, Any]) -> dict[str, Any]:
    return dict(results, img=results['img'][..., ::-1])
