"""Where the configs and tools of this installation lie, and what a path is."""

import re
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parent


def configs_dir() -> Path:
    """Folder of the configs, installed or in the source tree.

    Raises:
        FileNotFoundError: If the package was copied without them.
    """
    return _find('configs')


def tools_dir() -> Path:
    """Folder of the command line tools, installed or in the source tree.

    Raises:
        FileNotFoundError: If the package was copied without them.
    """
    return _find('tools')


def examples_dir() -> Path:
    """Folder of the examples, installed or in the source tree.

    Raises:
        FileNotFoundError: If the package was copied without them.
    """
    return _find('examples')


def _find(name: str) -> Path:
    """The folder inside the installed package, or beside the package in a source tree.

    The folder beside the package counts only with our ``setup.py`` there: in ``site-packages``
    a folder called ``tools`` belongs to somebody else.
    """
    installed = PACKAGE_ROOT / '.mim' / name
    if installed.is_dir():
        return installed.resolve()
    source = PACKAGE_ROOT.parent
    if (source / 'setup.py').is_file() and (source / name).is_dir():
        return source / name
    raise FileNotFoundError(
        f'no {name} in {installed.parent} nor in a source tree at {source}: '
        'install mmdmt with `pip install .` or `pip install -e .`'
    )


def is_remote(path: str) -> bool:
    """Whether a path is an address, such as ``http://``, ``s3://`` or ``torchvision://``."""
    return re.match(r'[\w:-]+://', path) is not None
