"""What the dataset converters share: masks written atomically, in parallel, once."""

import contextlib
import multiprocessing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Callable, NamedTuple, Union

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmdmt.files import atomic_path, remove_stale_temporaries

#: Training ids, 0 to 18, of the ids that Cityscapes has in its files. GTA5 has the same ids.
CITYSCAPES_TRAIN_IDS = {
    number: train_id
    for train_id, number in enumerate(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    )
}

#: End of the labels that a converter writes beside the original ones.
TRAIN_IDS = '_labelTrainIds.png'


class ConversionError(RuntimeError):
    """A file cannot be converted; the message names it."""


class Job(NamedTuple):
    """One file to write: ``function(*args)`` gives its pixels, as :func:`save_png` takes them.

    It must be a function of a module, so that it can be sent to another process.
    """

    output: Path
    function: Callable[..., np.ndarray]
    args: tuple


def save_png(path: Union[str, Path], pixels: np.ndarray) -> None:
    """Write uint8 pixels, (H, W) or (H, W, 3) RGB, to a PNG file that is complete or absent.

    Raises:
        ConversionError: If the pixels are not of that kind.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ConversionError(
            f'{path}: pixels must be uint8 of 2 or 3 dimensions, got {pixels.dtype} of the shape '
            f'{pixels.shape}'
        )
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format='PNG')


def convert_all(
    jobs: Iterable[Job], workers: int = 1, overwrite: bool = False, title: str = ''
) -> int:
    """Write all files that do not exist yet, with a progress bar; return how many.

    A run that was cut goes on where it was: a file that exists is complete. A single worker is this
    process itself.

    Raises:
        ConversionError: If a file cannot be converted, naming it.
    """
    jobs = list(jobs)
    for folder in {job.output.parent for job in jobs if job.output.parent.is_dir()}:
        remove_stale_temporaries(folder)
    open_jobs = [job for job in jobs if overwrite or not job.output.exists()]
    bar = dict(total=len(jobs), initial=len(jobs) - len(open_jobs), desc=title, unit='file')
    with contextlib.ExitStack() as stack:
        done = map(_run, open_jobs)
        if workers > 1:
            pool = stack.enter_context(multiprocessing.Pool(workers))
            done = pool.imap_unordered(_run, open_jobs, chunksize=8)
        for _ in tqdm(done, **bar):
            pass
    return len(open_jobs)


def _run(job: Job) -> None:
    try:
        save_png(job.output, job.function(*job.args))
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(
            f'{job.output} cannot be made: {type(error).__name__}: {error}'
        ) from error


def read_ids(path: Union[str, Path]) -> np.ndarray:
    """Read a mask of class ids, (H, W) uint8, of gray or palette mode.

    Raises:
        ConversionError: If the file is of another mode.
    """
    with Image.open(path) as image:
        if image.mode not in ('L', 'P'):
            raise ConversionError(f'{path} has the mode {image.mode}, class ids need L or P')
        return np.array(image, dtype=np.uint8)


def map_ids(ids: np.ndarray, classes: Mapping[int, int]) -> np.ndarray:
    """Give every id of an unsigned array its class, uint8; 255 where it has none."""
    out = np.full(ids.shape, 255, dtype=np.uint8)
    for number, class_id in classes.items():
        out[ids == number] = class_id
    return out


def image_size(path: Union[str, Path]) -> tuple[int, int]:
    """Width and height of an image, from its header."""
    with Image.open(path) as image:
        return image.size


def paired(images: Path, labels: Path, suffix: str = '.png') -> list[str]:
    """Names (relative path without suffix) of the labels of a folder, which all have an image.

    Args:
        images (Path): Folder of the images, ``<name><suffix>``.
        labels (Path): Folder of the labels. Those that a converter wrote beside them
            (``*_labelTrainIds.png``) are left out.
        suffix (str): Of both.

    Raises:
        ConversionError: If a folder or an image is missing, or there is no label.
    """
    require_folder(images, 'the images')
    files = sorted(require_folder(labels, 'the labels').glob(f'*{suffix}'))
    names = [file.name[: -len(suffix)] for file in files if not file.name.endswith(TRAIN_IDS)]
    if not names:
        raise ConversionError(f'{labels} has no file *{suffix}')
    missing = [name for name in names if not (images / f'{name}{suffix}').is_file()]
    if missing:
        raise ConversionError(
            f'{len(missing)} labeled images are not in {images}, first {missing[0]}{suffix}'
        )
    return names


def require_folder(path: Union[str, Path], what: str) -> Path:
    """Give ``path`` if it is a folder, where ``what`` should be.

    Raises:
        ConversionError: If it is not.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConversionError(f'{path} is not a folder; {what} should be there')
    return path
