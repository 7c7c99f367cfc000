"""A config of each kind, printed, trained for two steps and tested from the text alone."""

import functools
import runpy
import sys
from pathlib import Path
from unittest import mock

import mmseg
import numpy as np
import pytest
import torch
from forked_tool import ForkedTool
from mmengine.config import Config
from mmengine.registry import RUNNERS
from PIL import Image
from shipped_configs import CONFIGS
from tiny_classification import make_folders

pytestmark = pytest.mark.usefixtures('unformatted_configs')
TOOLS = Path(__file__).resolve().parents[2] / 'tools'
STOCK = Path(mmseg.__file__).parent / '.mim' / 'tools'
NETWORK = 'deeplabv3plus_mobilenetv2_msrc21-96x96'
ONLINE = ('mean-teacher', 'fixmatch', 'dual-teacher', 'cross-teacher')
CHAIN = f'dmt/dst-cbc_{NETWORK}'  # one member: two stages
CLASSIFICATION = 'dmt_classification/dmt_wrn-28-2_labeled_folder-64x64'


def make_msrc21(root):
    """The layout of the dataset: two bright and two dark images a part, two of them labeled."""
    rng = np.random.default_rng(0)
    for part in ('train', 'val', 'test'):
        for folder in ('img', 'ann'):
            (root / folder / part).mkdir(parents=True)
        for index in range(4):
            class_id = index % 2
            image = rng.integers(0, 60, (70, 90, 3), np.uint8) + np.uint8(150 * class_id)
            mask = np.full((70, 90), class_id, np.uint8)
            mask[:5] = 255
            Image.fromarray(image).save(root / 'img' / part / f'{index}.jpg')
            Image.fromarray(mask).save(root / 'ann' / part / f'{index}.png')
    lists = root / 'splits' / '1_8' / 'fold_0'
    lists.mkdir(parents=True)
    (lists / 'labeled.txt').write_text('0\n1\n')
    (lists / 'unlabeled.txt').write_text('2\n3\n')
    return root


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_msrc21(tmp_path_factory.mktemp('msrc21'))


@functools.cache
def train_tool():
    return runpy.run_path(str(TOOLS / 'train.py'))['main']


def printed(capsys, name, work_dir, *options, stage=None):
    """What `tools/train.py --print-config` prints."""
    config = CONFIGS / f'{name}.py'
    argv = ['train.py', config, '--print-config', '--work-dir', work_dir, '--cfg-options', *options]
    argv += ['--stage', stage] if stage else []
    capsys.readouterr()
    with mock.patch.object(sys, 'argv', [str(arg) for arg in argv]):
        train_tool()()
    assert not Path(work_dir).exists()
    return capsys.readouterr().out


def small(root, network='model'):
    """What a user without a network and without time sets on the command line."""
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    return [
        f'data_root={root}',
        'crop_size=(32,32)',
        'batch_size=4',
        'max_iters=2',
        'train_cfg.val_interval=2',
        f'{network}.backbone.init_cfg=None',
        *(
            f'{loader}.{key}'
            for loader in loaders
            for key in ('num_workers=0', 'persistent_workers=False')
        ),
    ]


def as_file(text, path):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


def test_a_supervised_text_trains_on_the_labels_alone(data, tmp_path, capsys):
    (data / 'splits/1_8/fold_0/unlabeled.txt').rename(data / 'unlabeled.txt')  # nobody needs it
    options = [*small(data), 'batch_size=2']
    text = printed(capsys, f'supervised/{NETWORK}', tmp_path / 'work', *options)
    config = as_file(text, tmp_path / 'text.py')
    runner = RUNNERS.build(Config.fromfile(config))  # as stock tools/train.py does
    runner.train()
    (data / 'unlabeled.txt').rename(data / 'splits/1_8/fold_0/unlabeled.txt')
    assert runner.iter == 2 and len(runner.train_dataloader.dataset) == 2
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
    state = torch.load(tmp_path / 'work' / 'iter_2.pth', map_location='cpu', weights_only=True)
    assert all(key.startswith(('backbone.', 'decode_head.')) for key in state['state_dict'])
    # The text lies in the work dir, and in the checkpoint.
    dumped = Config.fromfile(tmp_path / 'work' / 'text.py')
    assert dumped.to_dict() == Config.fromfile(config).to_dict()
    assert Config.fromstring(state['meta']['cfg'], '.py').to_dict() == dumped.to_dict()


