"""A config whose text is formatted once, not for each log, file and checkpoint of a run."""

import copy
from typing import Tuple

from mmengine.config import Config


class FormattedConfig(Config):
    """mmengine's :class:`Config`, which remembers its text while it does not change.

    mmengine formats a config five times until the first checkpoint is written, and once more for
    each other; for the stages of a DMT chain that takes a second each time.
    """

    _formatted: Tuple[str, str] = ('', '')

    @classmethod
    def of(cls, cfg: Config) -> 'FormattedConfig':
        """The same settings; changes of one are seen in the other."""
        formatted = cls.__new__(cls)
        formatted.__setstate__(cfg.__getstate__())
        return formatted

    @property
    def pretty_text(self) -> str:
        """The config as Python code."""
        plain = copy.copy(self)
        plain.__dict__['_format_python_code'] = False
        written = Config.pretty_text.fget(plain)
        if written != self._formatted[0]:
            self.__dict__['_formatted'] = written, Config.pretty_text.fget(self)
        return self._formatted[1]
