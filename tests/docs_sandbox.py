"""What the guides take for granted when their commands are run (``docs_commands.py``).

Datasets of a few images where the configs look for them, files and runs that a page speaks of, and
what stands for its placeholders. Commands that cannot be run are listed with the reason, no others.
"""

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Dict, NamedTuple

import numpy as np
from PIL import Image
from short_runs import ROUNDS, STEPS
from stock_data import STOCK
from tiny_classification import make_cifar
from tiny_layouts import LAYOUTS, Layout
from tiny_shift import make_cities, make_gta5, make_synthia
from toy_scenes import generate

ROOT = Path(__file__).resolve().parents[1]
TOY = 'fcn_unet_toy-scenes-96x96'
LEFT_OUT = {'.git', '.venv', 'work_dirs', 'data', 'build', 'dist', '.ruff_cache', '.pytest_cache'}

#: Commands that are not run: pages, what the command begins with, and why.
EXCEPTIONS = [
    ('CONTRIBUTING.md', 'make install', 'installs from the internet'),
    ('CONTRIBUTING.md', 'make docs-test', 'is what runs these commands'),
    ('README.md', 'pip install torch', 'installs from the internet'),
    ('README.md', 'pip install -e', 'installs from the internet'),
    ('docs/benchmark.md', 'srun ', 'needs Slurm'),
    ('docs/data.md', 'python tools/model_converters/advsemiseg', 'needs published weights'),
    ('docs/unimatch_v2.md', 'python tools/model_converters/', 'needs published weights'),
]


class Rule(NamedTuple):
    """What a block needs: pages, a text that the block has, names, and commands before it."""

    pages: str
    has: str
    names: Dict[str, str]
    before: str = ''


def run_of(config, **names):
    """Names of a config, of its work dir and of the checkpoint there."""
    folder = f'work_dirs/{Path(config).name}'
    own = dict(CONFIG=f'configs/{config}.py', WORK_DIR=folder, CHECKPOINT=f'{folder}/final.pth')
    return {**own, **names}


def trained(name, config):
    """Command for a work dir that a page speaks of."""
    return (
        f'[ -e {name}/final.pth ] || python tools/train.py configs/{config}.py --work-dir {name}\n'
    )


