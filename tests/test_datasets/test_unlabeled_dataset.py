import pytest
from mmengine.registry import DATASETS, init_default_scope

import mmdmt  # noqa: F401
from mmdmt.datasets import UnlabeledDataset


@pytest.fixture
def root(tmp_path):
    for file in (
        'a.jpg',
        'b.png',
        'city/c_left.png',
        'city/d_left.png',
        'city/d_right.png',
        'e.txt',
    ):
        path = tmp_path / 'img' / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def make(root, names=None, **kwargs):
    if names is not None:
        (root / 'list.txt').write_text('\n'.join(names))
        kwargs['ann_file'] = 'list.txt'
    return UnlabeledDataset(data_root=str(root), data_prefix=dict(img_path='img'), **kwargs)


def infos(dataset):
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def test_reads_names_from_a_list_and_ignores_blank_lines(root):
    found = infos(make(root, ['city/d', '', 'city/c '], img_suffix='_left.png'))
    assert [info['name'] for info in found] == ['city/d', 'city/c']
    assert found[0]['img_path'] == str(root / 'img/city/d_left.png')
    assert all('seg_map_path' not in info and info['seg_fields'] == [] for info in found)


def test_takes_a_whole_folder_in_order_with_several_suffixes(root):
    found = infos(make(root, img_suffix=('.png', '.jpg', '_left.png')))
    assert [info['name'] for info in found] == ['a', 'b', 'city/c', 'city/d', 'city/d_right']


def test_a_listed_name_takes_the_suffix_there_is(root):
    found = infos(make(root, ['b', 'a'], img_suffix=['.jpg', '.png']))
    assert [info['img_path'][-5:] for info in found] == ['b.png', 'a.jpg']


def test_names_are_prefixed(root):
    assert infos(make(root, ['a'], name_prefix='more/'))[0]['name'] == 'more/a'


def test_an_absolute_list_needs_not_lie_in_the_data_root(root, tmp_path_factory):
    path = tmp_path_factory.mktemp('lists') / 'names.txt'
    path.write_text('a')
    assert len(make(root, ann_file=str(path))) == 1


def test_samples_survive_serialization(root):
    plain, serialized = (make(root, ['a', 'city/c'], serialize_data=s) for s in (False, True))
    assert infos(plain) == infos(serialized)


def test_a_missing_list_is_not_taken_for_the_whole_folder(root):
    with pytest.raises(FileNotFoundError, match=r'list of unlabeled images .*no\.txt'):
        make(root, ann_file='no.txt')


def test_a_folder_is_no_list(root):
    with pytest.raises(FileNotFoundError, match='img'):
        make(root, ann_file='img')


def test_a_missing_folder_is_refused(root):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        UnlabeledDataset(data_root=str(root), data_prefix=dict(img_path='nowhere'))


def test_a_listed_image_without_file_is_refused_when_suffixes_are_tried(root):
    with pytest.raises(FileNotFoundError, match='lists z'):
        make(root, ['z'], img_suffix=('.jpg', '.png'))


@pytest.mark.parametrize('kwargs', [dict(names=[]), dict(names=['', ' ']), dict(img_suffix='.bmp')])
def test_no_image_at_all_is_refused(root, kwargs):
    with pytest.raises(ValueError, match='has no image'):
        make(root, **kwargs)


def test_a_name_that_comes_twice_is_refused(root):
    with pytest.raises(ValueError, match='1 names more than once: a'):
        make(root, ['a', 'b', 'a'])
    (root / 'img/a.png').touch()
    with pytest.raises(ValueError, match='1 names more than once: a'):
        make(root, img_suffix=('.jpg', '.png'))


def test_a_mask_folder_is_refused(root):
    with pytest.raises(ValueError, match='seg_map_path'):
        UnlabeledDataset(data_root=str(root), data_prefix=dict(img_path='img', seg_map_path='x'))


def test_is_built_by_name(root):
    init_default_scope('mmseg')
    config = dict(
        type='mmdmt.UnlabeledDataset', data_root=str(root), data_prefix=dict(img_path='img')
    )
    assert isinstance(DATASETS.build(config), UnlabeledDataset)


def test_only_the_chosen_images_are_taken(root):
    (root / 'only.txt').write_text('x/city/d\nx/elsewhere\n')
    options = dict(img_suffix='_left.png', name_prefix='x/', only=str(root / 'only.txt'))
    assert [info['name'] for info in infos(make(root, **options))] == ['x/city/d']
    options['name_prefix'] = 'y/'  # of a source of several folders, one may have none
    assert len(make(root, **options)) == 0
