"""mmdmt: semi-supervised semantic segmentation for MMSegmentation.

Importing the package registers everything it has, so that
``custom_imports = dict(imports=['mmdmt'])`` is all a config needs.
"""

from mmdmt.dependencies import check_dependencies
from mmdmt.version import __version__

check_dependencies()

from mmdmt import datasets, engine, evaluation, models, pseudo  # noqa: E402

__all__ = ['__version__', 'datasets', 'engine', 'evaluation', 'models', 'pseudo']
