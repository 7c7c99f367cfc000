"""Check at import that the host libraries are there and fit, with the command that mends them.

Imports nothing but the standard library at the top: it runs before anything else can be trusted.
The bounds are those of ``requirements/mminstall.txt``, widened downwards to the last releases of
the official OpenMMLab distributions, which have the same import names.
"""

import contextlib
import importlib
import importlib.util
import io
import re
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple, Optional, Tuple


class Dependency(NamedTuple):
    """A package that must be importable in a range of versions."""

    module: str
    minimum: str
    below: Optional[str]  # the first version not known to work
    install: str  # what to give to `pip install`
    official: Tuple[str, str] = ('', '')  # the OpenMMLab distribution, and its `install`

    @property
    def bounds(self) -> str:
        """The range as pip writes it."""
        return f'>={self.minimum}' + (f',<{self.below}' if self.below else '')

    @property
    def command(self) -> str:
        """The command that brings a version that works, of the distribution that is in use."""
        name, requirement = self.official
        chosen = requirement if name and _is_installed(name) else self.install
        return f'pip install {chosen}'


# fmt: off
DEPENDENCIES = (
    Dependency('torch', '2.1.0', None, '"torch>=2.4" torchvision'),
    Dependency('mmengine', '0.10.0', '0.11.0', '"onedl-mmengine>=0.10.12,<0.11"',
               ('mmengine', '"mmengine>=0.10.7,<0.11"')),
    Dependency('mmcv', '2.0.0', '2.4.0', '"onedl-mmcv>=2.3.6,<2.4"',
               ('mmcv', '"mmcv>=2.0.1,<2.2"')),
    Dependency('mmseg', '1.2.0', '1.5.0', '"onedl-mmsegmentation>=1.4.2,<1.5"',
               ('mmsegmentation', '"mmsegmentation>=1.2.2,<1.3"')),
)
MMPRETRAIN = Dependency('mmpretrain', '1.2.0', '1.4.0', '"onedl-mmpretrain>=1.3.6,<1.4"',
                        ('mmpretrain', '"mmpretrain>=1.2.0,<1.3"'))
# fmt: on
_UNDECLARED_BY_MMSEG = ('ftfy', 'regex')


def check_dependencies() -> None:
    """Import the host libraries and compare their versions.

    Raises:
        ImportError: With one sentence: what is missing, broken or of a wrong version, and the
            command that mends it.
    """
    with without_noise():
        for dependency in DEPENDENCIES:
            _check(dependency)
    _check_torchvision()
    for name in _UNDECLARED_BY_MMSEG:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f'mmdmt needs {name}, which mmseg.models imports but mmsegmentation does not '
                f'install: run `pip install {name}`.'
            )
    with without_noise():
        _check_mmseg_models()


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Keep from the terminal what hosts print about their own optional parts at each import."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Fail to import')
            yield
    finally:
        lines = printed.getvalue().splitlines()
        for line in lines:
            if line != 'Could not import OneDL':
                print(line)


def check_optional(dependency: Dependency, purpose: str) -> None:
    """The same for a library that only a part of the package needs: its ``purpose``."""
    try:
        with without_noise():
            _check(dependency)
    except ImportError as error:
        raise ImportError(f'{purpose}: {error}') from error


def _check(dependency: Dependency) -> None:
    """Tell a package that is missing from one that is broken and from a wrong version."""
    name = dependency.module
    wanted, run = f'mmdmt needs {name}{dependency.bounds}', f'run `{dependency.command}`.'
    try:
        module = importlib.import_module(name)
    except Exception as error:  # mmseg asserts versions, a broken binary raises OSError, ...
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise ImportError(f'{wanted}, which is not installed: {run}') from None
        raise ImportError(f'mmdmt cannot import {name} ({_reason(error)}): {run}') from error
    version = str(getattr(module, '__version__', '0'))
    release = _release(version)
    too_new = dependency.below is not None and release >= _release(dependency.below)
    if release < _release(dependency.minimum) or too_new:
        raise ImportError(f'{wanted}, but {version} is installed: {run}')


def _check_torchvision() -> None:
    """A torchvision built for another torch dies late and obscurely, inside timm or mmseg."""
    if importlib.util.find_spec('torchvision') is None:
        return
    try:
        importlib.import_module('torchvision')
    except Exception as error:
        raise ImportError(
            f'torchvision does not fit the installed torch ({_reason(error)}): '
            'run `pip install --force-reinstall torch torchvision`, both in one command.'
        ) from error


def _check_mmseg_models() -> None:
    """Official mmseg needs compiled ``mmcv.ops``, which only its models reveal."""
    try:
        importlib.import_module('mmseg.models')
    except Exception as error:
        command = 'pip install -r requirements/mminstall.txt'
        if 'mmcv._ext' in str(error):
            command = 'MMCV_WITH_OPS=1 pip install "mmcv>=2.0.1,<2.2" --no-build-isolation'
        raise ImportError(
            f'mmdmt cannot import mmseg.models ({_reason(error)}): run `{command}`.'
        ) from error


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def _is_installed(distribution: str) -> bool:
    """Whether pip knows a distribution of this name."""
    return any(metadata.distributions(name=distribution))


def _release(version: str) -> Tuple[int, ...]:
    """``'2.15.0+cu130'`` -> ``(2, 15, 0)``; at least three numbers."""
    numbers = [int(part) for part in re.findall(r'\d+', version.split('+')[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
