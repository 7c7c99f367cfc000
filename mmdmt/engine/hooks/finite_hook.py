"""Stops training that has diverged, before anything of it is written."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mmdmt.checkpoint import find_latest_valid_checkpoint
from mmdmt.checks import check_count, listed
from mmdmt.distributed import from_main, unwrap
from mmdmt.finite import NonFiniteError, non_finite, refuse_non_finite
from mmdmt.registry import HOOKS

SKIPPED = 'train/amp_skipped_steps'
_MAX_STEPS = 100  # losses that wait on the device for the next look


class _Step(NamedTuple):
    """What is kept of an iteration until the next look; tensors stay on the device."""

    iteration: int  # counted from 1
    losses: Dict[str, Tensor]
    images: List[str]
    faulty_images: List[str]
    # Whether the loss scaler left the optimizer step out; None if there was no step to take.
    skipped: Union[bool, Tensor, None]


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stops all processes with one error if a loss, a weight or a prediction is not finite.

    The host does not wait for the device in a step: losses stay there until the next look, which is
    at the logger's interval (at most 100 iterations), before a validation, before any checkpoint is
    written and after the last iteration. Each look also covers what a checkpoint would hold:
    weights and buffers of students and teachers, the average of ``EMAHook``, and the state of the
    optimizer. So nothing that is not finite is saved, and the last good checkpoint stays.

    With a loss scaler (fp16), steps whose gradients overflow are left out, which is normal: they
    are counted in ``amp_skipped_steps``, and their losses need not be finite. Training stops when
    a weight or buffer is bad, or after ``max_skipped`` such steps in a row.

    A network can also have finite weights and predict NaN: validation and testing fail then,
    before any metric is used.

    :class:`~mmdmt.engine.runners.SemiRunner` registers it by itself.

    Args:
        max_skipped (int): Steps in a row that are left out or have a loss that is not finite,
            under a loss scaler. Defaults to 25: by then the scale is 2^-25 of what it was.
    """

    # After teachers and averages have moved (50), before log (60) and checkpoint (90).
    priority = 57

    def __init__(self, max_skipped: int = 25) -> None:
        check_count('FiniteHook.max_skipped', max_skipped, 1)
        self.max_skipped = max_skipped
        self._interval = 0  # 0 outside of training
        self._steps: List[_Step] = []
        self._last = 0
        self._predictions: List[Tuple[str, Tensor]] = []
        self._skipped = self._in_a_row = 0
        self._executed: Union[bool, Tensor] = False

    # --- When to look ----------------------------------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        """Look at the weights that training starts from."""
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self._interval = min([_MAX_STEPS, *intervals])
        self._last = runner.iter
        if _is_scaled(runner):
            runner.optim_wrapper.optimizer.register_step_post_hook(self._note_execution)
            if SKIPPED in runner.message_hub.log_scalars:  # of the run that is resumed
                self._skipped = int(runner.message_hub.get_scalar(SKIPPED).current())
        self._look(runner)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[Dict[str, Tensor]] = None,
    ) -> None:
        """Keep the losses, and look if it is time to."""
        losses = {
            key: torch.as_tensor(value).detach()
            for key, value in (outputs or {}).items()
            if 'loss' in key
        }
        self._last = runner.iter + 1
        names = _names(data_batch)
        faulty, skipped = _faulty(data_batch, names), self._was_skipped(runner)
        self._steps.append(_Step(self._last, losses, names, faulty, skipped))
        if self._last % self._interval == 0 or _is_last_or_saved(self, runner):
            self._look(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Look before a checkpoint of an epoch is written."""
        self._look(runner)

    def before_val(self, runner: Runner) -> None:
        """A network that has diverged is not validated."""
        if self._interval:
            self._look(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to write what is not finite, also where something else saves; rank 0 alone."""
        parts = ('state_dict', 'ema_state_dict', 'optimizer')
        refuse_non_finite({key: checkpoint.get(key) for key in parts}, 'a checkpoint to write')

    def after_train(self, runner: Runner) -> None:
        """Later validations are of another network."""
        self._interval = 0

    # --- What is seen ----------------------------------------------------------------------------

    def _note_execution(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The optimizer has stepped; a fused one left it to the device whether to."""
        found = getattr(optimizer, 'found_inf', None)
        self._executed = True if found is None else found == 0

    def _was_skipped(self, runner: Runner) -> Union[bool, Tensor, None]:
        if not _is_scaled(runner) or not runner.optim_wrapper.should_update():
            return None
        executed, self._executed = self._executed, False
        return ~executed if isinstance(executed, Tensor) else not executed

    def _look(self, runner: Runner) -> None:
        """Stop on all ranks if any of them has found something."""
        found = all_gather_object(self._findings(runner))
        self._steps.clear()
        reports = [report for report in found if report is not None]
        if reports:
            first = min(reports, key=lambda each: (each['iteration'], each['sound_losses']))
            last_good = from_main(lambda: find_latest_valid_checkpoint(runner.work_dir))
            raise NonFiniteError(_message(first, runner, last_good))

    def _findings(self, runner: Runner) -> Optional[Dict[str, Any]]:
        """What of this rank is not finite, as plain values; None if nothing that matters."""
        bad_losses = non_finite([step.losses for step in self._steps])
        bad_steps = sorted({int(name.split('.')[0]) for name in bad_losses})
        in_a_row = 0
        if _is_scaled(runner):
            in_a_row = self._count_skipped(runner, set(bad_steps))
        too_many = in_a_row >= self.max_skipped
        weights = non_finite(_state(runner))
        if not (weights or too_many or (bad_steps and not _is_scaled(runner))):
            return None
        at = self._steps[bad_steps[0] if bad_steps else -1] if self._steps else None
        return dict(
            iteration=at.iteration if at else self._last,
            losses={key: value.item() for key, value in at.losses.items()} if at else {},
            images=at.images if at else [],
            faulty_images=at.faulty_images if at else [],
            weights=weights,
            sound_losses=not bad_steps,
            in_a_row=in_a_row if too_many else 0,
            rank=get_rank(),
        )

    def _count_skipped(self, runner: Runner, bad_steps: Set[int]) -> int:
        """Count and log skipped steps; how many, or with bad losses, there were in a row."""
        most = 0
        for index, step in enumerate(self._steps):
            skipped = None if step.skipped is None else bool(step.skipped)
            self._skipped += skipped is True
            if skipped or index in bad_steps:
                self._in_a_row += 1
            elif skipped is False:
                self._in_a_row = 0
            most = max(most, self._in_a_row)
        runner.message_hub.update_scalar(SKIPPED, self._skipped)
        return most

    # --- Predictions -----------------------------------------------------------------------------

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[Sequence] = None,
    ) -> None:
        """Keep whether the predictions are finite, on the device."""
        for sample in outputs or ():
            scores = sample.get('pred_score')
            scores = sample.seg_logits.data if 'seg_logits' in sample else scores
            if isinstance(scores, Tensor):
                # The largest of a pixel: -inf is a class that cannot be.
                finite = scores.detach().amax(dim=0).isfinite().all()
                self._predictions.append((str(sample.get('img_path')), finite))

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Refuse metrics of predictions that are not finite, on all ranks."""
        names, finite = zip(*self._predictions) if self._predictions else ((), ())
        self._predictions = []
        sound = torch.stack(finite).tolist() if finite else []
        bad = [name for name, is_sound in zip(names, sound) if not is_sound]
        bad = [name for part in all_gather_object(bad) for name in part]
        if bad:
            raise NonFiniteError(
                f'the network predicts NaN or infinity for {len(bad)} images: {listed(bad, 3)}. '
                'Its weights are finite, but too large: train with a lower learning rate'
            )

    after_test_iter = after_val_iter
    after_test_epoch = after_val_epoch


def _is_last_or_saved(hook: Hook, runner: Runner) -> bool:
    """Whether the run ends after this iteration, or a checkpoint of it will be written."""
    savers = [each for each in runner.hooks if isinstance(each, CheckpointHook)]
    return hook.is_last_train_iter(runner) or any(
        hook.every_n_train_iters(runner, saver.interval, saver.save_begin) for saver in savers
    )


def _is_scaled(runner: Runner) -> bool:
    """Whether steps whose gradients are not finite are left out (``AmpOptimWrapper``)."""
    return getattr(runner.optim_wrapper, 'loss_scaler', None) is not None


def _state(runner: Runner) -> Dict[str, Any]:
    """What a checkpoint would hold, by its names there."""
    state: Dict[str, Any] = dict(unwrap(runner.model).state_dict())
    averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    state['ema_state_dict'] = [hook.ema_model.state_dict() for hook in averages]
    if isinstance(runner.optim_wrapper, OptimWrapper):
        state['optimizer'] = runner.optim_wrapper.state_dict()
    return state


def _names(data_batch: Any) -> List[str]:
    """File names of the images of a batch, as far as they are known."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return [str(sample.get('img_path')) for sample in samples or ()]


def _faulty(data_batch: Any, names: List[str]) -> List[str]:
    """Images that hold NaN or infinity themselves; 8-bit images cannot, nor is a device asked."""
    images = data_batch.get('inputs', ()) if names else ()
    return [
        name
        for name, image in zip(names, images)
        if image.is_floating_point() and image.device.type == 'cpu' and not image.sum().isfinite()
    ]


def _message(report: Dict[str, Any], runner: Runner, last_good: Optional[str]) -> str:
    """What was found, where, and what to do."""
    lines = [_where(report, runner)]
    weights = report['weights']
    if weights:
        lines.append(
            f'First parameter or buffer that is not finite: {weights[0]}, of {len(weights)}.'
        )
    if report['faulty_images']:
        lines.append(f'Images that hold NaN or infinity: {listed(report["faulty_images"])}.')
    elif report['images']:
        lines.append(f'Images of this batch: {listed(report["images"])}.')
    lines.append(
        f'Nothing of it was saved; the last checkpoint that is finite is {last_good}.'
        if last_good
        else 'Nothing of it was saved; there is no checkpoint from before.'
    )
    if report['losses'] and not report['faulty_images']:
        rates = {rate for group in runner.optim_wrapper.get_lr().values() for rate in group}
        lines.append(
            f'Train again with a lower learning rate (now {max(rates):g}), a warm-up or '
            'optim_wrapper.clip_grad, from the start or, with load_from, from a checkpoint whose '
            'losses were sound: --resume goes on with the learning rate that is stored. '
            'In half precision try bfloat16.'
        )
    return ' '.join(lines)


def _where(report: Dict[str, Any], runner: Runner) -> str:
    rank = f' of rank {report["rank"]}' if get_world_size() > 1 else ''
    if not report['losses']:
        return (
            f'Training cannot go on from iteration {report["iteration"]}{rank}: weights are NaN or '
            'infinite before it. They come from the checkpoint or the init_cfg.'
        )
    losses = ', '.join(f'{key}={value:g}' for key, value in report['losses'].items())
    often = ''
    if report['in_a_row']:
        often = f' The loss scaler could not help in {report["in_a_row"]} steps in a row.'
    return f'Training has diverged at iteration {report["iteration"]}{rank}: {losses}.{often}'
