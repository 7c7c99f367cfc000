"""Runs dynamic mutual training and self-training: a chain of ordinary runs."""

import contextlib
import copy
import gc
import os
import os.path as osp
import time
from collections.abc import Iterator
from typing import Any, Dict, List, Optional, Tuple, Union
from uuid import uuid4

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmdmt.checkpoint import find_latest_valid_checkpoint
from mmdmt.config import resolve_config
from mmdmt.distributed import from_main, join_process_group
from mmdmt.engine.mutual import build_stage_config_builder
from mmdmt.engine.mutual.ensemble import (
    checkpoint_facts,
    ensemble_config,
    ensemble_kinds,
    merge_checkpoints,
)
from mmdmt.engine.mutual.ledger import Ledger, stage_table
from mmdmt.engine.mutual.plan import Stage
from mmdmt.engine.mutual.preflight import check_chain
from mmdmt.engine.runners.semi_runner import SemiRunner
from mmdmt.registry import HOOKS, RUNNERS

#: Folder and ledger entry of each kind of ensemble.
ENSEMBLE_NAMES = dict(predictions='ensemble', weights='averaged_weights')


class ValidationResults(Hook):
    """Keeps the metrics of the last validation."""

    def __init__(self) -> None:
        self.metrics: Dict[str, float] = {}

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Take the metrics."""
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
    it was cut, a changed config is refused, and a stage belongs to one process at a time.
    ``--stage`` runs one stage only; two machines that share the work dir can thus share a round.

    Used through ``runner_type='mmdmt.MutualTrainingRunner'`` and the key ``mutual``:

    - ``task`` ('segmentation' | 'classification'): defaults to segmentation; for classification
      see :class:`~mmdmt.engine.mutual.ClassificationStageConfigBuilder`.
    - ``members`` (list[dict]): see :class:`~mmdmt.engine.mutual.MutualPlan`.
    - ``ratios`` (list[float]): one per round.
    - ``select`` (str, or a list with one for each round, round 0 first): which checkpoint of a
      stage goes on. 'last' is the default; 'best' takes the best on validation, as DMT's code;
      'best_so_far' the member's best over all rounds so far, as DST-CBC's code. ``metric`` (str)
      defaults to 'mIoU'.
    - ``supervised``, ``round`` (dict): ``max_iters``, ``lr``, ``batch_size``, ``source_ratio``
      ([labeled, pseudo] images in a batch), ``from_scratch`` and ``cfg_options`` of the
      labeled-only stage and of each round.
    - ``pseudo_loss`` (dict): the loss; default ``mmdmt.DynamicMutualLoss`` with gammas 5.
    - ``labeling`` (dict): ``batch_size``, ``num_workers``, ``pixel_stride``, ``bins``, ``rule``,
      ``balance``, ``threshold``, ``amp`` and ``tta`` as in
      :class:`~mmdmt.pseudo.labeler.PseudoLabeler`, and ``pipeline``; by default the test pipeline
      of the member that labels, every 16th pixel for exact thresholds.
    - ``ensemble`` (bool or dict): True, or ``dict(predictions=True, weights=True)``, validates the
      members' last checkpoints as one network when the chain is finished: by the mean of their
      predictions, or of their weights. Written to ``<work_dir>/ensemble`` and
      ``<work_dir>/averaged_weights``, each with ``config.py`` and ``ensemble.pth``.

    Args:
        cfg (Config): The whole config.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = resolve_config(cfg)
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
            LedgerMismatchError: If a stage was begun with another config or from other checkpoints.
            StageBusyError: If another process works on a stage.
            ValueError: If a stage, now or later, could not do what the config says.
            RuntimeError: If ``cfg.stage`` needs a stage that is not finished.
        """
        self._join_ranks()
        self._check_data(check_chain(self.builder, self.work_dir))
        only = self.cfg.get('stage')
        stages = [self.plan.find(only)] if only else self.plan.stages
        for index, stage in enumerate(stages):
            self._run_unless_done(stage)
            last_of_round = index + 1 == len(stages) or stages[index + 1].round > stage.round
            if last_of_round or only:
                self._log_table(f'after round {stage.round}')
        if not only:
            self._run_ensembles()
        return from_main(self.ledger.read)

    def describe(self) -> str:
        """The plan with state, metric and checkpoint of each stage, as a table."""
        return stage_table(self.plan.stages, self.ledger.read(), self.builder.metric)

    def final_checkpoints(self) -> Dict[str, str]:
        """Path of each member's last checkpoint by member name."""
        last = len(self.plan.ratios)
        names = self.plan.member_names
        return {name: self.ledger.checkpoint(Stage(last, name).name) for name in names}

    def redo(self, text: str) -> List[str]:
        """Put a stage and all that are made from it away, so that they are made again.

        Args:
            text (str): The stage, as for :meth:`~mmdmt.engine.mutual.MutualPlan.find`.

        Returns:
            list[str]: Names of the stages. Their folders are in ``<work_dir>/replaced/<time>``.
        """
        self._join_ranks()
        return from_main(lambda: self._put_away(self.plan.with_later(self.plan.find(text))))

    def _put_away(self, stages: List[Stage]) -> List[str]:
        away = osp.join(self.work_dir, 'replaced', time.strftime('%Y%m%d_%H%M%S'))
        with contextlib.ExitStack() as stack:
            for stage in stages:
                stack.enter_context(self.ledger.hold(stage.name))
            for stage in reversed(stages):
                self.ledger.forget(stage.name)
                folder = osp.join(self.work_dir, stage.name)
                if osp.isdir(folder):
                    os.makedirs(away, exist_ok=True)
                    os.rename(folder, osp.join(away, stage.name))
        return [stage.name for stage in stages]

    def _join_ranks(self) -> None:
        # Now, not with the first stage: one rank speaks for all about the ledger.
        join_process_group(self.cfg.get('launcher') or 'none', self.cfg.get('env_cfg') or {})

    def _check_data(self, first_configs: List[Config]) -> None:
        """Check all sources now: a fault in the unlabeled images must not wait for round 1."""
        check = self.cfg.get('default_hooks', {}).get('dataset_check')
        if not check:
            return
        val = (self.cfg.get('val_dataloader') or {}).get('dataset')
        whole = self.cfg.train_dataloader.dataset
        with DefaultScope.overwrite_default_scope(self.cfg.get('default_scope', 'mmseg')):
            hook = HOOKS.build(check)
            hook.check(whole, val, self.work_dir)
            seen = [whole.datasets[0]]
            for cfg in first_configs:  # members may have labeled images of their own
                labeled = cfg.train_dataloader.dataset.datasets[0]
                if labeled not in seen:
                    hook.check(cfg.train_dataloader.dataset, val, self.work_dir)
                    seen.append(labeled)

    def _run_unless_done(self, stage: Stage) -> None:
        cfg = self._stage_config(stage)
        flat = self.builder.comparable(cfg)
        made_from = from_main(lambda: self.ledger.checksums(stage.needs))
        from_main(lambda: self.ledger.check(stage.name, flat, made_from))
        if self._is_done(stage.name):
            return
        with self._held(stage.name):
            if self._is_done(stage.name):  # by another process, in the meantime
                return
            latest = from_main(lambda: self._checkpoint_to_resume(stage, cfg.work_dir))
            if latest is not None:
                cfg.resume, cfg.load_from = True, latest
            from_main(lambda: self.ledger.begin(stage.name, flat, made_from))
            self._run(stage, cfg)

    def _is_done(self, name: str) -> bool:
        done = from_main(lambda: self.ledger.is_done(name))
        if done:
            self._log(f'{name}: finished before, skipped')
        return done

    @contextlib.contextmanager
    def _held(self, name: str) -> Iterator[None]:
        """Keep a stage, or an ensemble, for this process and its other ranks."""
        with contextlib.ExitStack() as stack:
            from_main(lambda: stack.enter_context(self.ledger.hold(name)))
            yield

    def _checkpoint_to_resume(self, stage: Stage, folder: str) -> Optional[str]:
        """The newest checkpoint of a stage that was begun, None if it has none.

        Raises:
            RuntimeError: If the folder has one, but the ledger says nothing of the stage.
        """
        latest = find_latest_valid_checkpoint(folder)
        if latest is not None and self.ledger.entry(stage.name)['state'] == 'pending':
            raise RuntimeError(
                f'{folder} holds {osp.basename(latest)}, but {self.ledger.path} does not say with '
                f'which config it was made: put the folder away (or run with --redo {stage.name})'
            )
        return latest

    def _run(self, stage: Stage, cfg: Config) -> None:
        began = time.time()
        self._log(
            f'{stage.name}: {"resumes" if cfg.resume else "starts"}, '
            + (f'labels from {stage.labeled_by}' if stage.round else 'labeled images only')
        )
        runner = self._build_runner(cfg)
        if is_main_process():
            cfg.dump(osp.join(cfg.work_dir, 'config.py'))
        results = ValidationResults()
        runner.register_hook(results)
        runner.train()
        checkpoint, metrics, facts = self._product(stage, runner, results)
        if metrics and self.builder.metric not in metrics:
            self._log(f'`mutual.metric` is {self.builder.metric!r}, but there are {[*metrics]}')
        from_main(
            lambda: self.ledger.finish(
                stage.name, checkpoint, metrics, time.time() - began, **facts
            )
        )
        self._log(
            f'{stage.name}: done, {_as_text(metrics, self.builder.metric)}, goes on with '
            f'{osp.relpath(checkpoint, self.work_dir)} (select={facts["select"]})'
        )
        del runner
        _free_memory()

    def _product(
        self, stage: Stage, runner: SemiRunner, results: ValidationResults
    ) -> Tuple[str, Dict[str, float], Dict[str, Any]]:
        """Checkpoint of a finished stage by its rule, its metrics, and facts for the ledger."""
        rule = self.builder.select_of(stage)
        facts = dict(select=rule)
        if rule == 'last':
            path = osp.join(runner.work_dir, f'iter_{runner.max_iters}.pth')
            return path, results.metrics, facts
        best = runner.message_hub.runtime_info.get('best_ckpt')
        if best is None:
            raise RuntimeError(
                f'`mutual.select={rule!r}` found no best checkpoint in {runner.work_dir}: set '
                '`train_cfg.val_interval` to at most `max_iters` and `val_dataloader`'
            )
        score = float(runner.message_hub.get_info('best_score'))
        if rule == 'best_so_far' and stage.round:
            before = from_main(lambda: self.ledger.entry(stage.previous))
            if before['metrics'].get(self.builder.metric, score) > score:
                facts['selected_from'] = before.get('selected_from', stage.previous)
                return osp.join(self.work_dir, before['checkpoint']), before['metrics'], facts
        return best, {self.builder.metric: score}, facts

    def _stage_config(self, stage: Stage) -> Config:
        """Config of a stage, with the checkpoints of the stages that it needs."""
        checkpoints = {
            name: from_main(lambda name=name: self.ledger.checkpoint(name)) for name in stage.needs
        }
        first = self.builder.initial_checkpoint(stage)
        return self.builder.build(
            stage,
            osp.join(self.work_dir, stage.name),
            load_from=checkpoints.get(stage.previous, first),
            teacher_checkpoint=checkpoints.get(stage.labeled_by),
        )

    def _build_runner(self, cfg: Config) -> SemiRunner:
        # mmengine keeps loggers, message hubs and visualizers by name for the whole process: under
        # one name all stages would write into the folder of the first.
        cfg.experiment_name = f'{osp.basename(cfg.work_dir)}_{uuid4().hex[:8]}'
        if cfg.get('visualizer'):
            cfg.visualizer.name = cfg.experiment_name
        return SemiRunner.from_cfg(cfg)

    # ------------------------------------------------------------------ ensemble

    def _run_ensembles(self) -> None:
        """Validate the final members as one network, in each way that is asked for."""
        kinds = ensemble_kinds(self.builder.mutual.get('ensemble', False))
        if kinds and len(self.plan.members) == 1:
            self._log('`mutual.ensemble` has nothing to do: there is one member')
            return
        for kind in kinds:
            name = ENSEMBLE_NAMES[kind]
            checkpoints = from_main(self.final_checkpoints)
            flat = from_main(lambda paths=checkpoints: checkpoint_facts(paths))
            entry = from_main(lambda name=name: self.ledger.entry(name))
            if entry.get('config') != flat:  # of other members, say before a round was added
                from_main(lambda name=name: self.ledger.forget(name))
            elif from_main(lambda name=name: self.ledger.is_done(name)):
                continue
            with self._held(name):
                from_main(lambda name=name, flat=flat: self.ledger.begin(name, flat))
                self._run_ensemble(name, kind, list(checkpoints.values()))
            self._log_table(f'with {name}')

    def _run_ensemble(self, name: str, kind: str, checkpoints: List[str]) -> None:
        began = time.time()
        folder = osp.join(self.work_dir, name)
        models = [self.builder.member_model(member) for member in self.plan.member_names]
        cfg = ensemble_config(self.cfg, models, kind, folder)
        path = osp.join(folder, 'ensemble.pth')
        trusted = self.cfg.get('trusted_checkpoints', ())
        from_main(lambda: merge_checkpoints(checkpoints, path, kind, trusted))
        runner = self._build_runner(cfg)
        if is_main_process():
            cfg.dump(osp.join(folder, 'config.py'))
        runner.load_checkpoint(path, strict=True)
        metrics = runner.val() if cfg.get('val_dataloader') else {}
        metrics = {key: float(value) for key, value in metrics.items()}
        del runner
        _free_memory()
        from_main(lambda: self.ledger.finish(name, path, metrics, time.time() - began))
        self._log(
            f'{name}: {_as_text(metrics, self.builder.metric)} from the {kind} of '
            f'{len(checkpoints)} members'
        )

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

    def _log_table(self, title: str) -> None:
        self._log(f'Stages {title}:\n{self.describe()}')

    def _log(self, message: str) -> None:
        if is_main_process():
            print_log(message, logger='current')


def _as_text(metrics: Dict[str, float], key: str) -> str:
    return f'{key} {metrics[key]:.2f}' if key in metrics else 'not validated'


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
