"""Runs dynamic mutual training and self-training: a chain of ordinary runs."""

import copy
import gc
import os.path as osp
import time
from typing import Any, Dict, List, Optional, Union
from uuid import uuid4

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmdmt.engine.checkpoint import find_latest_valid_checkpoint
from mmdmt.engine.mutual import build_stage_config_builder
from mmdmt.engine.mutual.ledger import Ledger, stage_table
from mmdmt.engine.mutual.plan import Stage
from mmdmt.registry import HOOKS, RUNNERS
from mmdmt.utils.config import normalize_config

from .semi_runner import SemiRunner


class ValidationResults(Hook):
    """Keeps the metrics of the last validation and the iteration it was made at."""

    def __init__(self) -> None:
        self.iteration: Optional[int] = None
        self.metrics: Dict[str, float] = {}

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Take the metrics."""
        self.iteration = runner.iter
        self.metrics = {key: float(value) for key, value in (metrics or {}).items()}


@RUNNERS.register_module()
class MutualTrainingRunner:
    """Dynamic mutual training (DMT) and self-training as a chain of ordinary runs.

    Feng et al., "DMT: Dynamic mutual training for semi-supervised learning", Pattern Recognition
    2022. Round 0 trains each member on the labeled images. In each later round every member is
    fine-tuned on the labeled images and on pseudo-labels that the other member made with its
    weights of the round before; ``ratios`` says which share of the pixels is kept, per class. One
    member labels for itself, which is self-training (DST-CBC, CBST, curriculum labeling).

    A stage is an ordinary run of :class:`SemiRunner` in ``<work_dir>/stage_<round>_<member>``; its
    checkpoint is an ordinary mmseg checkpoint and ``config.py`` beside it the config to test it
    with. ``stages.json`` is the ledger: finished stages are skipped, an open one is resumed where
    it was cut, a changed config is refused. ``--stage`` runs one stage only; two machines that
    share the work dir can thus share a round.

    Used through ``runner_type='mmdmt.MutualTrainingRunner'`` and the key ``mutual``:

    - ``task`` ('segmentation' | 'classification'): defaults to segmentation; for classification
      see :class:`~mmdmt.engine.mutual.ClassificationStageConfigBuilder`.
    - ``members`` (list[dict]): see :class:`~mmdmt.engine.mutual.MutualPlan`.
    - ``ratios`` (list[float]): one per round.
    - ``select`` ('last' | 'best'): which checkpoint of a stage goes on. 'last' is the default;
      'best' takes the best on validation, as published. ``metric`` (str) defaults to 'mIoU'.
    - ``supervised``, ``round`` (dict): ``max_iters``, ``lr``, ``batch_size``, ``source_ratio``
      ([labeled, pseudo] images in a batch), ``from_scratch`` and ``cfg_options`` of the
      labeled-only stage and of each round.
    - ``pseudo_loss`` (dict): the loss; default ``mmdmt.DynamicMutualLoss`` with gammas 5.
    - ``labeling`` (dict): ``batch_size``, ``num_workers``, ``pixel_stride``, ``bins`` and
      ``pipeline`` of the labeling pass; by default the test pipeline, every 16th pixel for exact
      thresholds.

    Args:
        cfg (Config): The whole config.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = normalize_config(cfg)
        self.builder = build_stage_config_builder(self.cfg)
        self.plan = self.builder.plan
        self.work_dir = osp.abspath(self.cfg.work_dir)
        self.ledger = Ledger(self.work_dir)
        self._test_runner: Optional[SemiRunner] = None

    @classmethod
    def from_cfg(cls, cfg: Union[Config, ConfigDict, dict]) -> 'MutualTrainingRunner':
        """Build from a config, as ``RUNNERS.build`` of stock tools does."""
        return cls(copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(copy.deepcopy(cfg)))

    # ------------------------------------------------------------------ training

    def train(self) -> Dict[str, Dict[str, Any]]:
        """Run all stages that are not finished, or the one that ``cfg.stage`` names.

        Returns:
            dict[str, dict]: The ledger's entries by stage name.

        Raises:
            LedgerMismatchError: If a stage was begun with another config.
            RuntimeError: If ``cfg.stage`` needs a stage that is not finished.
        """
        self._check_data()
        only = self.cfg.get('stage')
        stages = [self.plan.find(only)] if only else self.plan.stages
        for index, stage in enumerate(stages):
            self._run_unless_done(stage)
            last_of_round = index + 1 == len(stages) or stages[index + 1].round > stage.round
            if last_of_round and not only:
                self._log_table(f'after round {stage.round}')
        return self._shared(self.ledger.read)

    def describe(self) -> str:
        """The plan with state, metric and checkpoint of each stage, as a table."""
        return stage_table(self.plan.stages, self.ledger.read(), self.builder.metric)

    def final_checkpoints(self) -> Dict[str, str]:
        """Path of each member's last checkpoint by member name."""
        last = len(self.plan.ratios)
        names = self.plan.member_names
        return {name: self.ledger.checkpoint(Stage(last, name).name) for name in names}

    def _check_data(self) -> None:
        """Check all sources now: a fault in the unlabeled images must not wait for round 1."""
        check = self.cfg.get('default_hooks', {}).get('dataset_check')
        if not check:
            return
        val = self.cfg.get('val_dataloader') or {}
        with DefaultScope.overwrite_default_scope(self.cfg.get('default_scope', 'mmseg')):
            HOOKS.build(check).check(
                self.cfg.train_dataloader.dataset, val.get('dataset'), self.work_dir
            )

    def _run_unless_done(self, stage: Stage) -> None:
        cfg = self._stage_config(stage)
        flat = self.builder.comparable(cfg)
        self._shared(lambda: self.ledger.check_config(stage.name, flat))
        if self._shared(lambda: self.ledger.is_done(stage.name)):
            self._log(f'{stage.name}: finished before, skipped')
            return
        self._shared(lambda: self.ledger.begin(stage.name, flat))
        self._run(stage, cfg)

    def _run(self, stage: Stage, cfg: Config) -> None:
        latest = self._shared(lambda: find_latest_valid_checkpoint(cfg.work_dir))
        if latest is not None:
            cfg.resume, cfg.load_from = True, latest
        began = time.time()
        self._log(
            f'{stage.name}: {"resumes" if latest else "starts"}, '
            + (f'labels from {stage.labeled_by}' if stage.round else 'labeled images only')
        )
        runner = self._build_runner(cfg)
        if is_main_process():
            cfg.dump(osp.join(cfg.work_dir, 'config.py'))
        results = ValidationResults()
        runner.register_hook(results)
        runner.train()
        if runner.val_loop is not None and results.iteration != runner.max_iters:
            runner.val_loop.run()  # killed after the last iteration, before it was validated
        checkpoint = self._product(runner)
        metrics = self._metrics(runner, results)
        self._shared(
            lambda: self.ledger.finish(stage.name, checkpoint, metrics, time.time() - began)
        )
        del runner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _product(self, runner: SemiRunner) -> str:
        """Checkpoint of a finished stage by the rule ``select``."""
        if self.builder.select == 'best':
            best = runner.message_hub.runtime_info.get('best_ckpt')
            if best is None:
                raise RuntimeError(
                    f"`mutual.select='best'` found no best checkpoint in {runner.work_dir}: set "
                    '`train_cfg.val_interval` to at most `max_iters` and `val_dataloader`'
                )
            return best
        return osp.join(runner.work_dir, f'iter_{runner.max_iters}.pth')

    def _metrics(self, runner: SemiRunner, results: 'ValidationResults') -> Dict[str, float]:
        """Validation metrics of the stage's product."""
        if self.builder.select == 'best':
            score = runner.message_hub.get_info('best_score')
            return {self.builder.metric: float(score)}
        return results.metrics

    def _stage_config(self, stage: Stage) -> Config:
        """Config of a stage, with the checkpoints of the stages that it needs."""
        checkpoints = {
            name: self._shared(lambda name=name: self.ledger.checkpoint(name))
            for name in stage.needs
        }
        first = self.plan.member(stage.member).get('load_from', self.cfg.get('load_from'))
        return self.builder.build(
            stage,
            osp.join(self.work_dir, stage.name),
            load_from=checkpoints.get(stage.previous, first),
            teacher_checkpoint=checkpoints.get(stage.labeled_by),
        )

    def _build_runner(self, cfg: Config) -> SemiRunner:
        # mmengine keeps loggers and message hubs by experiment name for the whole process.
        cfg.experiment_name = f'{osp.basename(cfg.work_dir)}_{uuid4().hex[:8]}'
        return SemiRunner.from_cfg(cfg)

    # ------------------------------------------------------------------ testing

    def test(self) -> Dict[str, float]:
        """Test ``cfg.load_from``, as stock ``tools/test.py`` asks for."""
        return self._plain_runner().test()

    def val(self) -> Dict[str, float]:
        """Validate ``cfg.load_from``."""
        return self._plain_runner().val()

    def _plain_runner(self) -> Runner:
        if self._test_runner is None:
            cfg = copy.deepcopy(self.cfg)
            for key in ('mutual', 'runner_type'):
                cfg.pop(key, None)
            self._test_runner = SemiRunner.from_cfg(cfg)
        return self._test_runner

    # ------------------------------------------------------------------ ranks and logs

    def _shared(self, function) -> Any:
        """Result of a function that only the first rank runs; its error is raised on all.

        Before the first stage there is no process group yet: then every rank asks for itself,
        which is right for reading, and the ledger's lock makes it safe for writing.
        """
        result: List[Any] = [None, None]
        if is_main_process():
            try:
                result = [function(), None]
            except Exception as error:
                result = [None, error]
        barrier()
        broadcast_object_list(result)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def _log_table(self, title: str) -> None:
        self._log(f'Stages {title}:\n{self.describe()}')

    def _log(self, message: str) -> None:
        if is_main_process():
            print_log(message, logger='current')
