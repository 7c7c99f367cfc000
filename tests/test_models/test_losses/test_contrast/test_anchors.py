import pytest
import torch

from mmdmt.models.losses.contrast.anchors import gather_pixels, sample_anchors


def test_at_most_so_many_pixels_of_each_class():
    label = torch.tensor([[0, 0, 0, 1], [2, 2, 255, -1]]).reshape(2, 2, 2)
    mask = torch.ones(2, 2, 2, dtype=torch.bool)
    mask[1, 0, 0] = False
    index, chosen = sample_anchors(label, mask, num_classes=4, per_class=2)
    assert index.shape == chosen.shape == (8,)
    assert chosen.reshape(4, 2).int().tolist() == [[1, 1], [1, 0], [1, 0], [0, 0]]
    drawn = index[chosen]
    assert label.flatten()[drawn].tolist() == [0, 0, 1, 2]
    assert len(set(drawn.tolist())) == 4 and 4 not in drawn


def test_every_pixel_of_a_class_is_drawn_as_often():
    torch.manual_seed(0)
    label = torch.tensor([0, 1, 0, 0, 1])
    hits = torch.zeros(5)
    for _ in range(600):
        index, chosen = sample_anchors(label, torch.ones(5, dtype=torch.bool), 2, 1)
        assert chosen.all()
        hits[index] += 1
    assert (hits[[0, 2, 3]] - 200).abs().max() < 60
    assert (hits[[1, 4]] - 300).abs().max() < 60


@pytest.mark.parametrize('per_class', [1, 3, 50])
def test_sampling_equals_a_loop_over_the_classes(per_class):
    gen = torch.Generator().manual_seed(0)
    label = torch.randint(0, 6, (2, 5, 7), generator=gen)
    mask = torch.rand(2, 5, 7, generator=gen) < 0.4
    index, chosen = sample_anchors(label, mask, 5, per_class)
    for cls in range(5):
        slots = slice(cls * per_class, (cls + 1) * per_class)
        drawn = index[slots][chosen[slots]].tolist()
        pool = ((label == cls) & mask).flatten().nonzero().flatten().tolist()
        assert len(set(drawn)) == len(drawn) == min(per_class, len(pool))
        assert set(drawn) <= set(pool)


def test_gathered_rows_are_those_pixels_and_carry_gradients():
    maps = torch.randn(2, 3, 4, 5, requires_grad=True)
    index = torch.tensor([0, 7, 39, 7])
    rows = gather_pixels(maps, index)
    assert torch.equal(rows, maps.movedim(1, -1).reshape(-1, 3)[index])
    rows.sum().backward()
    assert maps.grad[0, 0].flatten()[7] == 2 and maps.grad.sum() == 12
