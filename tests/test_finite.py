import pytest
import torch

from mmdmt.finite import NonFiniteError, non_finite, refuse_non_finite

LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_not_finite_is_named_in_order(value, dtype):
    bad = torch.zeros(2, 1000, dtype=dtype)
    bad[1, 998] = value
    values = dict(late=[dict(weight=bad)], first=torch.tensor(value), sound=torch.ones(3))
    assert non_finite(values) == ['late.0.weight', 'first']


def test_sound_and_other_values_pass():
    values = dict(
        huge=torch.full((1000,), LARGEST),  # the sum of squares overflows
        half=torch.full((1000,), 6e4, dtype=torch.float16),
        empty=torch.zeros(0),
        integers=torch.arange(3),
        number=float('nan'),
        text='nan',
        gradient=torch.ones(2, requires_grad=True),
    )
    assert non_finite(values) == []
    refuse_non_finite(values, 'it')


def test_the_refusal_names_origin_and_tensors():
    state = {f'layer{index}.weight': torch.tensor([1, float('nan')]) for index in range(5)}
    message = r'a\.pth holds NaN or infinity in 5 tensors: layer0\.weight, .* and 2 more'
    with pytest.raises(NonFiniteError, match=message):
        refuse_non_finite(state, 'a.pth')
