"""
What takes the place of the model's parts, for comparison.

$ python -m pytest tests/test_baselines.py
"""
import pytest
import torch

from lab.baselines import make_model
from checkpoint import load_checkpoint
from model import JMambaConfig, mixer
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
    ('turning', True, 'no part'),
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


def test_a_state_that_turns_is_the_recurrence_with_complex_numbers():
    torch.manual_seed(0)
    b, t, heads, p, n = 2, 70, 3, 4, 8
    width = 2 * heads * p + 2 * n + heads
    zxBCdt = torch.randn(b, t, width)
    turns, pace = torch.randn(b, t, n // 2), torch.rand(b, t, 1)
    weight, bias = torch.randn(4, heads * p + 2 * n), torch.randn(heads * p + 2 * n)
    dt_bias, A, D = torch.randn(heads), -torch.rand(heads), torch.randn(heads)
    inputs = (zxBCdt, pace, weight, bias, dt_bias, A, D, p, n)

    def recurrence(x, dt, A, B, C):
        """h_t = exp(dt A) e^(i turn) h_{t-1} + dt x B: what stands in the two halves is a complex
        number"""
        state = torch.zeros(b, heads, p, n // 2, dtype=torch.cfloat)
        out = []
        for i in range(t):
            B_i, C_i = (torch.complex(*v[:, i].chunk(2, -1)) for v in (B, C))
            state = state * torch.exp(1j * turns[:, i])[:, None, None]
            state = state * torch.exp(dt[:, i] * A)[..., None, None]
            state = state + (dt[:, i, :, None] * x[:, i])[..., None] * B_i.conj()[:, None, None]
            out.append((state * C_i[:, None, None]).real.sum(-1))
        return torch.stack(out, 1)

    wanted = mixer(*inputs, scan=recurrence)
    assert torch.allclose(mixer(*inputs, turns=turns), wanted, atol=1e-4)
    assert not torch.allclose(mixer(*inputs), wanted, atol=1e-2)
