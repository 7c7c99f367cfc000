import numpy as np
import pytest

from mmdmt.pseudo import PseudoLabelStore
from mmdmt.pseudo.report import class_names, class_rows, class_table, label_scalars


@pytest.fixture
def manifest(tmp_path):
    """Class 0 on 3/4 of the pixels, half of them kept; class 1 on 1/4; class 2 on none."""
    store = PseudoLabelStore(tmp_path)
    store.begin(dict(num_classes=3))
    label = np.zeros((4, 8), np.uint8)
    label[3] = 1
    confidence = np.full((4, 8), 0.9, np.float32)
    confidence[:, ::2] = 0.5
    confidence[3] = 0.25
    store.put('x', label, confidence)
    return store.finish(['x'], [0.8, 0.1, 1e-5])


def rows_of(manifest):
    columns = (manifest[key] for key in ('predicted_pixels', 'kept_pixels'))
    more = dict(confidence=manifest['class_confidence'], threshold=manifest['thresholds'])
    return class_rows(*columns, **more)


def test_scalars_of_every_class_are_not_summed_as_losses(manifest):
    scalars = label_scalars(manifest, rows_of(manifest), ['sky', 'sea', 'boat'])
    assert not any('loss' in key or 'threshold' in key for key in scalars)
    assert scalars['pseudo_labels/kept_share'] == pytest.approx(20 / 32)
    expected = dict(sky=(0.75, 0.5, 0.7), sea=(0.25, 1.0, 0.25), boat=(0, 0, 0))
    for name, values in expected.items():
        keys = [f'pseudo_labels/{key}/{name}' for key in ('share', 'kept', 'confidence')]
        assert [scalars[key] for key in keys] == pytest.approx(values, abs=1e-3)


def test_the_table_has_the_largest_class_first(manifest):
    table = class_table(rows_of(manifest), ['boat', 'sky', 'sea'])
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()]
    title, *rows = [line for line in cells if line]
    assert title == ['class', 'share %', 'kept %', 'mean confidence', 'threshold']
    assert rows[0] == ['boat', '75.00', '50.0', '0.700', '0.8000']
    assert [row[0] for row in rows[1:]] == ['sky', 'sea']


def test_class_names_come_from_the_data_set():
    own = dict(type='mmdmt.UnlabeledDataset', metainfo=dict(classes=['a', 'b']))
    nameless = dict(type='mmdmt.UnlabeledDataset')
    cityscapes = dict(type='mmseg.CityscapesDataset')
    assert class_names([own], 2) == class_names([nameless, own], 2) == ['a', 'b']
    assert class_names([own], 3) == ['0', '1', '2']
    assert class_names([own, cityscapes], 19)[0] == 'road'
    assert class_names([nameless], 2) == class_names([], 2) == ['0', '1']
