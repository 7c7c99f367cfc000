"""mmdmt: semi-supervised semantic segmentation for MMSegmentation.

Importing the package registers everything it has, so that
``custom_imports = dict(imports=['mmdmt'])`` is all a config needs.
"""

from mmdmt.utils.dependencies import check_dependencies

from .version import __version__

check_dependencies()

from . import datasets, engine, evaluation, models, pseudo  # noqa: E402

__all__ = ['__version__', 'datasets', 'engine', 'evaluation', 'models', 'pseudo']
