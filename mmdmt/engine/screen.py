"""What the terminal shows of a run: facts, one line of progress, validations and the end.

All else that is logged goes into the log file alone, unless the tools are called with --verbose.
"""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Dict, List, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from mmdmt.distributed import unwrap
from mmdmt.engine.final import main_metric, numbers

_SECONDS = 30  # between two lines of progress where the output is no terminal
_LINES = 50  # of progress in a long run
_SHOWN = 6  # metrics of a validation
# What mmengine says in every run, whatever its config.
_NOISE = ('The prefix is not set in metric', '"FileClient" will be', '"HardDiskBackend" is the')


class Screen:
    """The terminal of this process: quiet or not, and what its last line holds."""

    quiet = False
    #: Steps of all stages of a chain, the current one, and what it is called; empty for a run.
    lengths: List[int] = []
    index = 0
    introduced = False  # the facts of a stage have been shown
    testing = False  # tables of metrics are shown
    _open = False  # a line of progress that may be overwritten

    @classmethod
    @contextmanager
    def chain(cls, lengths: List[int]) -> Iterator[None]:
        """Count the stages of a chain; what runs after it in this process is on its own."""
        cls.lengths, cls.index, cls.introduced = lengths, 0, False
        try:
            yield
        finally:
            cls.lengths, cls.index, cls.introduced = [], 0, False

    @classmethod
    def progress(cls, text: str) -> None:
        """Overwrite the line of progress; on what is no terminal add a line."""
        if sys.stdout.isatty():
            sys.stdout.write(f'\r\x1b[K{text}')
            cls._open = True
        else:
            sys.stdout.write(f'{text}\n')
        sys.stdout.flush()

    @classmethod
    def clear(cls) -> None:
        """Make room for another line."""
        if cls._open:
            sys.stdout.write('\r\x1b[K')
            cls._open = False


class _OnScreen(logging.Filter):
    """Lets pass what was meant for the terminal, and warnings."""

    def filter(self, record: logging.LogRecord) -> bool:
        passes = record.levelno >= logging.WARNING or getattr(record, 'on_screen', False)
        passes = passes and not str(record.msg).startswith(_NOISE)
        passes = passes or (Screen.testing and str(record.msg).startswith('\n+--'))  # of classes
        if passes:
            Screen.clear()
        return passes


