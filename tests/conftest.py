"""Fixtures that several folders use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import mmengine.config.utils
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

# before the first test module imports them
pytest.register_assert_rewrite('tests.golden', 'tests.helpers')
# For each base such as mmdet::PATH, MMEngine parses all metafiles of the library, which takes 0.1 s.
mmengine.config.utils.load = cache(mmengine.config.utils.load)


@pytest.fixture
def scope() -> Iterator[Callable[[Config], Config]]:
    """Enter a config's default scope as the runner does; leave it after the test."""
    opened = []

    def enter(cfg: Config) -> Config:
        manager = DefaultScope.overwrite_default_scope(cfg.default_scope)
        manager.__enter__()
        opened.append(manager)
        return cfg

    yield enter
    for manager in reversed(opened):
        manager.__exit__(None, None, None)
