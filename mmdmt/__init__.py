"""mmdmt: semi-supervised semantic segmentation for MMSegmentation.

Importing the package registers everything it has, so that
``custom_imports = dict(imports=['mmdmt'])`` is all a config needs.
"""

from mmdmt.dependencies import check_dependencies, without_noise
from mmdmt.version import __version__

check_dependencies()

with without_noise():
    from mmdmt import datasets, engine, evaluation, models, pseudo

__all__ = ['__version__', 'datasets', 'engine', 'evaluation', 'models', 'pseudo']
