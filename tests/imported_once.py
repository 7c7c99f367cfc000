"""What the fork server of :mod:`forked_tool` has imported when it forks a tool.

Also what a run imports only when it needs it, such as the figure of mmengine's visualizer: that
takes longer than the short runs of tests.
"""

import distutils.errors  # noqa: F401
import gc

import matplotlib.backends.backend_agg
import matplotlib.pyplot  # noqa: F401
import mmseg.apis
import mmseg.datasets
import mmseg.engine
import mmseg.models  # noqa: F401
import torch
from yapf.yapflib import yapf_api

import mmdmt.classification
import mmdmt.composition  # noqa: F401

# What takes most of the time of a short run: formatting config texts, and collecting the garbage of
# all that is imported, which mmengine does for every dataset.
yapf_api.FormatCode = lambda text, **options: (text, True)
torch.set_num_threads(1)
gc.freeze()
