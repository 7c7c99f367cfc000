"""One of two processes that train every method, one after the other, on a tiny dataset.

Run by test_engine/test_two_processes.py, since starting processes takes longer than training.
"""

import copy
import sys
from pathlib import Path

import torch
from exchanging_batch_norm import ExchangingBatchNorm, exchange_statistics
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, RUNNERS
from shipped_configs import read, without_weights
from tiny_models import NUM_CLASSES, labeled_samples, semi_batch, tiny_segformer, tiny_segmentor
from tiny_project import base_config, load_config, mutual, online
from torch import nn

from mmdmt.config import resolve_config
from mmdmt.distributed import join_process_group, unwrap
from mmdmt.engine.runners import semi_runner
from mmdmt.export.plain import dicts_in
from mmdmt.models.forward import BATCH_STATISTICS, joint_forward
from mmdmt.models.methods.networks import build_segmentor
from mmdmt.models.stochastic_depth import StochasticDepth
from mmdmt.registry import MODELS

STEPS = 4
DUAL = dict(threshold=0.3, shift_length=1, sub_model=dict(drop_rate=0.5, rule='constant'))
CONTRAST = dict(
    bank=dict(size=3, threshold=0.0),
    anchors_per_class=4,
    start=0.25,
    projection=dict(channels=4),
)
QUEUES = dict(anchors_per_class=4, keys_per_class=3, queue_size=8, projection=dict(channels=4))
ADAPTIVE = dict(type='mmdmt.AdaptiveThreshold', init=0.3, momentum=0.5)
CUTMIX, CLASSMIX = dict(type='mmdmt.CutMix'), dict(type='mmdmt.ClassMix')
METHODS = dict(
    mean_teacher=dict(type='MeanTeacher', threshold=0.3, mix=CUTMIX),
    fixmatch=dict(type='FixMatch', threshold=0.3),
    unimatch=dict(type='UniMatch', threshold=ADAPTIVE, mix=CUTMIX),
    unimatch_v2=dict(type='UniMatchV2', threshold=0.3, mix=dict(CUTMIX, partner='flip')),
    cps=dict(type='CPS'),
    cps_cutmix=dict(type='CPS', mix=dict(CUTMIX, prob=1.0, boxes='french', count=3)),
    cutmix_seg=dict(type='CutMixSeg', threshold=0.3),
    fixmatch_teacher=dict(type='FixMatch', labeler='teacher', threshold=ADAPTIVE, mix=CUTMIX),
    dual_teacher=dict(type='DualTeacher', **DUAL),
    dual_teacher_1=dict(type='DualTeacher', num_teachers=1, restart=True, **DUAL),
    released_dual_teacher=dict(
        type='ReleasedDualTeacher', threshold=0.3, shift_length=1, strong=None
    ),
    augseg=dict(
        type='AugSeg',
        threshold=0.3,
        strong=dict(type='mmdmt.RandomIntensityAugment'),
        mix=dict(type='mmdmt.AdaptiveCutMix'),
        copy_iters=2,
    ),
    prevmatch=dict(
        type='UniMatch',
        threshold=0.3,
        previous=dict(every=1, keep=2, threshold=0.3),
        mix=CUTMIX,
    ),
    mean_teacher_domain=dict(
        type='MeanTeacher', threshold=0.3, mix=CUTMIX, batch_statistics='domain'
    ),
    unimatch_separate=dict(type='UniMatch', threshold=0.3, mix=CUTMIX, batch_statistics='separate'),
    u2pl=dict(type='U2PL', sup_only=0.25, drop_percent=40, mix=CUTMIX, contrast=QUEUES),
    cross_teacher=dict(type='CrossTeacher', threshold=0.3, mix=CLASSMIX, contrast=CONTRAST),
)
#: Shipped configs whose networks and settings of the method are trained as they are.
LEAVES = (
    'dual_teacher/dual-teacher_deeplabv3plus_mobilenetv2_msrc21-96x96',
    'cross_teacher/cross-teacher_deeplabv3plus_mobilenetv2_msrc21-96x96',
)


