"""
What takes the place of the model's parts, for comparison.

$ python -m pytest tests/test_baselines.py
"""
import pytest
import torch

from checkpoint import load_checkpoint
from lab.baselines import LSTM, Transformer
from lab.inside import pointer_weights
from model import JMambaConfig, Mamba2, MiniJMamba
from tests.helpers import TINY, TRAIN, run_here

HERE = 'lab.baselines:'
NO_CROSS = {'cross': HERE + 'NoCross', 'pointer': False}
PARTS = [
    ({'layer': HERE + 'Transformer'}, 'conv_weight'),
    ({'layer': HERE + 'LSTM'}, 'conv_weight'),
    ({'layer': 'SelfAttention'}, 'conv_weight'),
    ({'self_attention': 'torch.nn:Identity'}, 'self_attention'),
    (NO_CROSS, 'cross'),
    ({**NO_CROSS, 'self_attention': 'torch.nn:Identity'}, 'qkv'),
    ({'cross': HERE + 'RandomPointer'}, 'nothing'),
    ({'cross': HERE + 'TokenCross'}, 'nothing'),
    ({'front': HERE + 'Mel'}, 'embed.weight'),
    ({'front': HERE + 'Filters'}, 'embed.weight'),
    ({'points_at': 'same,end'}, 'nothing'),
]


@pytest.mark.parametrize('parts, without', PARTS)
def test_what_a_config_names_is_all_taught_and_stays_causal_in_the_encoder(parts, without):
    torch.manual_seed(0)
    model = MiniJMamba(JMambaConfig(**TINY, **parts))
    names = [name for name, _ in model.named_parameters()]
    assert not any(without in name for name in names)

    question = 0.1 * torch.randn(2, 8000)
    lengths = torch.tensor([8000, 6000])
    answer = model(question, lengths)
    assert answer.frames.shape == (2, 50, 128)
    # At first nothing is generated, so the frames alone would teach the encoder nothing.
    (answer.frames.sum() + answer.logits.square().sum() + answer.so_far.square().sum()).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None]
    # Where every frame is generated, no gate is asked.
    assert all('gate' in name and not model.config.pointer for name in still), still

    later = question.clone()
    later[:, 4000:] = 0.1 * torch.randn(2, 4000)
    heard, changed = (model.encode(model.hear(x), x)[:, :5] for x in (question, later))
    assert torch.allclose(heard, changed, atol=1e-5)


def test_layers_of_as_many_parameters():
    c = JMambaConfig()
    n, *others = [sum(p.numel() for p in layer(c).parameters())
                  for layer in (Mamba2, Transformer, LSTM)]
    for other in others:
        assert other == pytest.approx(n, rel=0.02)


def test_a_random_pointer_does_not_point_straight():
    question = torch.zeros(1, 16000)
    straight, random = (pointer_weights(MiniJMamba(JMambaConfig(**TINY, **parts)), question)
                        for parts in ({}, {'cross': HERE + 'RandomPointer'}))
    assert straight.diagonal().mean() > random.diagonal().mean()


def test_other_parts_are_trained_and_loaded(tmp_path):
    parts = {'layer': HERE + 'LSTM', 'cross': HERE + 'TokenCross', 'front': HERE + 'Filters'}
    flags = [f'--{key}={value}' for key, value in parts.items()]
    code, _ = run_here('train.py', *TRAIN, '--test_samples=0', '--tasks=mirror,mod', '--hide=0.5',
                       *flags, f'--out_dir={tmp_path}')
    assert code == 0
    torch.manual_seed(1337)
    before = MiniJMamba(JMambaConfig(**TINY, **parts)).state_dict()
    model, checkpoint = load_checkpoint(str(tmp_path))
    assert parts.items() <= checkpoint['model_args'].items()
    after = model.state_dict()
    assert before.keys() == after.keys()
    # AdamW moves even what has no gradient, if it decays.
    still = [name for name in after if torch.equal(after[name], before[name])]
    assert all('so_far' in name or 'pointer_key' in name for name in still), still
