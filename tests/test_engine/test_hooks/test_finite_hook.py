"""What the hook sees of a training step, without a whole run."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement, PixelData
from mmseg.structures import SegDataSample
from torch import nn
from virtual_gpu import NoWaiting

from mmdmt.engine.hooks import FiniteHook, SafeCheckpointHook, finite_hook
from mmdmt.finite import NonFiniteError

NAN = float('nan')


class SkippingWrapper(OptimWrapper):
    """Leaves steps out as a loss scaler does."""

    loss_scaler = 'a stand-in'

    def step(self, **kwargs):
        if all(p.grad.isfinite().all() for p in self.optimizer.param_groups[0]['params']):
            self.optimizer.step(**kwargs)


class FusedSGD(torch.optim.Optimizer):
    """Decides on the device, by ``found_inf``, whether to step."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, dict(lr=lr))

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]['params']:
            moved = parameter - self.param_groups[0]['lr'] * parameter.grad
            parameter.copy_(torch.where(self.found_inf > 0, parameter, moved))


class FusedWrapper(OptimWrapper):
    """Leaves it to the optimizer whether to step."""

    loss_scaler = 'a stand-in'

    def step(self, **kwargs):
        gradients = [p.grad for p in self.optimizer.param_groups[0]['params']]
        self.optimizer.found_inf = (
            1 - torch.stack([g.isfinite().all() for g in gradients]).all().float()
        )
        self.optimizer.step(**kwargs)
        del self.optimizer.found_inf