class DumpHook(Hook):
    """Writes the state of a rank before a checkpoint makes all alike, and while it validates."""

    priority = 'LOW'  # after the teachers have moved, before the checkpoint

    def __init__(self):
        self.before = ExchangingBatchNorm.exchanges
        self.images, self.rates = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.images.append([Path(each.img_path).stem for each in data_batch['data_samples']])
        self.rates += runner.optim_wrapper.get_lr()['lr'][:1]
        if batch_idx + 1 == runner.max_iters:
            facts = dict(
                exchanges=ExchangingBatchNorm.exchanges - self.before,
                images=self.images,
                rates=self.rates,
                seed=torch.initial_seed(),
            )
            save(runner, 'end', facts)

    def after_val_epoch(self, runner, metrics=None):
        metrics = {key: float(value) for key, value in metrics.items()}
        save(runner, f'val_{runner.iter}', metrics)


HOOKS.register_module(module=DumpHook)


def save(runner, name, facts):
    """Write the state of the model of this rank, and whatever else is known."""
    # Copies, because buffers go on.
    state = copy.deepcopy(unwrap(runner.model).state_dict())
    content = dict(state=state, facts=facts)
    torch.save(content, f'{runner.work_dir}/{name}.rank_{get_rank()}.pth')


def config(tree, folder, norm='SyncBN', **settings):
    """A short run that is neither validated nor saved before its end."""
    cfg = base_config(tree, folder, STEPS, interval=STEPS)
    cfg['train_cfg']['val_interval'] = STEPS + 1
    cfg['custom_hooks'] = [dict(type='DumpHook')]
    cfg['launcher'] = 'pytorch'
    for part in dicts_in(cfg['model']):
        if 'norm_cfg' in part:
            part['norm_cfg'] = dict(type=norm)
    cfg.update(settings)
    return cfg


def methods(tree, folder):
    """Configs of all methods by name, SyncBN in their networks."""
    for name, settings in METHODS.items():
        kind = f'mmdmt.{settings["type"]}'
        settings = {key: value for key, value in settings.items() if key != 'type'}
        yield name, online(config(tree, folder / name), kind, **settings)
    cfg = online(config(tree, folder / 'cnn_transformer'), 'mmdmt.CrossTeacher')
    # Two architectures; predictions of both are validated, ranks having 2 and 1 images.
    other = dict(tiny_segformer(), data_preprocessor=cfg['model']['segmentor']['data_preprocessor'])
    other['decode_head']['norm_cfg'] = dict(type='SyncBN')
    cfg['model']['segmentor'] = dict(l=cfg['model']['segmentor'], r=other)
    cfg['train_cfg']['val_interval'] = 2
    cfg['val_cfg'] = dict(type='mmdmt.NetworksValLoop')
    yield 'cnn_transformer', cfg
    for name in LEAVES:
        yield name.split('/')[1], leaf(tree, folder, name)


def leaf(tree, folder, name):
    """The tiny run with the model of a shipped config."""
    cfg = config(tree, folder / name.split('/')[1])
    cfg['train_cfg']['max_iters'] = 2
    cfg['default_hooks']['checkpoint'].update(interval=-1, save_last=False)  # large ones
    shipped = read(name)
    shipped.num_classes = NUM_CLASSES
    cfg['model'] = without_weights(resolve_config(shipped).model).to_dict()
    for part in dicts_in(cfg['model']):
        if 'size' in part.get('data_preprocessor', {}):
            part['data_preprocessor']['size'] = (32, 32)
    return cfg


def chain(tree, folder):
    """Self-training: a stage on labels, labeling of 5 images by two ranks, a stage on theirs."""
    cfg = config(tree, folder / 'chain', batch_size_is_total=True)
    round_ = dict(max_iters=2, source_ratio=[1, 1])
    options = dict(members=[dict(name='a')], ratios=[0.5], round=round_)
    options['supervised'] = dict(max_iters=2)
    return mutual(cfg, **options)


