from pathlib import Path

import numpy as np
import pytest
import torch

from mmdmt.models.losses.contrast import ClassMemoryBank

GOLDEN = Path(__file__).resolve().parents[3] / 'data' / 'golden'


def test_golden_queue_of_the_published_code():
    with np.load(GOLDEN / 'ctt_0.npz') as data:
        data = {key: torch.from_numpy(value) for key, value in data.items()}
    classes, capacity, channels = data['bank_init'].shape
    bank = ClassMemoryBank(classes, capacity, channels, admit_on='logit')
    bank.feats.copy_(data['bank_init'])
    per_class = max(int(capacity / data['labeled_samples'] * 2), data['batch_size'].item())
    for step, feat in enumerate(data['feats']):
        bank.update(feat, data['logits'][step], data['labels'][step], per_class)
        torch.testing.assert_close(bank.feats, data['bank_after'][step], rtol=0, atol=0)
        assert bank.counts.tolist() == data['size_after'][step].tolist()


def reference_update(queues, feat, logits, label, per_class, capacity, admit_on, threshold):
    """The published procedure with Python lists."""
    values = logits.softmax(dim=1) if admit_on == 'prob' else logits
    for cls, queue in enumerate(queues):
        found = []
        for n, y, x in np.ndindex(*label.shape):
            score = values[n, :, y, x].max().item()
            correct = values[n, :, y, x].argmax() == cls == label[n, y, x]
            if correct and score >= threshold:
                found.append((score, feat[n, :, y, x]))
        if len(found) >= per_class:
            found = sorted(found, key=lambda item: -item[0])[:per_class]
        queue.extend(row for _, row in found)
        del queue[:-capacity]


@pytest.mark.parametrize('admit_on, threshold', [('prob', 0.5), ('logit', 0.95)])
@pytest.mark.parametrize('per_class', [1, 3, 5])
def test_matches_a_plain_queue(admit_on, threshold, per_class):
    gen = torch.Generator().manual_seed(0)
    bank = ClassMemoryBank(3, 5, 4, threshold=threshold, admit_on=admit_on)
    queues = [[] for _ in range(3)]
    for _ in range(6):
        feat = torch.randn(2, 4, 3, 3, generator=gen)
        logits = 2 * torch.randn(2, 3, 3, 3, generator=gen)
        label = torch.randint(3, (2, 3, 3), generator=gen)
        label[0, 0] = 255
        bank.update(feat, logits, label, per_class)
        reference_update(queues, feat, logits, label, per_class, 5, admit_on, threshold)
        assert bank.counts.tolist() == [len(queue) for queue in queues]
        for rows, queue in zip(bank.feats, queues):
            assert torch.equal(rows[: len(queue)], torch.stack(queue or [rows[0]])[: len(queue)])


def test_probability_and_raw_logit_admit_differently():
    feat, label = torch.ones(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)
    logits = torch.tensor([2.0, 1.0]).reshape(1, 2, 1, 1)  # logit 2, probability 0.73
    counts = {}
    for admit_on in ('prob', 'logit'):
        bank = ClassMemoryBank(2, 4, 2, admit_on=admit_on)
        bank.update(feat, logits, label, 1)
        counts[admit_on] = bank.counts.tolist()
    assert counts == dict(prob=[0, 0], logit=[1, 0])


def fill(bank, num_updates):
    label = torch.arange(2).reshape(2, 1, 1).expand(2, 2, 2)
    logits = torch.zeros(2, 2, 2, 2)
    logits[0, 0] = logits[1, 1] = 9.0
    for _ in range(num_updates):
        bank.update(torch.randn(2, 3, 2, 2), logits, label, 2)


def test_is_full_once_every_class_is():
    bank = ClassMemoryBank(2, 4, 3)
    assert not bank.is_full
    fill(bank, 1)
    assert not bank.is_full
    fill(bank, 1)
    assert bank.is_full
    fill(bank, 1)
    assert bank.counts.tolist() == [4, 4]


def test_a_larger_batch_than_the_bank_keeps_the_most_certain():
    bank = ClassMemoryBank(2, 2, 1)
    feat = torch.arange(4.0).reshape(1, 1, 2, 2)
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0] = torch.tensor([[5.0, 8.0], [6.0, 7.0]])
    bank.update(feat, logits, torch.zeros(1, 2, 2, dtype=torch.long), per_class=100)
    assert bank.feats[0, :, 0].tolist() == [1, 3]


def test_state_is_in_the_checkpoint():
    bank, other = ClassMemoryBank(2, 4, 3), ClassMemoryBank(2, 4, 3)
    fill(bank, 2)
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.feats, bank.feats)
    assert other.is_full


def test_update_never_waits_for_the_device():
    bank = ClassMemoryBank(2, 4, 3).to('meta')
    bank.update(
        torch.zeros(1, 3, 2, 2, device='meta'),
        torch.zeros(1, 2, 2, 2, device='meta'),
        torch.zeros(1, 2, 2, dtype=torch.long, device='meta'),
        2,
    )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match='admit_on'):
        ClassMemoryBank(2, 4, 3, admit_on='entropy')
    with pytest.raises(ValueError, match=r'`capacity` must be in \[1, inf\], got 0'):
        ClassMemoryBank(2, 0, 3)
    bank = ClassMemoryBank(2, 4, 3)
    feat, logits = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, 2)
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match='label'):
        bank.update(feat, logits, label[:, :1], 1)
    with pytest.raises(ValueError, match='logits'):
        bank.update(feat, logits[:, :, :1], label, 1)
    with pytest.raises(ValueError, match='per_class'):
        bank.update(feat, logits, label, 0)


def test_selection_has_the_same_shape_whatever_the_images():
    """Ranks exchange it."""
    bank = ClassMemoryBank(2, 6, 3)
    logits = torch.tensor([9.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 2)
    label = torch.zeros(1, 1, 2, dtype=torch.long)
    feat = torch.randn(1, 7, 1, 2)  # as long as it likes: a projection may follow
    rows, counts = bank.select(feat, logits, label, per_class=4)
    assert rows.shape == (2, 4, 7) and counts.tolist() == [2, 0]
    assert torch.equal(rows[0, :2], feat[0, :, 0].t())
    with pytest.raises(ValueError, match='the 3 channels of the bank, got 7'):
        bank.append(rows, counts)
    bank.append(rows[:, :, :3], counts)
    assert bank.counts.tolist() == [2, 0]
    assert bank.filled.tolist() == [[True] * 2 + [False] * 4, [False] * 6]
