"""Runner that resumes exactly, loads safely and also runs distributed without a GPU."""

import copy
import logging
import os.path as osp
from collections.abc import Sequence
from typing import Any, Callable, Dict, Optional, Union

import mmengine
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm

from mmdmt.checkpoint import (
    check_resumable,
    find_latest_valid_checkpoint,
    load_checkpoint_file,
    safe_loading,
)
from mmdmt.config import resolve_config
from mmdmt.distributed import from_main, join_process_group, unwrap
from mmdmt.engine.batch_size import loader_of_process
from mmdmt.engine.final import ValidationResults, conclude_run, config_name, forget_final
from mmdmt.engine.formatted_config import FormattedConfig
from mmdmt.engine.heap import keep_freed_memory
from mmdmt.engine.hooks.finite_hook import FiniteHook
from mmdmt.engine.hooks.validate_on_resume_hook import ValidateOnResumeHook
from mmdmt.engine.run_settings import check_classes, check_run, dataset_of, metric_names
from mmdmt.engine.runners.work_dir import only_run
from mmdmt.engine.screen import Screen, ScreenHook, quieten, show
from mmdmt.files import atomic_path, is_remote, require_writable
from mmdmt.finite import refuse_non_finite
from mmdmt.models.supervised import train_without_waiting
from mmdmt.registry import RUNNERS
from mmdmt.weights import available_weights, checked_pretrained, load_weights, widened_input