class ScalerWrapper(OptimWrapper):
    """torch's own loss scaler on a CPU."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu')

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


SCALED = [SkippingWrapper, FusedWrapper]
if hasattr(torch.amp, 'GradScaler'):  # torch >= 2.3
    SCALED.append(ScalerWrapper)


@pytest.fixture
def hub():
    return MessageHub('finite')


def make_runner(tmp_path, hub, wrapper=OptimWrapper, interval=5, accumulate=1, fused=False):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    kind = FusedSGD if wrapper is FusedWrapper else partial(torch.optim.AdamW, fused=fused)
    optimizer = kind(model.parameters(), lr=0.01)
    return SimpleNamespace(
        model=model,
        optim_wrapper=wrapper(optimizer, accumulative_counts=accumulate),
        hooks=[LoggerHook(interval=interval)],
        message_hub=hub,
        work_dir=str(tmp_path),
        iter=0,
        max_iters=1000,
    )


def step(hook, runner, factor=1.0, batch=None):
    """One iteration whose loss and gradients are multiplied by ``factor``."""
    loss = runner.model(torch.randn(4, 2)).square().mean() * factor
    runner.optim_wrapper.update_params(loss)
    outputs = dict(loss=loss, ce_loss=loss * 1, accuracy=torch.tensor(NAN))
    hook.after_train_iter(runner, runner.iter, batch, outputs)
    runner.iter += 1


def started(runner, **settings):
    hook = FiniteHook(**settings)
    hook.before_train(runner)
    return hook


def test_the_first_bad_iteration_is_named_at_the_interval(tmp_path, hub):
    runner = make_runner(tmp_path, hub)
    hook = started(runner)
    samples = [SegDataSample(metainfo=dict(img_path=f'{name}.png')) for name in 'ab']
    images = [torch.zeros(3, 2, 2, dtype=torch.uint8)] * 2
    for _ in range(6):
        step(hook, runner)
    for _ in range(3):
        step(hook, runner, NAN, dict(inputs=images, data_samples=samples))
    message = (
        r'diverged at iteration 7: loss=nan, ce_loss=nan\. .* not finite: 0\.weight, of .* '
        r'this batch: a\.png, b\.png\. .* no checkpoint .* \(now 0\.01\)'
    )
    with pytest.raises(NonFiniteError, match=message):
        step(hook, runner)


@pytest.mark.parametrize('moment', ['before_val', 'after_train_epoch'])
def test_nothing_is_validated_in_between(tmp_path, hub, moment):
    runner = make_runner(tmp_path, hub)
    hook = started(runner)
    getattr(hook, moment)(runner)
    step(hook, runner, NAN)
    with pytest.raises(NonFiniteError, match='diverged at iteration 1'):
        getattr(hook, moment)(runner)


def test_all_ranks_look_before_a_checkpoint_is_written(tmp_path, hub):
    runner = make_runner(tmp_path, hub)
    runner.hooks.append(SafeCheckpointHook(interval=2, by_epoch=False))
    hook = started(runner)
    step(hook, runner)
    with pytest.raises(NonFiniteError, match='diverged at iteration 2'):
        step(hook, runner, NAN)


@pytest.mark.parametrize('part', ['state_dict', 'ema_state_dict', 'optimizer'])
def test_nothing_else_writes_what_is_not_finite(part):
    checkpoint = dict(state_dict=dict(weight=torch.ones(2)), message_hub=dict(loss=NAN))
    FiniteHook().before_save_checkpoint(None, checkpoint)
    checkpoint[part] = dict(weight=torch.tensor(NAN))
    with pytest.raises(NonFiniteError, match=rf'{part}\.weight'):
        FiniteHook().before_save_checkpoint(None, checkpoint)


def test_the_last_iteration_is_looked_at(tmp_path, hub):
    runner = make_runner(tmp_path, hub)
    hook, runner.max_iters = started(runner), 1
    with pytest.raises(NonFiniteError):
        step(hook, runner, NAN)


def test_a_weight_that_is_bad_from_the_start(tmp_path, hub):
    runner = make_runner(tmp_path, hub)
    runner.model[1].running_var[0] = NAN
    message = 'cannot go on from iteration 0: .* not finite: 1.running_var, of 1'
    with pytest.raises(NonFiniteError, match=message):
        started(runner)


def test_optimizer_state_and_averages_belong_to_what_is_looked_at(tmp_path, hub):
    runner = make_runner(tmp_path, hub)
    hook = started(runner)
    step(hook, runner)
    state = runner.optim_wrapper.optimizer.state[runner.model[0].weight]
    state['exp_avg_sq'].fill_(float('inf'))  # the weight would stand still from now on
    with pytest.raises(NonFiniteError, match=r'optimizer\.state\.0\.exp_avg_sq'):
        hook.after_train_epoch(runner)


def test_an_image_with_nan_is_named(tmp_path, hub):
    runner = make_runner(tmp_path, hub, interval=1)
    samples = [SegDataSample(metainfo=dict(img_path=f'{name}.tif')) for name in 'ab']
    images = [torch.zeros(3, 2, 2), torch.full((3, 2, 2), NAN)]
    with pytest.raises(NonFiniteError, match=r'Images that hold NaN or infinity: b\.tif\.'):
        step(started(runner), runner, NAN, dict(inputs=images, data_samples=samples))


@pytest.mark.parametrize('wrapper', [OptimWrapper, FusedWrapper])
def test_the_host_does_not_wait_in_a_step(tmp_path, hub, wrapper):
    runner = make_runner(tmp_path, hub, wrapper, interval=100)
    hook = started(runner)
    samples = [SegDataSample(metainfo=dict(img_path='a.png'))]
    batch = dict(inputs=[torch.zeros(3, 2, 2, dtype=torch.uint8)], data_samples=samples)
    for _ in range(3):
        loss = runner.model(torch.randn(4, 2)).square().mean() * NAN
        with NoWaiting():
            hook.after_train_iter(runner, runner.iter, batch, dict(loss=loss))
        runner.iter += 1


def test_losses_do_not_keep_the_graph(tmp_path, hub):
    runner = make_runner(tmp_path, hub)
    hook = started(runner)
    loss = runner.model(torch.randn(4, 2)).mean()
    hook.after_train_iter(runner, 0, None, dict(loss=loss))
    assert all(not kept.losses['loss'].requires_grad for kept in hook._steps)


# ------------------------------------------------------------------------------- loss scaler


@pytest.mark.parametrize('wrapper', SCALED)
def test_skipped_steps_are_counted_and_normal(tmp_path, hub, wrapper):
    runner = make_runner(tmp_path, hub, wrapper)
    hook = started(runner)
    for factor in (1, NAN, 1, 1, NAN, NAN, 1, float('inf'), 1, 1):
        step(hook, runner, factor)
    history = hub.get_scalar('train/amp_skipped_steps')
    assert history.data[0].tolist() == [0, 2, 4]
    resumed = started(runner)
    step(resumed, runner, NAN)
    resumed.after_train_epoch(runner)
    assert history.current() == 5


def test_a_fused_optimizer_under_the_scaler_of_torch(tmp_path, hub):
    if ScalerWrapper not in SCALED:
        return
    runner = make_runner(tmp_path, hub, ScalerWrapper, fused=True)
    hook = started(runner)
    for factor in (1, NAN, 1, NAN, 1):
        step(hook, runner, factor)
    assert hub.get_scalar('train/amp_skipped_steps').current() == 2


@pytest.mark.parametrize('wrapper', SCALED)
def test_gathered_gradients_are_skipped_once(tmp_path, hub, wrapper):
    runner = make_runner(tmp_path, hub, wrapper, interval=6, accumulate=2)
    hook = started(runner)
    for factor in (1, 1, NAN, 1, 1, 1):
        step(hook, runner, factor)
    assert hub.get_scalar('train/amp_skipped_steps').current() == 1


@pytest.mark.parametrize('wrapper', SCALED)
def test_too_many_skipped_steps_in_a_row_end_training(tmp_path, hub, wrapper):
    runner = make_runner(tmp_path, hub, wrapper)
    hook = started(runner, max_skipped=4)
    for factor in (NAN, NAN, 1, 1, 1, 1, 1, NAN, NAN, NAN):  # three in a row, over two looks
        step(hook, runner, factor)
    with pytest.raises(NonFiniteError, match=r'iteration 11: loss=nan.* in 4 steps in a row'):
        [step(hook, runner, factor) for factor in (NAN, 1, 1, 1, 1)]


@pytest.mark.parametrize('wrapper', SCALED)
def test_a_bad_buffer_is_no_matter_of_the_scaler(tmp_path, hub, wrapper):
    runner = make_runner(tmp_path, hub, wrapper)
    hook = started(runner)
    step(hook, runner)
    runner.model[1].running_mean[0] = float('inf')  # overflow in the forward pass
    with pytest.raises(NonFiniteError, match=r'not finite: 1\.running_mean'):
        hook.after_train_epoch(runner)


# ------------------------------------------------------------------------------- predictions


def seen(scores, kind):
    if kind == 'segmentation':
        sample = SegDataSample(metainfo=dict(img_path='a.png'))
        sample.set_data(dict(seg_logits=PixelData(data=scores[:, None, None])))
        return sample
    sample = BaseDataElement(metainfo=dict(img_path='a.png'))
    sample.pred_score = scores
    return sample


@pytest.mark.parametrize('kind', ['segmentation', 'classification'])
@pytest.mark.parametrize('mode', ['val', 'test'])
def test_metrics_of_predictions_that_are_not_finite_are_refused(kind, mode):
    hook = FiniteHook()
    after_iter = getattr(hook, f'after_{mode}_iter')
    after_epoch = getattr(hook, f'after_{mode}_epoch')
    after_iter(None, 0, None, [seen(torch.tensor([0.0, float('-inf')]), kind)])
    after_epoch(None, {})
    after_iter(None, 0, None, [seen(torch.tensor([0.0, NAN]), kind)])
    with pytest.raises(NonFiniteError, match=r'for 1 images: a\.png'):
        after_epoch(None, {})
    after_epoch(None, {})  # the next one starts afresh


# ------------------------------------------------------------------------------- ranks


def test_all_ranks_raise_what_the_first_bad_one_found(tmp_path, hub, monkeypatch):
    messages = []
    other = dict(rank=1, losses=dict(loss=NAN), images=[], faulty_images=[], weights=[], in_a_row=0)
    other.update(iteration=2, sound_losses=False)
    monkeypatch.setattr(finite_hook, 'get_world_size', lambda: 2)
    for order in (lambda own: [own, other], lambda own: [None, other]):
        monkeypatch.setattr(finite_hook, 'all_gather_object', lambda own: [None])
        runner = make_runner(tmp_path, hub)
        hook = started(runner)
        for factor in (1, 1, NAN):
            step(hook, runner, factor)
        monkeypatch.setattr(finite_hook, 'all_gather_object', order)
        with pytest.raises(NonFiniteError, match=r'at iteration 2 of rank 1: loss=nan') as error:
            hook.after_train_epoch(runner)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
