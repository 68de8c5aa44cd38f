"""
Fixtures that several files of tests use.
"""
import os
import signal

import pytest
import torch

from tests.helpers import TRAIN, path_of, run_here

# One thread a process: the tests run side by side, and threads would wait for one another.
os.environ['OMP_NUM_THREADS'] = '1'
torch.set_num_threads(1)
# A shell's background is deaf to Ctrl-C, and what nohup starts to a terminal that closes; so the
# tests' own programs would be, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, 'SIGHUP'):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """The folder of a tiny model of mirror, trained for six iterations. It can do nothing."""
    folder = tmp_path_factory.mktemp('trained')
    flags = [*TRAIN, '--test_samples=0', f'--out_dir={folder}']
    code, _ = run_here('train.py', path_of('config/mirror.py'), *flags)
    assert code == 0
    return folder