@RUNNERS.register_module()
class SemiRunner(Runner):
    """mmengine's :class:`Runner` for training that may be killed at any moment.

    ``runner_type='mmdmt.SemiRunner'`` in a config makes stock ``tools/train.py`` use it. What it
    does differently:

    - Checkpoints are written atomically, and loaded with ``weights_only`` and a short allow-list
      (:mod:`mmdmt.checkpoint`). Pretrained weights that ``init_cfg`` names are loaded the
      same way. Config key ``trusted_checkpoints``: files that may be unpickled freely.
    - A checkpoint that does not fit the model is refused (:mod:`mmdmt.weights`). Config key
      ``allow_unmatched``: parts that may differ from that of ``load_from`` or ``Pretrained``, such
      as ``['decode_head.conv_seg']`` for other classes. ``widen_input``: what the first
      convolution is made of where images have other bands, see :func:`mmdmt.weights.widened`.
    - ``resume=True`` falls back to an older checkpoint when the newest one is damaged, and takes
      the seed of the interrupted run before anything draws from it. A checkpoint that was due
      for validation is validated at once, since it was saved before.
    - ``launcher='pytorch'`` on a machine without an accelerator trains with gloo; SyncBN layers
      become ordinary ones there, with a warning.
    - On a CPU the memory of a step is kept for the next one (:mod:`mmdmt.engine.heap`).
    - Config key ``channels_last=True`` stores convolution weights channels-last.
    - Config key ``batch_size_is_total=True``: the processes share ``train_dataloader.batch_size``,
      which otherwise is that of each, see :func:`mmdmt.engine.batch_size.loader_of_process`.
    - A run that ends writes ``final.pth`` and ``final.json``: which checkpoint and which network to
      use, and why (:mod:`mmdmt.engine.final`).
    - Settings that would fail late or do nothing are refused at the start, and so is a second run
      that trains in the same work dir.
    - An error that ends one rank ends all of them (:class:`mmdmt.distributed.FailureWatch`).
    - Training that diverges is stopped (:class:`FiniteHook`), and checkpoints with NaN or infinity
      in them are refused.
    - Hooks may have a method ``before_loading(runner)``, called before datasets and loaders are
      built: to check the data, or to make pseudo-labels.

    Exact resuming also needs :class:`IterSeedHook`, :class:`SafeCheckpointHook` and a train
    dataset of type :class:`mmdmt.SemiDataset`, as in ``configs/_base_``. Under torch >= 2.6
    official mmengine 0.10.7 cannot load its own checkpoints; this runner can.
    """

    @classmethod
    def from_cfg(cls, cfg: Union[dict, Config]) -> 'SemiRunner':
        """Build a runner from a config, which is not changed, after it is resolved."""
        return super().from_cfg(FormattedConfig.of(resolve_config(copy.deepcopy(cfg))))

    def __init__(self, model: Union[nn.Module, dict], work_dir: str, *args, **kwargs) -> None:
        require_writable(work_dir, '--work-dir')
        self.results = ValidationResults()
        super().__init__(model, work_dir, *args, **kwargs)

    # --- Environment -----------------------------------------------------------------------------

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger; under the tools it leaves the terminal to what matters."""
        logger = super().build_logger(*args, **kwargs)
        quieten(logger)
        return logger

    def setup_env(self, env_cfg: dict) -> None:
        """Join the process group, with gloo on CPUs, before mmengine asks CUDA.

        Raises:
            RuntimeError: As :func:`mmdmt.distributed.join_process_group`.
            ValueError: If the processes cannot share the batch.
        """
        if get_device() == 'cpu':
            keep_freed_memory()
        join_process_group(self.launcher, env_cfg)
        super().setup_env(env_cfg)
        if isinstance(self._train_dataloader, dict) and self.cfg.get('batch_size_is_total'):
            # `cfg` keeps the total, so that its text means the same in any number of processes.
            self._train_dataloader = loader_of_process(self._train_dataloader, self.world_size)

    def set_randomness(
        self, seed: Optional[int], diff_rank_seed: bool = False, deterministic: bool = False
    ) -> None:
        """Seed all generators; None takes a random seed that ranks share and checkpoints store.

        Raises:
            ValueError: ``diff_rank_seed`` is set.
        """
        if diff_rank_seed:
            raise ValueError(
                'randomness.diff_rank_seed=True is not supported: the sampler would take a seed '
                'that no checkpoint stores. Remove it; IterSeedHook and the sampler already give '
                'every rank random numbers of its own.'
            )
        super().set_randomness(seed, deterministic=deterministic)

    def build_model(self, model: Union[nn.Module, dict]) -> nn.Module:
        """Build the model, which will train without waiting for a GPU; weights load safely."""
        with available_weights(self.cfg), safe_loading(self.trusted_checkpoints):
            model = super().build_model(model)
        train_without_waiting(model)
        return model

    def _init_model_weights(self) -> None:
        """``init_cfg=dict(type='Pretrained')`` is loaded safely and has to fit, too."""
        allowed = self.cfg.get('allow_unmatched', ())
        with (
            available_weights(self.cfg),
            safe_loading(self.trusted_checkpoints),
            checked_pretrained(unwrap(self.model), allowed),
            widened_input(unwrap(self.model), self.cfg.get('widen_input')),
        ):
            super()._init_model_weights()

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build it, without a warning for each parameter of a teacher, which stays frozen."""

        def is_news(record: logging.LogRecord) -> bool:
            return not record.getMessage().endswith('is skipped since its requires_grad=False')

        self.logger.addFilter(is_news)
        try:
            return super().build_optim_wrapper(optim_wrapper)
        finally:
            self.logger.removeFilter(is_news)

    def wrap_model(self, model_wrapper_cfg: Optional[dict], model: nn.Module) -> nn.Module:
        """Move the model to its device and wrap it if the run is distributed."""
        if self.cfg.get('channels_last', False):
            model = model.to(memory_format=torch.channels_last)
        if not self.distributed or is_model_wrapper(model) or get_device() != 'cpu':
            return super().wrap_model(model_wrapper_cfg, model)
        if any(isinstance(module, SyncBatchNorm) for module in model.modules()):
            self.logger.warning(
                'SyncBN works on GPUs only. Its layers become ordinary BatchNorm here, so every '
                'process normalizes by its own share of the batch.'
            )
            model = revert_sync_batchnorm(model)
        wrapper = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get('find_unused_parameters', False),
        )
        wrapper.update(model_wrapper_cfg or {}, device_ids=None)
        return MODEL_WRAPPERS.build(wrapper, default_args=dict(module=model))

    def register_default_hooks(self, hooks: Optional[dict] = None) -> None:
        """Register the hooks of the config, and what stops a run that has diverged."""
        super().register_default_hooks(hooks)
        if not any(isinstance(hook, FiniteHook) for hook in self.hooks):
            self.register_hook(FiniteHook())

    # --- Training --------------------------------------------------------------------------------

    def train(self) -> nn.Module:
        """Train, from the start or from where an interrupted run stopped.

        Raises:
            ValueError: A setting that would fail late or do nothing.
            BusyError: Another run trains in the same work dir.
        """
        self._check_settings()
        check_classes(self.model, dataset_of(self._train_dataloader))
        with only_run(self):
            self._adopt_seed()
            self.call_hook('before_loading')
            self.register_hook(ValidateOnResumeHook())
            self.register_hook(self.results)
            if Screen.quiet:
                self.register_hook(ScreenHook())
            if not self.in_chain:
                from_main(lambda: forget_final(self.work_dir))
            try:
                model = super().train()
            finally:
                self._end_workers()
            if not self.in_chain:
                show(from_main(lambda: conclude_run(self, self.results)))
            return model

    def _end_workers(self) -> None:
        """End the processes that load images: a later garbage collection waits 5 s for each."""
        for loop in (self._train_loop, self._val_loop):
            for name in ('dataloader_iterator', 'dataloader'):
                if hasattr(getattr(loop, name, None), '_iterator'):
                    getattr(loop, name)._iterator = None

    @property
    def in_chain(self) -> bool:
        """Whether the run is a part of mutual training, which says itself how it ends."""
        return 'chain' in self.cfg

    @master_only
    def dump_config(self) -> None:
        """Write the config into the work dir."""
        self.cfg.dump(osp.join(self.work_dir, config_name(self)))

    def test(self) -> Dict[str, float]:
        """Test.

        Raises:
            ValueError: If the network has another number of classes than the images.
        """
        metric_names(self.cfg.get('test_evaluator'), 'test_evaluator')
        check_classes(self.model, dataset_of(self._test_dataloader))
        if Screen.quiet:
            self.register_hook(ScreenHook())
        return super().test()

    def _check_settings(self) -> None:
        check_run(self.cfg)
        averages = [hook for hook in self.hooks if isinstance(hook, EMAHook)]
        if len(averages) > 1:
            raise ValueError(
                f'{len(averages)} EMAHooks would swap their averages with each other at validation:'
                ' set one of them alone, as `default_hooks.ema`'
            )
        loop = self._train_loop
        if not isinstance(loop, dict) or 'max_iters' not in loop:
            return
        for key in ('max_iters', 'val_interval'):
            value = loop.get(key, 1)
            if not isinstance(value, (int, float)) or int(value) != value or value < 1:
                raise ValueError(f'train_cfg.{key}={value!r} must be an integer of at least 1')
        checkpoint = self.cfg.get('default_hooks', {}).get('checkpoint') or {}
        if checkpoint.get('by_epoch', 'CheckpointHook' in checkpoint.get('type', '')):
            raise ValueError(
                'default_hooks.checkpoint.by_epoch=True together with train_cfg.max_iters='
                f'{loop["max_iters"]} would save nothing before the end; set by_epoch=False'
            )
        self._warn_of_unseeded_samples()
        self._warn_of_lost_gradients(checkpoint.get('interval', -1))

    def _warn_of_unseeded_samples(self) -> None:
        dataset = dataset_of(self._train_dataloader)
        if isinstance(dataset, dict) and 'SemiDataset' not in str(dataset.get('type')):
            self.logger.warning(
                f'train_dataloader.dataset is a {dataset.get("type")}, not a mmdmt.SemiDataset: '
                'augmentation is not seeded per drawn sample, so an interrupted and resumed run '
                'will see other augmentations than an uninterrupted one.'
            )

    def _warn_of_lost_gradients(self, interval: int) -> None:
        wrapper = self.optim_wrapper if isinstance(self.optim_wrapper, dict) else {}
        counts = wrapper.get('accumulative_counts', 1)
        if interval > 0 and interval % counts:
            self.logger.warning(
                f'default_hooks.checkpoint.interval={interval} is no multiple of optim_wrapper.'
                f'accumulative_counts={counts}: gradients gathered before a checkpoint are lost '
                'when the run is resumed from it.'
            )

    def _adopt_seed(self) -> None:
        """Take the seed of the run to resume before samplers and workers are built from it."""
        path = self._checkpoint_to_resume()
        if path is None or is_remote(path):
            return
        loaded = load_checkpoint_file(path, 'cpu', self.trusted_checkpoints, mmap=True)
        check_resumable(loaded, path, self.cfg.get('model'))
        seed = loaded['meta'].get('seed')
        if seed is None or seed == self.seed:
            return
        configured = self._randomness_cfg.get('seed')
        self.logger.warning(
            f'Going on with seed {seed} of {path} instead of '
            + ('a random one.' if configured is None else f'randomness.seed={configured}.')
        )
        self._randomness_cfg = dict(self._randomness_cfg, seed=seed)
        self.set_randomness(**self._randomness_cfg)

    # --- Checkpoints -----------------------------------------------------------------------------

    @property
    def trusted_checkpoints(self) -> Sequence[str]:
        """Files that may be unpickled without restrictions (config ``trusted_checkpoints``)."""
        trusted = self.cfg.get('trusted_checkpoints') or ()
        return [trusted] if isinstance(trusted, str) else list(trusted)

    def _checkpoint_to_resume(self) -> Optional[str]:
        """The checkpoint this run goes on from; rank 0 looks, so that all ranks agree."""
        if not self._resume or self._load_from is not None:
            return self._load_from if self._resume else None
        return from_main(lambda: find_latest_valid_checkpoint(self.work_dir))

    def load_or_resume(self) -> None:
        """Resume, or load weights, or do nothing, according to ``resume`` and ``load_from``.

        ``resume=True`` without ``load_from`` takes the newest complete checkpoint of the work dir
        and starts at step 0 where there is none.
        """
        if self._has_loaded:
            return
        path = self._checkpoint_to_resume()
        if path is not None:
            self.resume(path)
        elif self._load_from is not None:
            self.load_checkpoint(self._load_from)
        elif self._resume:
            self.logger.info(f'{self.work_dir} holds no checkpoint to resume: starting at step 0.')

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Go on from a checkpoint; see mmengine's :meth:`Runner.resume`.

        Raises:
            ValueError: The file holds weights only, or is of another method.
            CheckpointMismatchError: The weights do not fit, also where ``allow_unmatched`` is set.
        """
        self._resume = True
        super().resume(filename, *args, **kwargs)

    def load_checkpoint(
        self,
        filename: str,
        map_location: Union[str, Callable] = 'cpu',
        strict: bool = False,
        revise_keys: Sequence[tuple] = ((r'^module\.', ''),),
    ) -> dict:
        """Load weights into the model; also the first step of :meth:`resume`.

        ``strict`` disregards ``allow_unmatched`` of the config.

        Raises:
            UntrustedCheckpointError: As :func:`mmdmt.checkpoint.safe_loading`.
            CheckpointMismatchError: As :func:`mmdmt.weights.load_weights`.
            NonFiniteError: A weight is NaN or infinite.
        """
        with safe_loading(self.trusted_checkpoints):
            checkpoint = _load_checkpoint(str(filename), map_location, 'current')
        if self._resume:
            check_resumable(checkpoint, filename, self.cfg.get('model'))
        refuse_non_finite(checkpoint.get('state_dict', checkpoint), f'checkpoint {filename}')
        # mmengine's `resume` would execute this text, which old versions stored.
        checkpoint.get('meta', {}).pop('config', None)
        for hook in () if self._resume else self.hooks:
            if isinstance(hook, EMAHook):  # its average begins with weights that are checked below
                hook.strict_load = False
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        exact = strict or self._resume
        allowed = () if exact else self.cfg.get('allow_unmatched', ())
        model = unwrap(self.model)
        with widened_input(model, None if exact else self.cfg.get('widen_input')):
            load_weights(model, checkpoint, str(filename), allowed, revise_keys, exact)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Save on rank 0, atomically; remote folders are left to mmengine's backend."""
        if is_remote(str(out_dir)):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
        elif self.rank == 0:
            mmengine.mkdir_or_exist(out_dir)
            with atomic_path(osp.join(out_dir, filename)) as temporary:
                super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)
