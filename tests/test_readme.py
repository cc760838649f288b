"""The code in the documentation runs as printed, and its lists are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def code_blocks(text: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', text, flags=re.S)


SCRIPT, CONFIG, CLASSIFIER, NEEDS = code_blocks(README)


def test_config_builds_a_detector(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(Config.fromfile(path).model)
    assert type(model.backbone).__name__ == 'RLAResNet'
    # the parameters of mmdet's Faster R-CNN R-50 plus the recurrent parts
    assert sum(p.numel() for p in model.parameters()) == 41_753_056 + 281_536


def test_config_builds_a_classifier(tmp_path: Path) -> None:
    pytest.importorskip('mmpretrain')
    path = tmp_path / 'config.py'
    path.write_text(CLASSIFIER)
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
    assert sum(p.numel() for p in model.parameters()) == 20_506_664
    assert config.custom_hooks == list(model.backbone.required_hooks)


def test_table_of_families_says_what_backbones_need() -> None:
    needs: dict = {}
    exec(NEEDS, needs)
    (table,) = re.findall(r'\| Family \|.*?\n\n', README, flags=re.S)
    found = set()
    for line in table.strip().splitlines()[2:]:
        _, _, spec, also, *_ = line.split('|')
        kwargs = eval(f'dict({spec.strip(" `")})')
        backbone = MODELS.build(kwargs)
        found.add(kwargs['type'])
        hooks = [needs['custom_hooks'][int(n) - 1] for n in re.findall(r'\d', also) if 'hook' in also]
        assert hooks == list(backbone.required_hooks), line
        keys = needs['optim_wrapper']['paramwise_cfg']['custom_keys'] if 'rule' in also else {}
        rules = backbone.required_paramwise_cfg.get('custom_keys', {})
        trained = [name for name, _ in backbone.named_parameters()]
        assert keys == {k: v for k, v in rules.items() if any(k in name for name in trained)}, line
        channels = re.search(r'in_channels=(\[.*?\])', also)
        expected = [256, 512, 1024, 2048] if channels is None else eval(channels[1])
        assert list(backbone.out_channels) == expected, line
    assert len(found) == 5


def test_table_of_tools_is_complete() -> None:
    (table,) = re.findall(r'\| In `tools/` \|.*?\n\n', README, flags=re.S)
    cells = [line.split('|')[1] for line in table.strip().splitlines()[2:]]
    rows = [name for cell in cells for name in re.findall(r'`([^` ]+)`', cell)]
    files = [path for path in (ROOT / 'tools').rglob('[!_]*') if path.suffix in ('.py', '.sh')]
    assert sorted(rows) == sorted(path.relative_to(ROOT / 'tools').as_posix() for path in files)


def test_layers_in_other_networks() -> None:
    pytest.importorskip('mmdet')
    scope: dict = {}
    # A runner of another library in this process leaves its scope as the default one.
    with DefaultScope.overwrite_default_scope('mmdet'):
        for block in code_blocks((ROOT / 'docs' / 'layers.md').read_text()):
            exec(block, scope)
    assert len(scope['coefficients']) == 1 and scope['loss'].requires_grad
    assert len(scope['backbone'].banks) == 4


@pytest.mark.parametrize(
    'page',
    [p.relative_to(ROOT).as_posix() for p in (ROOT / 'docs').glob('*.md')]
    + [
        'README.md',
        'CONTRIBUTING.md',
        *(p.relative_to(ROOT).as_posix() for p in (ROOT / 'configs').rglob('*.md')),
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r'\]\(([^)]+)\)', text):
        if '://' in link:
            continue
        name, _, anchor = link.partition('#')
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        titles = re.findall(r'^#+ (.*)$', target.read_text(), flags=re.M) if anchor else []
        anchors = [re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles]
        assert not anchor or anchor in anchors, link


def test_script_runs() -> None:
    scope: dict = {}
    exec(SCRIPT, scope)
    assert [feature.shape[-1] for feature in scope['features']] == [56, 28, 14, 7]
    assert scope['model'].deployed
