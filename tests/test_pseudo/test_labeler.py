import json

import pytest
import torch
from mmengine.registry import DefaultScope
from tiny_models import tiny_segmentor
from tiny_project import base_config, make_tree

from mmdmt.models.segmentors.semi_base import build_segmentor
from mmdmt.pseudo import PseudoLabelStore, labeler
from mmdmt.pseudo.labeler import PseudoLabeler
from mmdmt.registry import DATASETS


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.fixture
def setting(tmp_path):
    """Labeling arguments and a checkpoint."""
    tree = make_tree(tmp_path / 'tree')
    dataset = base_config(tree, tmp_path)['train_dataloader']['dataset']['datasets'][1]
    dataset['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    torch.manual_seed(0)
    model = build_segmentor(tiny_segmentor())
    model.decode_head.conv_seg.weight.data.mul_(100)  # confident, so that classes differ
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'teacher.pth')
    arguments = dict(model=tiny_segmentor(), dataset=dataset, num_workers=0, pixel_stride=2)
    return arguments, str(tmp_path / 'teacher.pth'), model.eval()


def run(setting, store_dir, ratio=0.5):
    arguments, checkpoint, _ = setting
    return PseudoLabeler(str(store_dir), **arguments).run(checkpoint, ratio)


def count_forwards(monkeypatch):
    calls = []
    original = labeler.PseudoLabeler._put
    monkeypatch.setattr(
        labeler.PseudoLabeler,
        '_put',
        lambda self, name, sample: calls.append(name) or original(self, name, sample),
    )
    return calls


def test_labels_are_the_networks_predictions_at_image_size(setting, tmp_path):
    arguments, _, model = setting
    run(setting, tmp_path / 'store')
    store = PseudoLabelStore(tmp_path / 'store')
    sample = DATASETS.build(arguments['dataset'])[3]
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    data = model.data_preprocessor(batch, False)
    logits = model.predict(data['inputs'], data['data_samples'])[0].seg_logits.data
    label, confidence = store.get('unlabeled_3')
    assert torch.equal(torch.from_numpy(label).long(), logits.argmax(0))
    torch.testing.assert_close(
        torch.from_numpy(confidence), logits.softmax(0).amax(0), rtol=0, atol=2e-3
    )


def test_each_image_is_labeled_once_and_a_finished_store_is_kept(setting, tmp_path, monkeypatch):
    calls = count_forwards(monkeypatch)
    first = run(setting, tmp_path / 'store')
    assert sorted(calls) == [f'unlabeled_{i}' for i in range(6)]
    assert run(setting, tmp_path / 'store') == first and len(calls) == 6


def test_an_interrupted_pass_goes_on_and_ends_the_same(setting, tmp_path, monkeypatch):
    whole = run(setting, tmp_path / 'whole')
    calls = count_forwards(monkeypatch)
    monkeypatch.setattr(labeler._Progress, 'step', interrupt_after(2))
    with pytest.raises(KeyboardInterrupt):
        run(setting, tmp_path / 'cut')
    assert not PseudoLabelStore(tmp_path / 'cut').is_complete
    monkeypatch.setattr(labeler._Progress, 'step', lambda *_: None)
    assert run(setting, tmp_path / 'cut') == whole
    assert len(calls) == 6, 'an image was labeled twice'


def interrupt_after(count):
    steps = []

    def step(self, images):
        steps.append(images)
        if len(steps) == count:
            raise KeyboardInterrupt

    return step


def test_a_damaged_map_is_labeled_again(setting, tmp_path, monkeypatch):
    whole = run(setting, tmp_path / 'store')
    path = next((tmp_path / 'store' / 'maps').glob('unlabeled_2.*'))
    path.write_bytes(path.read_bytes()[:-7])
    calls = count_forwards(monkeypatch)
    assert run(setting, tmp_path / 'store') == whole
    assert calls == ['unlabeled_2']


def test_two_ranks_share_the_images_and_agree_with_one(setting, tmp_path, monkeypatch):
    """Rank 1 labels first; rank 0 then finds only its own share to do and finishes for both."""
    whole = run(setting, tmp_path / 'whole')
    calls = count_forwards(monkeypatch)
    monkeypatch.setattr(labeler, 'get_world_size', lambda: 2)
    thresholds, shares = [], []

    def as_rank(rank, gather):
        monkeypatch.setattr(labeler, 'get_rank', lambda: rank)
        monkeypatch.setattr(labeler, 'all_gather_object', gather)
        return run(setting, tmp_path / 'shared')

    PseudoLabelStore(tmp_path / 'shared').begin(json.loads(json.dumps(meta_of(tmp_path / 'whole'))))

    def remember(value):
        (thresholds if not thresholds else shares).append(value)
        raise StopIteration

    with pytest.raises(StopIteration):
        as_rank(1, remember)
    assert sorted(calls) == ['unlabeled_1', 'unlabeled_3', 'unlabeled_5']
    own_store = PseudoLabelStore(tmp_path / 'shared')

    def gather(value):
        if isinstance(value, type(thresholds[0])):
            return [value, thresholds[0]]
        odd = [f'unlabeled_{i}' for i in (1, 3, 5)]
        return [value, own_store.measure(odd, whole['thresholds'])]

    assert as_rank(0, gather) == whole
    assert len(calls) == 6


def meta_of(store_dir):
    return json.loads((store_dir / 'meta.json').read_text())


def test_another_ratio_keeps_the_maps(setting, tmp_path, monkeypatch):
    low = run(setting, tmp_path / 'store', ratio=0.2)
    calls = count_forwards(monkeypatch)
    high = run(setting, tmp_path / 'store', ratio=0.8)
    assert calls == [] and high['kept_share'] > low['kept_share']