@pytest.mark.parametrize('method', ['supervised', *ONLINE])
def test_a_text_runs_under_stock_tools(method, data, tmp_path, capsys):
    online = method != 'supervised'
    name = f'{method.replace("-", "_")}/{method}_{NETWORK}' if online else f'{method}/{NETWORK}'
    options = [*small(data, 'model.segmentor' if online else 'model')]
    if method == 'cross-teacher':
        options += ['model.contrast.anchors_per_class=4']
    text = printed(capsys, name, tmp_path / 'work', *options)
    config = as_file(text, tmp_path / 'text.py')
    args = ('--work-dir', tmp_path / 'work')
    log = ForkedTool(STOCK / 'train.py', config, *args, log=tmp_path / 'train.log').finish()
    assert 'IterSeedHook' in log and ('unsup' in log) == online
    assert ('/mIoU: ' in log) == online  # of each network, by the loop that is shipped
    checkpoint = tmp_path / 'work' / 'iter_2.pth'
    log = ForkedTool(STOCK / 'test.py', config, checkpoint, *args, log=tmp_path / 't.log').finish()
    assert 'mIoU' in log.split('Iter(test) [4/4]')[-1]


def test_the_text_of_a_chain_and_of_a_stage_of_it(data, tmp_path, capsys):
    options = [o for o in small(data) if o != 'max_iters=2']
    options += ['mutual.ratios=[1.0]', 'mutual.supervised.max_iters=2']
    options += [
        'mutual.round.max_iters=2',
        'mutual.labeling.num_workers=0',
        'mutual.ensemble=False',
    ]
    whole, work_dir = printed(capsys, CHAIN, tmp_path / 'work', *options), tmp_path / 'work'
    stage = printed(capsys, CHAIN, work_dir, *options, stage='round_1.a')
    config = as_file(whole, tmp_path / 'chain.py')
    log = ForkedTool(STOCK / 'train.py', config, log=tmp_path / 'train.log').finish()
    assert 'stage_1_a' in log
    assert Config.fromfile(work_dir / 'chain.py').to_dict() == Config.fromfile(config).to_dict()

    # The stage once more, by its text alone, in a folder of its own.
    text = as_file(stage, tmp_path / 'stage.py')
    assert f'{work_dir}/stage_0_a/iter_2.pth' in stage
    args = ('--work-dir', tmp_path / 'again')
    ForkedTool(STOCK / 'train.py', text, *args, log=tmp_path / 'stage.log').finish()
    first, again = (
        torch.load(folder / 'iter_2.pth', weights_only=True)['state_dict']
        for folder in (work_dir / 'stage_1_a', tmp_path / 'again')
    )
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    checkpoint = tmp_path / 'again' / 'iter_2.pth'
    log = ForkedTool(STOCK / 'test.py', text, checkpoint, *args, log=tmp_path / 't.log').finish()
    assert 'mIoU' in log


def test_the_text_of_a_chain_of_classifiers(tmp_path, capsys):
    root = make_folders(tmp_path / 'data')
    options = [
        *(f'{kind}_list={kind}.txt' for kind in ('labeled', 'unlabeled', 'val')),
        *(f'{loader}_dataloader.num_workers=0' for loader in ('train', 'val', 'test')),
        *(f'{loader}_dataloader.persistent_workers=False' for loader in ('train', 'val', 'test')),
        *(f'data_root={root}', 'num_classes=3', 'image_size=(10,10)', 'crop_size=(8,8)'),
        *('batch_size=4', 'model.backbone.depth=10', 'model.backbone.widen_factor=1'),
        *('model.head.in_channels=64', 'mutual.supervised.max_iters=2', 'mutual.ratios=[1.0]'),
        *('mutual.round.max_iters=[2]', 'mutual.labeling.num_workers=0'),
    ]
    config = as_file(
        printed(capsys, CLASSIFICATION, tmp_path / 'work', *options), tmp_path / 't.py'
    )
    entries = RUNNERS.build(Config.fromfile(config)).train()
    assert [entry['state'] for entry in entries.values()] == ['done'] * 2