VOC = 'deeplabv3plus_r50_pascal_voc12-321x321'
MSRC21 = 'deeplabv3plus_mobilenetv2_msrc21-96x96'
LARGER = 'deeplabv3plus_mobilenetv2_msrc21-192x192'
FOLDER = 'deeplabv3plus_mobilenetv2_folder-512x512'
SHIFT = 'dmt_segformer_mit-b5_gta5-cityscapes-512x512'
DMT = trained('work_dirs/dmt', f'dmt/dmt_{TOY}')
#: The first rules are the most general ones.
RULES = [
    Rule(
        '*',
        '',
        run_of(
            f'mean_teacher/mean-teacher_{TOY}',
            IMAGES='data/toy_scenes/img/test',
            DIR='out',
            FOLDER='my_polyps',
            FOLDER_OR_LIST='more_images',
            **{'ANY_MMSEG_CONFIG.py': f'{STOCK}/fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'},
        ),
    ),
    Rule(
        'README.md',
        'OTHER_WORK_DIR',
        run_of(f'mean_teacher/mean-teacher_{VOC}', OTHER_WORK_DIR=f'work_dirs/{VOC}'),
        trained(f'work_dirs/{VOC}', f'supervised/{VOC}'),
    ),
    Rule(
        'docs/classification.md', '', run_of('dmt_classification/dmt_wrn-28-2_4000_cifar10-32x32')
    ),
    Rule('docs/classification.md', '--img-dir my_data', {}, 'rm -r my_data; mv my_classes my_data'),
    Rule('docs/configs.md', '--stage', run_of(f'dmt/dmt_{TOY}')),
    Rule(
        'docs/configs.md',
        'cityscapes_sliding',
        run_of('supervised/deeplabv3plus_r50_cityscapes-801x801'),
    ),
    Rule('docs/cross_teacher.md', '', run_of(f'cross_teacher/cross-teacher_{TOY}')),
    Rule(
        'docs/data.md',
        'trainaug.txt',
        {},
        'seq -w 10582 > trainaug.txt; seq -w 2975 > train.txt; cp -r data/msrc21/img/train images',
    ),
    Rule(
        'docs/data.md', 'sed -E', {}, 'echo JPEGImages/a.jpg SegmentationClass/a.png > labeled.txt'
    ),
    Rule('docs/data.md', 'work_dirs/dmt', {}, DMT),
    Rule('docs/data.md', 'CONFIG', run_of(f'supervised/{TOY}')),
    Rule('docs/dmt.md', 'CONFIG', run_of(f'dmt/dmt_{TOY}')),
    Rule(
        'docs/domain_shift.md',
        'STORE',
        run_of(f'dmt/{SHIFT}', STORE=f'work_dirs/{SHIFT}/stage_1_a/pseudo_labels'),
    ),
    Rule('docs/own_data.md', '--data my_data', {}, 'mv my_data my_cats; mv my_polyps my_data'),
    Rule('docs/own_data.md', '--by-mask', {}, 'rm -r my_data my_cats/splits; mv my_cats my_data'),
    Rule('docs/own_data.md', '--class-aware', {'my_data': 'my_masks'}),
    Rule(
        'docs/own_data.md',
        'my_baseline.py',
        {},
        "sed 's#dmt/dmt_#supervised/#' my_config.py > my_baseline.py",
    ),
    Rule(
        'docs/predict.md',
        'list.txt',
        {
            'list.txt --out predicted': 'list.txt --out predicted_2',
            'predicted --config': 'predicted_3 --config',
        },
    ),
    Rule('docs/reliability.md', 'work_dirs/dmt', {}, DMT),
    Rule(
        'docs/report.md',
        '',
        {},
        trained('work_dirs/labeled_only', f'supervised/{TOY}') + DMT,
    ),
    Rule('docs/results.md', 'CONFIG', run_of(f'supervised/{MSRC21}')),
    Rule('docs/results.md', 'split_dataset', {}, 'rm -r data/msrc21/splits/1_8'),
    Rule(
        'docs/results.md',
        'benchmark_pseudo',
        run_of(f'supervised/{LARGER}'),
        trained(f'work_dirs/{LARGER}', f'supervised/{LARGER}'),
    ),
    Rule(
        'docs/running.md',
        'other_classes.pth',
        run_of(f'supervised/{TOY}'),
        'cp CHECKPOINT other_classes.pth',
    ),
    Rule(
        'docs/running.md',
        'WORK_DIR ...',
        {'WORK_DIR ...': run_of(f'mean_teacher/mean-teacher_{TOY}')['WORK_DIR']},
    ),
    Rule('docs/st.md', 'CONFIG', run_of(f'st/st-plus-plus_{TOY}')),
    Rule(
        'docs/st.md',
        'rank_images',
        {},
        trained('work_dirs/my_st_plus_plus', f'st/st-plus-plus_{TOY}'),
    ),
    Rule('configs/dmt/README.md', '', run_of(f'dmt/dmt_{FOLDER}')),
    Rule('configs/st/README.md', '', run_of(f'st/st-plus-plus_{FOLDER}')),
    Rule('configs/dual_teacher/README.md', 'comm ', {}, 'cp -r data/VOCdevkit/VOC2012/ImageSets .'),
    Rule('configs/supervised/README.md', '', run_of(f'supervised/{VOC}')),
]
#: In all blocks and files: what would be elsewhere on the reader's machine, and lengths of runs.
EVERYWHERE = [
    (r'(?<![\w.])/data/', 'data/'),
    (r'/path/to/(images|my_data)', 'my_data'),
    (r'\b(stage|round)_[2-9]([_.])', rf'\1_{ROUNDS}\2'),
    (r'\biter_\d+\.pth', f'iter_{STEPS}.pth'),
]


def exception_of(page, command):
    """Why a command is not run; None if it is."""
    for pages, begins, why in EXCEPTIONS:
        if fnmatch(page, pages) and command.startswith(begins):
            return why
    return None


def rules_of(block):
    """The rules of a block."""
    return [rule for rule in RULES if fnmatch(block.page, rule.pages) and rule.has in block.text]


def prepare(block):
    """What bash runs before a block, and for it."""
    from docs_commands import commands_of

    names, before = {}, ''
    for rule in rules_of(block):
        names.update(rule.names)
        before += rule.before.rstrip() + '\n' if rule.before else ''
    lines = block.text.splitlines()
    for number, command in commands_of(block.text):
        if exception_of(block.page, command):
            size = command.count('\n') + 1
            lines[number : number + size] = [':'] * size
    text = '\n'.join(lines) + '\n'
    own = Path(names['CONFIG']).name
    wanted = re.search(r'\b(WORK_DIR|CHECKPOINT|STORE)\b', before + text)
    begins = re.search(rf'{own}|WORK_DIR|CHECKPOINT|STORE', f'{text}\n{before}')
    if wanted and begins and begins.group() != own:  # the block does not train it itself
        before = '[ -e CHECKPOINT ] || python tools/train.py CONFIG --work-dir WORK_DIR\n' + before
    return substitute(before, names), substitute(text, names)


