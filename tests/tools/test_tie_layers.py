"""The tools that analyse shared weights and tie layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmrecur.apis import deploy
from mmrecur.errors import ToolError
from mmrecur.models.backbones import SWRN
from mmrecur.models.shortest_path import ShortestPathNet
from tests.tool_module import load_tool

ROOT = Path(__file__).resolve().parents[2]
MODULE = 'mmrecur.SWRN(depth=22, width=1, num_templates=2, base_channels=8)'


def save(model: torch.nn.Module, path: Path) -> str:
    torch.save(dict(meta={}, state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Make layers 1 and 3, and 2 and 4, of the second stage's bank equal up to the sign."""
    torch.manual_seed(0)
    model = SWRN(depth=22, width=1, num_templates=2, base_channels=8)
    for stage in (model.layer1, model.layer3):
        stage.bank.coefficients.data = torch.tensor([[1.0, 0], [1, 1], [0, 1], [1, -1]])
    model.layer2.bank.coefficients.data = torch.tensor([[1.0, 0], [0.1, 1], [-2, 0], [0.1, 1]])
    return save(model, tmp_path / 'trained.pth')


def test_tying_writes_a_checkpoint_a_config_and_a_diagram(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / 'tied.pth'
    load_tool('model_converters/tie_layers.py').main([MODULE, checkpoint, str(out), '--threshold', '0.95'])
    text = capsys.readouterr().out
    assert 'layer1: 1 2 3 4 5 6   [6 layers in 6 steps]' in text
    assert 'layer2: 1 2 (3 4) x 2   [4 layers in 6 steps]' in text
    assert (tmp_path / 'tied.png').read_bytes().startswith(b'\x89PNG')
    cfg = Config.fromfile(tmp_path / 'tied.py')
    assert cfg.model.tied_layers == dict(layer2=dict(bank=[0, 1, 0, 1]))
    assert Path(cfg.load_from) == out
    tied = MODELS.build(cfg.model).eval()
    tied.load_state_dict(torch.load(out)['state_dict'])
    model = SWRN(depth=22, width=1, num_templates=2, base_channels=8).eval()
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        for output, expected in zip(tied(x), model(x)):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        for output, expected in zip(deploy(tied)(x), model(x)):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_wrong_uses_are_named(checkpoint: str, tmp_path: Path) -> None:
    main = load_tool('model_converters/tie_layers.py').main
    out = str(tmp_path / 'out.pth')
    with pytest.raises(ToolError, match='no two layers are that similar, the highest is 0.7'):
        model = SWRN(depth=22, width=1, num_templates=2, base_channels=8)
        for stage in (model.layer1, model.layer2, model.layer3):
            stage.bank.coefficients.data = torch.tensor([[1.0, 0], [1, 1], [0, 1], [1, -1]])
        main([MODULE, save(model, tmp_path / 'other.pth'), out, '--threshold', '0.999999'])
    with pytest.raises(ToolError, match='is the checkpoint itself'):
        main([MODULE, checkpoint, checkpoint])
    with pytest.raises(ToolError, match='ends in .pth'):
        main([MODULE, checkpoint, str(tmp_path / 'tied')])
    with pytest.raises(ToolError, match='no template bank'):
        plain = SWRN(depth=10, width=1, num_templates=None, base_channels=8)
        module = 'mmrecur.SWRN(depth=10, width=1, num_templates=None, base_channels=8)'
        main([module, save(plain, tmp_path / 'plain.pth'), out])
    with pytest.raises(ToolError, match='does not fit the model'):
        main(['mmrecur.SWRN(depth=16, width=1, base_channels=8)', checkpoint, out])
    assert not (tmp_path / 'out.pth').exists() and not (tmp_path / 'out.py').exists()


def test_metrics_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')  # restored for later tests
    torch.manual_seed(0)
    model = ShortestPathNet(num_templates=1)
    options = ['model.num_templates=1', 'test_dataloader.dataset.num_examples=4']
    out = tmp_path / 'tied.pth'
    config = str(ROOT / 'configs/swrn/shortest-path_scnn.py')
    load_tool('model_converters/tie_layers.py').main(
        [config, save(model, tmp_path / 'a.pth'), str(out), '--test', '--cfg-options', *options]
    )
    text = capsys.readouterr().out
    assert 'bank: (1) x 20   [1 layers in 20 steps]' in text
    (line,) = (line for line in text.splitlines() if line.startswith('f1: '))
    before, after = (part.split()[0] for part in line.removeprefix('f1: ').split(', '))
    assert before == after
    cfg = Config.fromfile(tmp_path / 'tied.py')
    assert cfg.model.tied_layers == dict(bank=[0] * 20)
    assert cfg.test_dataloader.dataset.num_examples == 4


def test_similarity_is_printed_and_drawn(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main = load_tool('analysis_tools/layer_similarity.py').main
    out = tmp_path / 'similarity.png'
    main([MODULE, checkpoint, '--out', str(out)])
    text = capsys.readouterr().out
    assert 'layer2.bank: 4 layers' in text
    assert '    1  1.00  0.10  1.00  0.10' in text and '    1  1.00  0.71  0.00  0.71' in text
    assert out.read_bytes().startswith(b'\x89PNG')
    later = tmp_path / 'later_10.pth'
    later.write_bytes(Path(checkpoint).read_bytes())
    main([MODULE, str(later), checkpoint, '--out', str(out)])
    assert capsys.readouterr().out.startswith('later_10: layer1.bank 0.')


def test_hook_records_epochs_once(tmp_path: Path) -> None:
    """Train two phases of a tiny curriculum, and repeat the second epoch after resuming."""
    from mmengine.runner import Runner

    from mmrecur.engine import LayerSimilarityHook

    def run(epochs: int, **kwargs) -> Runner:
        cfg = Config.fromfile(ROOT / 'configs/swrn/shortest-path_scnn.py')
        cfg.model.update(num_layers=4, num_templates=3, channels=4)
        cfg.train_dataloader.dataset.update(num_examples=8)
        cfg.val_dataloader.dataset.update(num_examples=4)
        cfg.train_cfg.max_epochs = epochs
        cfg.custom_hooks[0].epochs_per_phase = 1
        cfg.custom_hooks[1].interval = 1
        cfg.default_hooks.checkpoint.interval = 1
        cfg.default_hooks.checkpoint.max_keep_ckpts = -1
        cfg.update(work_dir=str(tmp_path), experiment_name=f'to{epochs}{len(kwargs)}', **kwargs)
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner

    runner = run(2)
    assert runner.train_dataloader.dataset.phase == runner.val_dataloader.dataset.phase == 1
    path = tmp_path / LayerSimilarityHook().file_name
    first = path.read_text().splitlines()
    assert [json.loads(line)['epoch'] for line in first] == [0, 1, 2]
    last = json.loads(first[-1])['matrices']['bank']
    expected = runner.model.bank.similarity()
    torch.testing.assert_close(torch.tensor(last), expected, rtol=0, atol=1e-4)
    logged = runner.message_hub.get_scalar('train/layer_similarity/bank').current()
    assert logged == pytest.approx((expected.sum().item() - 4) / 12, abs=1e-4)
    assert path.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
    runner = run(3, resume=True, load_from=str(tmp_path / 'epoch_1.pth'))
    lines = path.read_text().splitlines()
    assert [json.loads(line)['epoch'] for line in lines] == [0, 1, 2, 3]
    assert lines[:2] == first[:2]
    assert runner.train_dataloader.dataset.phase == 2
    with pytest.raises(ValueError, match='interval=0, allowed'):
        LayerSimilarityHook(interval=0)


def test_pictures_tell_files_of_one_name_apart() -> None:
    tool = load_tool('analysis_tools/layer_similarity.py')
    paths = [Path(name) for name in ('a/x/epoch_9.pth', 'a/x/epoch_10.pth', 'b/x/epoch_9.pth')]
    assert tool.labels(paths[:2]) == ['epoch_9', 'epoch_10']
    assert tool.labels([Path('s0/e.pth'), Path('s1/e.pth')]) == ['s0/e', 's1/e']
    assert tool.labels(paths) == ['a/x/epoch_9', 'a/x/epoch_10', 'b/x/epoch_9']
    assert sorted(paths, key=tool.natural)[0] == paths[0]
