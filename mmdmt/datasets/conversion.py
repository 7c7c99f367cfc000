"""What the dataset converters share: masks written atomically, in parallel, once."""

import contextlib
import multiprocessing
from collections.abc import Iterable
from pathlib import Path
from typing import Callable, NamedTuple, Union

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmdmt.files import atomic_path, remove_stale_temporaries


class ConversionError(RuntimeError):
    """A file cannot be converted; the message names it."""


class Job(NamedTuple):
    """One file to write.

    Attributes:
        output: The file.
        function: Returns its pixels, (H, W) or (H, W, 3) uint8. A function of a module, so that
            it can be sent to another process.
        args: What ``function`` is called with.
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
    """Write all files that do not exist yet, with a progress bar.

    A run that was cut goes on where it was: a file that exists is complete.

    Args:
        jobs: What to write.
        workers: Number of processes; 1 works in this one.
        overwrite: Whether to write files that exist again.
        title: Shown beside the progress bar.

    Returns:
        The number of files written.

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


def require_folder(path: Union[str, Path], what: str) -> Path:
    """Give ``path`` if it is a folder.

    Raises:
        ConversionError: If it is not, saying ``what`` should be there.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConversionError(f'{path} is not a folder; {what} should be there')
    return path