def plain(tree, folder):
    """Ordinary batch norm, validated at step 2 and 4."""
    cfg = config(tree, folder / 'plain', norm='BN')
    cfg['train_cfg']['val_interval'] = 2
    contrast = dict(CONTRAST, bank=dict(size=3, threshold=0.0, sync='rank'))
    return online(cfg, 'mmdmt.CrossTeacher', contrast=contrast, strong=None)


def total(tree, folder):
    """Labels alone, in a batch of 4 that the processes share."""
    cfg = config(tree, folder / 'total', norm='BN', batch_size_is_total=True)
    cfg['auto_scale_lr'] = dict(enable=True, base_batch_size=8)
    cfg['param_scheduler'] = []
    return online(cfg, 'mmdmt.MeanTeacher')


def images_and_weights():
    """What a layer is checked with: images of both ranks, and weights of its output in a loss."""
    torch.manual_seed(0)
    return torch.randn(2, 4, 3, 5, 5) * 3 + 1


def normalize(folder):
    """What a layer makes of the images of this rank, with the gradient that reaches them."""
    images, weights = (whole.chunk(2)[get_rank()] for whole in images_and_weights())
    layer = exchange_statistics(nn.Sequential(nn.SyncBatchNorm(3)))
    images.requires_grad_()
    output = layer(images)
    (output * weights).sum().backward()
    found = dict(output=output.detach(), gradient=images.grad, **layer[0].state_dict())
    torch.save(found, folder / f'layer.rank_{get_rank()}.pth')


def gradients(method):
    """Loss and gradients of a step of a method on images that are the same on all ranks."""
    settings = dict(METHODS[method], type=f'mmdmt.{METHODS[method]["type"]}')
    if method == 'u2pl':  # keys of all ranks enter its queues
        settings.update(sup_only=0, contrast=None)
    torch.manual_seed(0)
    model = MODELS.build(dict(settings, segmentor=tiny_segmentor())).train()
    model.start_run(STEPS, [2, 3])
    losses = model.loss(*semi_batch(num_labeled=3))
    loss = sum(value for key, value in losses.items() if 'loss' in key)
    loss.backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return dict(found, loss=loss.detach())


def two_domains():
    """A network, and labeled and unlabeled images of both ranks from different distributions."""
    torch.manual_seed(0)
    network = build_segmentor(tiny_segmentor(dropout=0.0))
    return network, torch.randn(4, 3, 32, 32), 3 * torch.randn(4, 3, 32, 32) + 1


def collect(folder):
    """Running statistics after a pass over the images of this rank, in each way of taking them."""
    for kind in BATCH_STATISTICS:
        network, *images = two_domains()
        network = exchange_statistics(nn.SyncBatchNorm.convert_sync_batchnorm(network)).train()
        sup, unsup = (whole.chunk(2)[get_rank()] for whole in images)
        samples = labeled_samples(torch.zeros(len(sup), 32, 32))
        joint_forward(network, sup, samples, unsup, batch_statistics=kind)
        torch.save(network.state_dict(), folder / f'{kind}.rank_{get_rank()}.pth')


def train(cfg, path):
    """Train; both ranks write a config of their own."""
    path.mkdir(exist_ok=True)
    runner = RUNNERS.build(load_config(cfg, path / f'tiny_{get_rank()}.py'))
    runner.train()
    return runner


def main():
    """Train everything, or one method whose ranks skip different layers."""
    tree, folder, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    semi_runner.revert_sync_batchnorm = exchange_statistics
    join_process_group('pytorch', {})
    if what == 'different_draws':
        draw = StochasticDepth.draw
        StochasticDepth.draw = lambda self, step: draw(self, 1000 * get_rank() + step)
        cfg = online(config(tree, folder), 'mmdmt.DualTeacher', **DUAL)
        return train(cfg, folder)
    normalize(folder)
    collect(folder)
    found = {method: gradients(method) for method in METHODS}
    torch.save(found, folder / f'gradients.rank_{get_rank()}.pth')
    for name, cfg in methods(tree, folder):
        train(cfg, folder / name)
    for make in (plain, total):
        save(train(make(tree, folder), folder / make.__name__), 'after', None)
    return train(chain(tree, folder), folder / 'chain')


if __name__ == '__main__':
    main()
