"""The start of a run is short on the console and complete in the log file."""

import logging
import re
from pathlib import Path

from mmrecur.apis import runner
from mmrecur.apis.start import StartFilter


def test_console_says_what_a_run_is_about_and_the_log_everything(trained):
    output, work_dir = trained
    start = output[: output.index('Epoch(train)')].splitlines()[:-1]
    assert len(start) <= 12, '\n'.join(start)
    text = '\n'.join(start)
    assert re.search(r'config +\S+detector\.py', text)
    assert re.search(r'model +FasterRCNN with RLAResNet, 0\.\d+ million parameters', text)
    assert re.search(r'train data +10 images in batches of 2', text)
    assert re.search(r'val data +5 images', text) and re.search(r'training +to epoch 3, iteration 15', text)
    assert re.search(r'device +CPU, 1 thread', text)
    log = Path(work_dir.parent / re.search(r'  log +(\S+\.log)', text)[1]).read_text()
    for kept in ('System environment', 'Hooks will be', 'backbone.layer1.0.conv1.weight', 'creating index'):
        assert kept in log and kept not in text
    assert log.count('\n') > 300


def record(level, pathname='/libraries/somewhere.py', **extra):
    made = logging.makeLogRecord(dict(levelno=level, pathname=pathname, msg='text'))
    made.__dict__.update(extra)
    return made


def test_filter_keeps_what_a_user_can_act_on():
    passes = StartFilter()
    assert not passes.filter(record(logging.INFO))
    assert passes.filter(record(logging.WARNING)) and passes.filter(record(logging.ERROR))
    assert passes.filter(record(logging.INFO, runner.__file__))
    assert not passes.filter(record(logging.INFO, runner.__file__, was_printed=True))
    # A warning about a library's own code, as sent by print_log.
    call = eval('lambda passes, made: passes.filter(made)', {'__name__': 'mmengine.fileio.file_client'})
    assert not call(passes, record(logging.WARNING))
    assert call(passes, record(logging.ERROR))
    passes.started = True
    assert passes.filter(record(logging.INFO)) and call(passes, record(logging.WARNING))
