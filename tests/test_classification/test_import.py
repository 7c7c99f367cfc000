"""The optional half of the package."""

import subprocess
import sys

import pytest
from tiny_project import environment

from mmdmt import dependencies

HIDDEN = """
import sys
sys.modules['mmpretrain'] = None
import mmdmt
print('mmdmt is imported')
import mmdmt.classification
"""


def test_without_mmpretrain_only_classification_is_missing():
    done = subprocess.run(
        [sys.executable, '-c', HIDDEN], capture_output=True, text=True, env=environment()
    )
    assert 'mmdmt is imported' in done.stdout, done.stderr[-2000:]
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith('ImportError: image classification: mmdmt needs mmpretrain>=1.2.0')
    assert 'run `pip install' in message


def test_an_old_mmpretrain_is_refused(monkeypatch):
    import mmpretrain

    monkeypatch.setattr(mmpretrain, '__version__', '1.0.0')
    with pytest.raises(ImportError, match=r'mmpretrain>=1\.2\.0,<1\.4\.0, but 1\.0\.0'):
        dependencies.check_optional(dependencies.MMPRETRAIN, 'image classification')


def test_the_bounds_are_those_of_the_requirements():
    from pathlib import Path

    lines = (Path(__file__).parents[2] / 'requirements' / 'optional.txt').read_text().split('\n')
    assert dependencies.MMPRETRAIN.install.strip('"') in lines