class _Plain(logging.Formatter):
    """The message alone; a warning says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        kind = f'{record.levelname}: ' if record.levelno >= logging.WARNING else ''
        return kind + super().format(record)


def be_quiet() -> None:
    """Show no more than facts, progress and validations from now on, in this process."""
    Screen.quiet = True
    for text in ('The draw is False', 'For binary segmentation', 'This DataLoader will create'):
        warnings.filterwarnings('ignore', message=text)
    quieten(MMLogger.get_current_instance())


def quieten(logger: logging.Logger) -> None:
    """Keep what is logged off the terminal, if that is asked for; files get all of it."""
    for handler in logger.handlers if Screen.quiet else ():
        if not isinstance(handler, logging.FileHandler) and isinstance(
            handler, logging.StreamHandler
        ):
            handler.addFilter(_OnScreen())
            handler.setFormatter(_Plain())


def show(message: Optional[str]) -> None:
    """Log a message that belongs on the terminal, too; rank 0 speaks for all."""
    if message and is_main_process():
        MMLogger.get_current_instance().info(message, extra=dict(on_screen=True))


class ScreenHook(Hook):
    """Shows the facts of a run, how far it is, and each validation in a line."""

    # After the hooks that make pseudo-labels, so that their time is no step's, and after the best
    # checkpoint is known.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._began = self._shown = 0.0
        self._first = 0

    def before_train(self, runner: Runner) -> None:
        """Show what is trained; the clock starts."""
        if not Screen.introduced:  # stages of a chain differ in little
            show(_facts(runner))
        Screen.introduced = bool(Screen.lengths)
        self._began = self._shown = time.monotonic()
        self._first = runner.iter

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Show the progress now and then."""
        now, done = time.monotonic(), runner.iter + 1
        each = (now - self._began) / max(1, done - self._first)
        wait = 0.5 if sys.stdout.isatty() else max(_SECONDS, each * runner.max_iters / _LINES)
        if now - self._shown >= wait and is_main_process():
            self._shown = now
            Screen.progress(_progress(runner, done, each))

    def before_test(self, runner: Runner) -> None:
        """Show what is tested; the clock starts."""
        Screen.testing, self._began = True, time.monotonic()
        self._shown = self._began
        images = len(runner.test_dataloader.dataset)
        show(f'{runner.cfg.get("load_from")}: {images} images')

    def after_test_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Show the progress now and then."""
        now, done, total = time.monotonic(), batch_idx + 1, len(runner.test_dataloader)
        if now - self._shown >= (0.5 if sys.stdout.isatty() else _SECONDS) and is_main_process():
            self._shown = now
            left = (now - self._began) / done * (total - done)
            Screen.progress(f'batch {done} of {total}, {_duration(left)} left')

    def after_test_epoch(self, runner: Runner, metrics: Optional[Dict[str, Any]] = None) -> None:
        """Show all metrics, and where the log is."""
        Screen.testing = False
        scores = (f'{name}: {value:.2f}' for name, value in numbers(metrics or {}).items())
        show(', '.join(scores))
        show(f'log: {MMLogger.get_current_instance().log_file}')

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, Any]] = None) -> None:
        """Show the main metrics, and whether this checkpoint is the best so far."""
        found = numbers(metrics or {})
        best = str(runner.message_hub.runtime_info.get('best_ckpt'))
        key = main_metric(found)
        kinds = (key, *(name for name in found if str(key).endswith(name.rpartition('/')[-1])))
        order = sorted(found, key=lambda name: (name != key, name not in kinds, '/' in name))
        scores = [f'{name} {found[name]:.2f}' for name in order[:_SHOWN]]
        if scores and best.endswith(f'_{runner.iter}.pth'):
            scores[0] += ' (best so far)'
        show(f'{_stage()}validation at {runner.iter} of {runner.max_iters}: {", ".join(scores)}')


def _progress(runner: Runner, done: int, each: float) -> str:
    """One line: stage, step, loss, time for a step, and the time that is left."""
    loss = runner.message_hub.log_scalars.get('train/loss')
    parts = [f'{_stage()}step {done} of {runner.max_iters}']
    if loss is not None and len(loss.data[0]):
        parts.append(f'loss {float(loss.current()):.3f}')
    left = (runner.max_iters - done) * each
    parts += [f'{each:.3g} s per step', f'{_duration(left)} left']
    later = sum(Screen.lengths[Screen.index + 1 :])
    if later:
        parts.append(f'about {_duration(left + later * each)} for all stages')
    return ', '.join(parts)


def _stage() -> str:
    return f'stage {Screen.index + 1} of {len(Screen.lengths)}: ' if Screen.lengths else ''


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _facts(runner: Runner) -> str:
    """What is trained, on what, for how long, and where the rest is written."""
    model, dataset = unwrap(runner.model), runner.train_dataloader.dataset
    networks = getattr(model, 'network_names', [])
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    sizes = getattr(runner.train_dataloader.sampler, 'source_sizes', None) or [len(dataset)]
    ratio = getattr(runner.train_dataloader.sampler, 'items_per_batch', None)
    batch = '+'.join(map(str, ratio)) if ratio else runner.train_dataloader.batch_size
    val = len(runner.val_dataloader.dataset) if runner.val_loop is not None else 0
    lr = runner.optim_wrapper.get_lr()
    lr = ', '.join(dict.fromkeys(f'{rates[0]:.3g}' for rates in lr.values() if rates))
    device = next(model.parameters()).device
    name = type(model).__name__ + (f' ({", ".join(networks)})' if networks else '')
    rows = dict(
        model=f'{name}, {trained / 1e6:.2f} M trained parameters',
        images=f'{" + ".join(map(str, sizes))}, {batch} in a step; {val} to validate',
        steps=f'{runner.max_iters}, from {runner.iter}; learning rate {lr}',
        machine=f'{device}, {runner.world_size} process(es), seed {runner.seed}',
        log=MMLogger.get_current_instance().log_file,
    )
    title = _stage() + runner.work_dir
    return '\n'.join([title, *(f'  {key:<8} {value}' for key, value in rows.items())])
