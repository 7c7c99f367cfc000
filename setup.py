"""Build of the package; settings of tools are in pyproject.toml.

Configs, tools and ``model-index.yml`` lie beside the package in the source tree and travel inside
it, in ``mmdmt/.mim``, when it is installed: that is where openmim and ``mmdmt.files`` look.
"""

import re
import shutil
from pathlib import Path
from typing import List

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_PARTS = ('configs', 'tools', 'examples', 'model-index.yml')


class BuildWithMim(build_py):
    """``build_py`` that adds ``mmdmt/.mim``: copied into wheels, linked for editable installs."""

    def run(self) -> None:
        super().run()
        editable = getattr(self, 'editable_mode', False)
        target = (ROOT if editable else Path(self.build_lib)) / 'mmdmt' / '.mim'
        _remove(target)  # build/ outlives files that were deleted or renamed since
        target.mkdir(parents=True)
        for name in MIM_PARTS:
            if editable:
                _link(ROOT / name, target / name)
            else:
                _copy(ROOT / name, target / name)


def _remove(folder: Path) -> None:
    """Remove a folder of copies or links, never what the links point to."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.is_symlink() or entry.is_file():
                entry.unlink()
        shutil.rmtree(folder)


def _link(source: Path, target: Path) -> None:
    """Link a part; where links are forbidden (Windows) the source tree is found without."""
    try:
        target.symlink_to(Path('..', '..', source.name), target_is_directory=source.is_dir())
    except OSError as error:
        print(f'no link {target}: {error}')


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without what Python leaves in it."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', '*.py[cod]'))
    else:
        shutil.copy2(source, target)


def requirements(name: str) -> List[str]:
    """Requirements of ``requirements/<name>.txt``, with the files it includes."""
    found = []
    for line in (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines():
        line = line.split('#')[0].strip()
        if line.startswith('-r'):
            found += requirements(line[2:].strip().rsplit('.', 1)[0])
        elif line:
            found.append(line)
    return found


def version() -> str:
    """Version from ``mmdmt/version.py``, which cannot be imported before torch is there."""
    text = (ROOT / 'mmdmt' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '(.+)'", text).group(1)


def readme() -> str:
    """Long description."""
    path = ROOT / 'README.md'
    return path.read_text(encoding='utf-8') if path.exists() else ''


EXTRAS = {name: requirements(name) for name in ('optional', 'tests', 'docs')}

setup(
    name='mmdmt',
    version=version(),
    description='Semi-supervised semantic segmentation for MMSegmentation',
    long_description=readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords=[
        'computer vision',
        'semantic segmentation',
        'semi-supervised learning',
        'pseudo-labels',
        'openmmlab',
    ],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=['mmdmt', 'mmdmt.*']),
    package_data={'mmdmt.evaluation.report': ['templates/*']},
    python_requires='>=3.9',
    install_requires=requirements('runtime') + requirements('mminstall'),
    extras_require={**EXTRAS, 'all': sorted({item for extra in EXTRAS.values() for item in extra})},
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
