"""A small generated dataset in ordinary files, for demos, tests and first experiments.

::

    python examples/toy_scenes.py data/toy_scenes

The tree is laid out as a user's own dataset would be, so that nothing on the way from the files
to the network is special::

    root/
      img/{train,val,test}/0000.jpg      RGB images
      ann/{train,val,test}/0000.png      uint8 class ids
      splits/labeled.txt                 ids of the labeled training images, one per line
      splits/unlabeled.txt               ids of the other training images
      splits/{train,val,test}.txt        ids of all images of a part
      manifest.json                      what the tree was made from

``--style dusk`` paints other scenes of the same kind in another light, as the target of a domain
shift. ``--style clear`` paints easy ones, near things in common colors, which a small network
learns in minutes (``tools/demo.py``).

The unlabeled training images have masks too: training never reads them, but the quality of
pseudo-labels can be measured and the all-labels upper bound trained.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

import numpy as np
from mmengine.logging import print_log
from PIL import Image
from toy_scene_painter import STYLES, paint_scene
from tqdm import tqdm

PARTS = ('train', 'val', 'test')
_MANIFEST = 'manifest.json'
_GENERATOR = 'mmdmt.toy_scenes'
_VERSION = 1  # raise when the same seed gives other scenes


def generate(
    root: Union[str, Path],
    num_train: int = 320,
    num_val: int = 20,
    num_test: int = 100,
    num_labeled: int = 24,
    seed: int = 0,
    size: Tuple[int, int] = (96, 128),
    progress: bool = True,
    style: str = 'day',
) -> Path:
    """Write the dataset, or leave it alone where it already lies there complete.

    A scene depends on the seed, its part and its number only. The tree appears in one step when
    it is complete; an interrupted call leaves nothing at ``root``.

    Args:
        root: Folder to make. One made with other settings is replaced.
        num_train: Number of training images.
        num_val: Number of validation images.
        num_test: Number of held-out images.
        num_labeled: How many of the training images ``splits/labeled.txt`` lists.
        seed: Seed of everything random.
        size: Height and width in pixels.
        progress: Whether to show a progress bar.
        style: ``'day'``, ``'dusk'`` or ``'clear'``. The scenes of two styles are different draws.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: If there is nothing to label, or more to label than there is.
        FileExistsError: If ``root`` holds something that :func:`generate` did not make.
    """
    root = Path(root)
    counts = dict(zip(PARTS, (num_train, num_val, num_test)))
    settings = dict(
        generator=_GENERATOR,
        version=_VERSION,
        counts=counts,
        num_labeled=num_labeled,
        seed=seed,
        size=list(size),
    )
    if style != 'day':  # the manifests of trees that are there stay valid
        settings['style'] = style
    _check(root, settings)
    if is_complete(root, settings):
        print_log(f'{root}: {sum(counts.values())} scenes are there already', 'current')
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f'.{root.name}.', dir=root.parent))
    try:
        _write_images(draft, settings, progress)
        _write_splits(draft, settings)
        (draft / _MANIFEST).write_text(json.dumps(settings, indent=2) + '\n')
        draft.chmod(0o755)
        shutil.rmtree(root, ignore_errors=True)
        os.replace(draft, root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def render(
    seed: int, part: str, number: int, size: Tuple[int, int] = (96, 128), style: str = 'day'
) -> Tuple[np.ndarray, np.ndarray]:
    """Paint scene ``number`` of a part, as it is before JPEG compression.

    Args:
        seed: Seed of the dataset.
        part: ``'train'``, ``'val'`` or ``'test'``.
        number: Number of the scene in its part.
        size: Height and width in pixels.
        style: ``'day'``, ``'dusk'`` or ``'clear'``.

    Returns:
        The (H, W, 3) uint8 RGB image and the (H, W) uint8 mask.
    """
    seeds = [seed, PARTS.index(part), number]
    seeds += [STYLES.index(style)] if style != 'day' else []
    return paint_scene(np.random.default_rng(seeds), size, style)


def is_complete(root: Union[str, Path], settings: Dict[str, Any]) -> bool:
    """Whether ``root`` holds a tree made from these settings with every file in its place."""
    root = Path(root)
    if _read_manifest(root) != settings:
        return False
    return all(
        (root / folder / part / f'{number:04d}.{suffix}').is_file()
        for part, count in settings['counts'].items()
        for number in range(count)
        for folder, suffix in (('img', 'jpg'), ('ann', 'png'))
    )


def _check(root: Path, settings: Dict[str, Any]) -> None:
    """Refuse label counts that make no sense, and folders that are not ours to replace."""
    num_train, num_labeled = settings['counts']['train'], settings['num_labeled']
    if not 1 <= num_labeled <= num_train:
        raise ValueError(f'num_labeled={num_labeled}: choose between 1 and num_train={num_train}.')
    if settings.get('style', 'day') not in STYLES:
        raise ValueError(f'style={settings["style"]!r}: choose one of {STYLES}.')
    is_ours = _read_manifest(root).get('generator') == _GENERATOR
    is_free = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    if not (is_ours or is_free):
        raise FileExistsError(
            f'{root} exists and was not made by toy_scenes: '
            'choose another folder, or remove this one.'
        )


def _read_manifest(root: Path) -> Dict[str, Any]:
    """The settings a tree was made from; empty where there is no readable manifest."""
    try:
        return json.loads((root / _MANIFEST).read_text())
    except (OSError, ValueError):
        return {}


def _write_images(root: Path, settings: Dict[str, Any], progress: bool) -> None:
    """Paint and save every image and mask."""
    for folder in ('img', 'ann'):
        for part in PARTS:
            (root / folder / part).mkdir(parents=True)
    jobs = [(part, n) for part, count in settings['counts'].items() for n in range(count)]
    for part, number in tqdm(
        jobs, 'Painting scenes', unit='image', mininterval=1, disable=not progress
    ):
        size, style = tuple(settings['size']), settings.get('style', 'day')
        image, mask = render(settings['seed'], part, number, size, style)
        Image.fromarray(image).save(root / 'img' / part / f'{number:04d}.jpg', quality=92)
        Image.fromarray(mask).save(root / 'ann' / part / f'{number:04d}.png')


def _write_splits(root: Path, settings: Dict[str, Any]) -> None:
    """Write the id lists. Scenes are independent draws, so the first ones are as good as any."""
    names = {
        part: [f'{number:04d}' for number in range(count)]
        for part, count in settings['counts'].items()
    }
    names['labeled'] = names['train'][: settings['num_labeled']]
    names['unlabeled'] = names['train'][settings['num_labeled'] :]
    (root / 'splits').mkdir()
    for name, ids in names.items():
        _write_list(root / 'splits' / f'{name}.txt', ids)


def _write_list(path: Path, ids: List[str]) -> None:
    """Write ids, one per line."""
    path.write_text(''.join(f'{line}\n' for line in ids))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Paint scenes, their masks and lists of them.')
    parser.add_argument('root', help='folder to write')
    parser.add_argument('--seed', type=int, default=0, help='other scenes, other labels')
    parser.add_argument('--labeled', type=int, default=24, help='number of labeled scenes')
    parser.add_argument('--style', choices=STYLES, default='day', help='light of the scenes')
    return parser.parse_args()


def main() -> None:
    """Write the dataset that the command line asks for."""
    args = parse_args()
    print(generate(args.root, seed=args.seed, num_labeled=args.labeled, style=args.style))


if __name__ == '__main__':
    main()
