"""The tool that shows how good stored labels are: counts, where masks are found, pictures."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from tiny_project import PALETTE, base_config, make_tree

from mmdmt.pseudo import PseudoLabelStore, StoreIncompleteError

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'inspect_pseudo_labels.py'
SIZE = (32, 32)
THRESHOLDS = [0.5, 0.5, 0.9, 0.5]


def load_tool():
    spec = importlib.util.spec_from_file_location('inspect_pseudo_labels', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


inspect = load_tool()


def write_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)


@pytest.fixture
def run(tmp_path):
    """A stage folder: six unlabeled images with labels of rising quality, masks for five."""
    tree = make_tree(tmp_path / 'tree')
    stage = tmp_path / 'stage_1_a'
    stage.mkdir()
    # Plain text: mmengine takes two seconds to format it.
    cfg = dict(base_config(tree, tmp_path), default_scope='mmseg')
    (stage / 'config.py').write_text('\n'.join(f'{key} = {cfg[key]!r}' for key in cfg))
    store = PseudoLabelStore(stage / 'pseudo_labels')
    store.begin(dict(ratio=0.5, num_classes=4, checkpoint=dict(file='teacher.pth')))
    truth = np.zeros(SIZE, np.uint8)
    truth[:, 16:] = 1
    truth[:2] = 255
    names = [f'unlabeled_{index}' for index in range(6)]
    for index, name in enumerate(names):
        label = np.where(truth == 255, 0, truth).astype(np.uint8)
        label[4 : 4 + 4 * (5 - index)] = 2  # wrong in fewer and fewer rows
        confidence = np.full(SIZE, 0.95, np.float32)
        confidence[-8:] = 0.3  # not kept
        store.put(name, label, confidence)
        if index:
            write_mask(tree / 'ann' / f'{name}.png', truth)
    store.finish(names, THRESHOLDS)
    return stage, tree, truth


def test_numbers(run, capsys):
    stage, _, truth = run
    quality = inspect.main([str(stage / 'pseudo_labels')])
    known, kept = truth != 255, np.arange(32)[:, None] < np.full((32, 32), 24)
    assert quality['num_images'] == 6
    assert quality['num_true_pixels'] == 5 * known.sum()
    assert quality['kept_share'] == pytest.approx(0.75)
    wrong = [4 * (5 - index) for index in range(1, 6)]
    total = 5 * (known & kept).sum()
    assert quality['accuracy_kept'] == pytest.approx(1 - sum(wrong) * 32 / total)
    assert quality['accuracy'] == pytest.approx(1 - sum(wrong) * 32 / (5 * known.sum()))
    assert quality['checkpoint'] == dict(file='teacher.pth')
    out = stage / 'inspection'
    assert json.loads((out / 'quality.json').read_text()) == quality
    text = (out / 'quality.txt').read_text()
    assert text.strip() in capsys.readouterr().out
    assert 'kept pixels: accuracy' in text and '0.93 - 1.00' in text


def test_masks_of_another_dataset_with_the_same_names_are_no_truth(run, tmp_path):
    stage, tree, _ = run
    (tree / 'img').rename(tmp_path / 'cities')  # but the labeled images stay in the tree
    (tree / 'img').mkdir()
    for path in (tmp_path / 'cities').glob('labeled_*'):
        path.rename(tree / 'img' / path.name)
    config = stage / 'config.py'
    source = "train_dataloader['dataset']['datasets'][1]"
    prefix = dict(img_path=str(tmp_path / 'cities'))
    config.write_text(f"{config.read_text()}\n{source}['data_prefix'] = {prefix!r}\n")
    store = str(stage / 'pseudo_labels')
    assert inspect.main([store])['num_true_pixels'] == 0
    assert inspect.main([store, '--mask-dir', str(tree / 'ann')])['num_true_pixels'] > 0


def test_the_best_and_the_worst_images_are_shown(run):
    stage, tree, _ = run
    cfg = Config.fromfile(stage / 'config.py')
    inspector = inspect.Inspector(
        PseudoLabelStore(stage / 'pseudo_labels'), inspect.LabelSource(cfg)
    )
    inspector.run()
    order = [score.name for score in inspector.scores]
    # Without a mask an image is ranked by its confidence.
    with_truth = [name for name in order if name != 'unlabeled_0']
    assert with_truth == [f'unlabeled_{index}' for index in (5, 4, 3, 2, 1)]
    assert [s.value for s in inspector.scores if s.name == 'unlabeled_5'] == [1.0]
    row = inspector._row('unlabeled_5')
    assert len(row) == 5 and len(inspector._row('unlabeled_0')) == 3
    image = np.asarray(Image.open(tree / 'img' / 'unlabeled_5.png'))
    np.testing.assert_array_equal(row[0], image)
    # Labels in the dataset's colors, none where a label was not kept.
    blended = np.rint(0.4 * image[10, 20] + 0.6 * np.array(PALETTE[1], np.float32))
    np.testing.assert_allclose(row[1][10, 20], blended, atol=1)
    np.testing.assert_array_equal(row[1][-1], image[-1])
    marks = inspector._row('unlabeled_3')[4]
    assert marks[5, 5].tolist() == inspect.WRONG and marks[20, 20].tolist() == inspect.RIGHT
    assert marks[-1, 0].tolist() == marks[0, 0].tolist() == [255, 255, 255]


def test_the_sheet(run):
    stage, _, _ = run
    inspect.main([str(stage / 'pseudo_labels'), '--pictures', '2', '--out-dir', str(stage / 'x')])
    sheet = cv2.imread(str(stage / 'x' / 'sheet.png'))
    assert sheet.shape[0] > 4 * 32 and sheet.shape[1] == 640  # that of the legend: no blank cells
    for color in inspect.LEGEND.values():  # RGB, the sheet is BGR
        assert (sheet == np.array(color)[::-1]).all(-1).any()
    assert sorted(path.name for path in (stage / 'x').iterdir()) == [
        'quality.json',
        'quality.txt',
        'sheet.png',
    ]


def test_more_pictures_than_images(run):
    stage, _, _ = run
    quality = inspect.main([str(stage / 'pseudo_labels'), '--pictures', '50'])
    assert quality['num_images'] == 6


def test_without_any_mask(run, tmp_path):
    stage, _, _ = run
    quality = inspect.main(
        [str(stage / 'pseudo_labels'), '--mask-dir', str(tmp_path / 'none'), '--pictures', '1']
    )
    assert quality['num_true_pixels'] == 0 and quality['miou'] is None
    assert quality['kept_share'] == pytest.approx(0.75)


def test_masks_of_another_folder_and_size(run, tmp_path):
    stage, _, truth = run
    large = truth.repeat(2, 0).repeat(2, 1)
    for index in range(6):
        write_mask(tmp_path / 'masks' / f'unlabeled_{index}_gt.png', large)
    arguments = ['--mask-dir', str(tmp_path / 'masks'), '--mask-suffix', '_gt.png']
    quality = inspect.main([str(stage / 'pseudo_labels'), *arguments, '--pictures', '0'])
    assert quality['num_true_pixels'] == 6 * (truth != 255).sum()
    assert not (stage / 'inspection' / 'sheet.png').exists()


def test_what_is_not_there_is_named(run, tmp_path):
    stage, _, _ = run
    with pytest.raises(FileNotFoundError, match='--config'):
        inspect.main([str(tmp_path / 'store')])
    (stage / 'pseudo_labels' / 'manifest.json').unlink()
    with pytest.raises(StoreIncompleteError, match='labeling was not finished'):
        inspect.main([str(stage / 'pseudo_labels')])
    cfg = Config.fromfile(stage / 'config.py')
    cfg.train_dataloader.dataset.datasets = cfg.train_dataloader.dataset.datasets[:1]
    with pytest.raises(ValueError, match='a labeled and an unlabeled source, it has 1'):
        inspect.LabelSource(cfg)


def test_the_rounds_of_a_chain(run, tmp_path, capsys):
    stage, _, truth = run
    chain = tmp_path / 'chain'
    for number, wrong in ((2, 0), (10, 16)):
        folder = chain / f'stage_{number}_a'
        folder.mkdir(parents=True)
        (folder / 'config.py').write_text((stage / 'config.py').read_text())
        store = PseudoLabelStore(folder / 'pseudo_labels')
        store.begin(dict(ratio=0.5, num_classes=4, checkpoint=dict(file='teacher.pth')))
        label = np.where(truth == 255, 0, truth).astype(np.uint8)
        label[4 : 4 + wrong] = 2
        store.put('unlabeled_1', label, np.full(SIZE, 0.95, np.float32))
        store.finish(['unlabeled_1'], THRESHOLDS)
    (chain / 'stage_11_a' / 'pseudo_labels').mkdir(parents=True)  # being labeled
    found = inspect.main([str(chain), '--pictures', '0'])
    assert list(found) == ['stage_2_a', 'stage_10_a']
    assert json.loads((chain / 'inspection' / 'rounds.json').read_text()) == found
    assert (chain / 'stage_2_a' / 'inspection' / 'quality.json').is_file()
    assert found['stage_2_a']['accuracy'] == 1
    assert found['stage_10_a']['accuracy'] == pytest.approx(1 - 16 / 30)
    text = (chain / 'inspection' / 'rounds.txt').read_text()
    printed = capsys.readouterr().out
    assert text.strip() in printed and 'stage_11_a' in printed
    overview, shares, precision, _ = text.split('\n\n')
    assert '46.67' in overview and '100.00' in overview
    # The class that labels replace others with has half of what is kept, and none of the truth.
    cells = [line.strip('|').split('|') for line in shares.splitlines() if line.startswith('|')]
    assert [cell.strip() for cell in cells[3][1:]] == ['0.00', '50.00', '0.00']
    assert 'correct of kept' in precision
