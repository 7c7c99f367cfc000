import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdmt.models.views import PARTNERS, mix_partners


def test_a_cycle_leaves_no_image_alone_and_uses_each_once():
    for seed in range(20):
        torch.manual_seed(seed)
        for num in range(2, 7):
            partner = mix_partners(num)
            assert (partner != torch.arange(num)).all()
            assert sorted(partner.tolist()) == list(range(num))


def test_fixed_partners():
    assert mix_partners(4, 'next').tolist() == [1, 2, 3, 0]
    assert mix_partners(4, 'flip').tolist() == [3, 2, 1, 0]
    assert mix_partners(4, 'same').tolist() == [0, 1, 2, 3]


def test_a_shuffle_takes_every_order_but_that_of_the_batch():
    torch.manual_seed(0)
    shuffled = {tuple(mix_partners(3, 'shuffle').tolist()) for _ in range(200)}
    assert len(shuffled) == 5 and (0, 1, 2) not in shuffled


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_a_shuffle_always_mixes_and_uses_each_image_once(num, seed):
    torch.manual_seed(seed)
    partner = mix_partners(num, 'shuffle').tolist()
    assert partner != list(range(num)) and sorted(partner) == list(range(num))
    assert num > 2 or partner == [1, 0]


@pytest.mark.parametrize('mode', PARTNERS)
def test_few_images(mode):
    assert mix_partners(1, mode).tolist() == [0]
    assert mix_partners(0, mode).tolist() == []


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match='partner'):
        mix_partners(3, 'random')