def substitute(text, names=None):
    """Replace placeholders, and what is the same on all pages."""
    words = sorted(names or {}, key=len, reverse=True)
    if words:
        pattern = rf'(?<![\w$/{{-])({"|".join(map(re.escape, words))})(?!\w)'
        text = re.sub(pattern, lambda match: names[match.group(1)], text)
    for pattern, replacement in EVERYWHERE:
        text = re.sub(pattern, replacement, text)
    return text


# --- Files ---------------------------------------------------------------------------------------


def make_sandbox(folder, text):
    """A copy of this checkout with the data that a page needs."""

    def leave_out(path, names):
        inside = LEFT_OUT if Path(path) == ROOT else ()
        built = {'__pycache__', '.mim'}
        return [n for n in names if n in {*inside, *built} or n.endswith('.egg-info')]

    shutil.copytree(ROOT, folder, ignore=leave_out, dirs_exist_ok=True)
    make_datasets(folder, text)
    make_own(folder)


def make_datasets(folder, text):
    """The datasets of the configs, at the places where these look for them."""
    for name, layout in LAYOUTS.items():
        config = ROOT / 'configs' / '_base_' / 'datasets' / f'{name}.py'
        root = folder / re.search(r"^data_root = '(.*)'", config.read_text(), re.M).group(1)
        layout.write(root)
        for other in ('92', '1464', '1_16/fold_1', '1_20/fold_0', '1_32/fold_0'):
            if name != 'folder' and not (root / 'splits' / other).exists():
                shutil.copytree(root / layout.lists, root / 'splits' / other)
    lists = folder / 'data/VOCdevkit/VOC2012/ImageSets/Segmentation'
    (lists / 'train.txt').write_text('00\n01\n')
    (lists / 'trainaug.txt').write_text('00\n01\n02\n03\n')
    sizes = dict(num_train=12, num_val=2, num_test=4, num_labeled=4, progress=False)
    generate(folder / 'data/toy_scenes', **sizes)
    if 'dataset_converters' in text:
        shutil.rmtree(folder / 'data/cityscapes')
        make_gta5(folder / 'data/gta5', raw=True)
        make_synthia(folder / 'data/RAND_CITYSCAPES', raw=True)
        make_cities(folder / 'data/cityscapes', raw=True)
    if 'CIFAR10' in text:
        make_cifar(folder / 'data/cifar10', per_file=1000)


def make_own(folder):
    """Images and masks as readers have them."""
    rng = np.random.default_rng(0)
    own = Layout(3, ('images/train', 'masks/train'), ('images/val', 'masks/val'), lists='splits')
    own.write(folder / 'my_data')
    for name in [f'more_{number}' for number in range(50)]:
        save_image(folder / f'my_masks/images/train/{name}.jpg', rng)
        mask = folder / f'my_masks/masks/train/{name}.png'
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 3, (40, 48), dtype=np.uint8)).save(mask)
    for number in range(4):
        (folder / f'my_data/masks/train/0{number + 6}.png').unlink()  # unlabeled
        save_image(folder / f'more_images/{number}.jpg', rng)
        save_image(folder / f'images/{number}.jpg', rng)
    for number in range(8):
        save_image(folder / f'my_polyps/images/{number}.jpg', rng)
        if number < 6:
            path = folder / f'my_polyps/masks/{number}.png'
            path.parent.mkdir(exist_ok=True)
            mask = np.zeros((40, 48), np.uint8)
            mask[8:30, 5 + number : 30] = 255
            Image.fromarray(mask).save(path)
    for name in ('a.jpg', 'b.tif', 'c.png', 'some.jpg', 'image.png'):
        save_image(folder / name, rng)
    (folder / 'list.txt').write_text('c.png\n')
    (folder / 'labeled_44.txt').write_text('aachen/aachen_00\naachen/aachen_01\n')
    stock = f'{STOCK}/fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'
    (folder / 'my_config.py').write_text(f'# ruff: noqa\n_base_ = {stock!r}\n')
    for part, count in (('train', 40), ('test', 2)):
        for kind in 'abcde':
            for number in range(count):
                save_image(folder / f'my_classes/{part}/{kind}/{number:02}.jpg', rng, (16, 16))


def save_image(path, rng, size=(40, 48)):
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
