"""
What all tests share: an option, a marker, one thread for each process, and a tiny trained model.

$ python -m pytest -q -n 2           # what a change usually breaks; minutes
$ python -m pytest -q -n 2 --long    # and what is killed, broken at random, or large
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


def pytest_addoption(parser):
    parser.addoption('--long', action='store_true', help="run the tests that are marked long, too")


def pytest_collection_modifyitems(config, items):
    if config.getoption('--long'):
        return
    for item in items:
        if item.get_closest_marker('long'):
            item.add_marker(pytest.mark.skip(reason="takes long: --long runs it"))


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """The folder of a tiny model of mirror, trained for six iterations. It can do nothing."""
    folder = tmp_path_factory.mktemp('trained')
    flags = [*TRAIN, '--test_samples=0', f'--out_dir={folder}']
    code, _ = run_here('train.py', path_of('config/mirror.py'), *flags)
    assert code == 0
    return folder
