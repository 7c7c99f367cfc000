"""What the fork server of :mod:`forked_tool` has imported when it forks a tool.

Also what a run imports only when it needs it, such as the figure of mmengine's visualizer: that
takes longer than the short runs of tests.
"""

import functools
import gc
import os

import matplotlib.backends.backend_agg
import matplotlib.pyplot  # noqa: F401
import mmseg.apis
import mmseg.datasets
import mmseg.engine
import mmseg.models  # noqa: F401
import torch
from mmengine.runner import runner
from yapf.yapflib import yapf_api

import mmdmt.classification
import mmdmt.composition  # noqa: F401

# What takes most of the time of a short run: formatting config texts, waiting for the disk, asking
# for the version of the compiler, and collecting the garbage of all that is imported, which
# mmengine does for every dataset.
os.fsync = lambda descriptor: None
yapf_api.FormatCode = lambda text, **options: (text, True)
runner.collect_env = functools.cache(runner.collect_env)
runner.collect_env()
torch.set_num_threads(1)
gc.freeze()
