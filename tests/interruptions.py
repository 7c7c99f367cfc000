"""A hook for real processes that tests kill, or let fail, at a chosen place."""

import os

from forked_tool import ForkedTool, forked_ranks

#: ``HOLD_AT=<place>`` holds the process there, after it has made ``HOLD_FILE``, so that a test can
#: kill it exactly there. ``FAIL_AT='<rank> <place>'`` is an error: a full disk while it writes.
HOOK = """
import errno, os, time
from pathlib import Path
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

def reach(where, error=None):
    if os.environ.get('HOLD_AT') == where:
        Path(os.environ['HOLD_FILE']).touch()
        time.sleep(3600)
    if os.environ.get('FAIL_AT') == f'{get_rank()} {where}':
        raise error or ValueError(f'failed {where}')

@HOOKS.register_module()
class InterruptionHook(Hook):
    priority = 'LOWEST'
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        reach(f'before {runner.iter}')
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        reach(f'after {runner.iter}')
    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        reach(f'validating {runner.iter}')

replace = os.replace
def slow_replace(source, target):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for parts in (1, 2):  # 'iter_2.pth', 'stage_0_b/iter_2.pth'
        reach('writing ' + '/'.join(Path(target).parts[-parts:]), full)
    replace(source, target)
os.replace = slow_replace
"""


def make_hook(folder):
    """Write the module of the hook into a folder that :func:`train` gets as ``tree``."""
    (folder / 'interruption_hook.py').write_text(HOOK)
    return folder


def add_hook(cfg):
    """Let a config use the hook."""
    imports = ['mmdmt', 'interruption_hook']
    cfg['custom_imports'] = dict(imports=imports, allow_failed_imports=False)
    cfg.setdefault('custom_hooks', []).append(dict(type='InterruptionHook'))
    return cfg


def train(tree, config, *args, launch=ForkedTool, **environment):
    """Start ``tools/train.py``."""
    log = config.with_suffix('.log')
    return launch('train.py', config, *args, log=log, PYTHONPATH=str(tree), **environment)


def hold(tree, config, where, *args, launch=ForkedTool):
    """Start training and wait until it is held at ``where``; returns its processes."""
    held = config.with_name('held')
    held.unlink(missing_ok=True)
    tools = train(tree, config, *args, launch=launch, HOLD_AT=where, HOLD_FILE=str(held))
    tools = tools if isinstance(tools, list) else [tools]
    tools[0].wait_for(held)
    return tools


def kill_held(tree, config, where, *args, launch=ForkedTool):
    """Train until the process is at ``where``, then SIGKILL it there."""
    for tool in hold(tree, config, where, *args, launch=launch):
        tool.kill()


def fail(tree, config, where, *args, **environment):
    """Train on two ranks, of which one fails, and return what both printed."""
    for path in config.parent.glob(f'{config.stem}.?.log'):
        path.unlink()
    environment['FAIL_AT'] = where
    tools = train(tree, config, *args, launch=forked_ranks, **environment)
    printed = [tool.finish(check=False) for tool in tools]
    codes = [tool.process.exitcode for tool in tools]
    assert codes == [1, 1], os.linesep.join(printed)
    return printed
