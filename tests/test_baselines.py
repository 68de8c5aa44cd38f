"""
What takes the place of the model's parts, for comparison.

$ python -m pytest tests/test_baselines.py
"""
import pytest
import torch

from baselines import make_model
from checkpoint import load_checkpoint
from model import JMambaConfig
from tests.helpers import TINY, TRAIN, run_here


def train_here(*flags):
    return run_here('train.py', *TRAIN, '--test_samples=0', '--tasks=mirror,mod', '--hide=0.5',
                    *flags)[0]


@pytest.mark.parametrize('key, value, without', [
    ('layer', 'transformer', 'conv_weight'),
    ('layer', 'lstm', 'conv_weight'),
    ('layer', 'attention', 'conv_weight'),
    ('attention', 'cross', 'self_attention.qkv'),
    ('attention', 'self', 'cross.q'),
    ('attention', 'none', 'cross.q'),
    ('attention', 'random', 'no part'),
    ('attention', 'token', 'no part'),
    ('front', 'mel', 'embed.weight'),
    ('front', 'filters', 'embed.weight'),
    ('points_at', 'same,end', 'no part'),
])
def test_other_parts_are_trained_and_loaded(key, value, without, tmp_path):
    torch.manual_seed(1337)
    before = make_model(JMambaConfig(**TINY, **{key: value})).state_dict()
    assert train_here(f'--{key}={value}', f'--out_dir={tmp_path}') == 0
    model, checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint['model_args'][key] == value
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert not any(without in name for name in after)
    # All of it is trained: AdamW moves even what has no gradient, if it decays.
    still = [name for name in after if torch.equal(after[name], before[name])]
    assert all('so_far' in name or 'pointer_key' in name for name in still), still
