"""Version of the package, read by ``setup.py`` and printed in logs."""

__version__ = '0.2.0'
