"""Record how similar the layers of a network become during training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmrecur.checks import check_int
from mmrecur.engine.file_backend import AtomicLocalBackend
from mmrecur.models.layers.template_bank.similarity import mean_similarity, similarity_matrices
from mmrecur.registry import HOOKS


@HOOKS.register_module()
class LayerSimilarityHook(Hook):
    """Record the layer similarity matrices of the model's template banks.

    The hook writes the matrices to a file in the work directory before training and after every ``interval``
    epochs. Each line is a JSON object such as
    ``{"epoch": 5, "matrices": {"backbone.layer1.bank": [[1.0, ...], ...]}}``. The mean of each matrix without
    its diagonal goes to the log, as ``layer_similarity/backbone.layer1.bank``. A resumed run continues the
    file. After training, the hook draws the matrices of up to ``max_columns`` evenly spaced epochs side by
    side (Figure 8 of Savarese and Maire 2019).

    Args:
        interval (int): Number of epochs between records. Defaults to 1.
        file_name (str): Name of the file in the work directory. The figure has the same name with the suffix
            ``.png``. Defaults to 'layer_similarity.jsonl'.
        max_columns (int): Maximum number of epochs in the figure. Defaults to 8.

    Raises:
        ValueError: If ``interval`` or ``max_columns`` is less than 1.
    """

    # Runs before the logger, which reads the message hub.
    priority = 'NORMAL'

    def __init__(
        self, interval: int = 1, file_name: str = 'layer_similarity.jsonl', max_columns: int = 8
    ) -> None:
        check_int('interval', interval, 1)
        check_int('max_columns', max_columns, 1)
        self.interval = interval
        self.file_name = file_name
        self.max_columns = max_columns

    def before_train(self, runner: Runner) -> None:
        """Record the matrices before the first epoch.

        Args:
            runner (Runner): The runner of the training.
        """
        if runner.epoch == 0:
            self._record(runner, 0)

    def after_train_epoch(self, runner: Runner) -> None:
        """Record the matrices after every ``interval`` epochs and after the last one.

        Args:
            runner (Runner): The runner of the training.
        """
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self._record(runner, runner.epoch + 1)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Draw the recorded matrices.

        Args:
            runner (Runner): The runner of the training.
        """
        # Imported here because only this method needs matplotlib.
        from mmrecur.engine.figures import plot_layer_similarity, save_figure

        records = self._read(runner)
        step = max(-(-len(records) // self.max_columns), 1)
        chosen = records[-1::-step][::-1]
        columns = {
            f'epoch {record["epoch"]}': {k: torch.tensor(m) for k, m in record['matrices'].items()}
            for record in chosen
        }
        if columns:
            save_figure(plot_layer_similarity(columns), self._path(runner).with_suffix('.png'))

    def _path(self, runner: Runner) -> Path:
        return Path(runner.work_dir) / self.file_name

    def _read(self, runner: Runner) -> list[dict]:
        path = self._path(runner)
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]

    @master_only
    def _record(self, runner: Runner, epoch: int) -> None:
        # An interrupted run may have recorded epochs after the checkpoint from which it resumes.
        before = [record for record in self._read(runner) if record['epoch'] < epoch]
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        matrices = similarity_matrices(model)
        for name, matrix in matrices.items():
            runner.message_hub.update_scalar(f'train/layer_similarity/{name}', mean_similarity(matrix))
        rounded = {k: [[round(v, 5) for v in row] for row in m.tolist()] for k, m in matrices.items()}
        records = [*before, dict(epoch=epoch, matrices=rounded)]
        text = '\n'.join(map(json.dumps, records)) + '\n'
        # Replaces the file atomically, even if the training was not started by this package's tools.
        AtomicLocalBackend().put_text(text, self._path(runner))
