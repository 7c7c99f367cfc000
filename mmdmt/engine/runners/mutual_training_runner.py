"""Runs dynamic mutual training and self-training: a chain of ordinary runs."""

import contextlib
import copy
import gc
import math
import os
import os.path as osp
import time
from typing import Any, Callable, Dict, List, Optional, Tuple, Union
from uuid import uuid4

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mmdmt.checkpoint import find_latest_valid_checkpoint, load_checkpoint_file
from mmdmt.config import resolve_config
from mmdmt.distributed import from_main, join_process_group
from mmdmt.engine.final import Candidate, conclude, forget_final, numbers
from mmdmt.engine.mutual import build_stage_config_builder
from mmdmt.engine.mutual.ensemble import ensemble_config, ensemble_kinds, merge_checkpoints
from mmdmt.engine.mutual.ledger import Ledger, stage_table
from mmdmt.engine.mutual.plan import Stage
from mmdmt.engine.mutual.preflight import check_chain, check_data, check_names
from mmdmt.engine.runners.semi_runner import SemiRunner
from mmdmt.engine.screen import Screen, show
from mmdmt.files import remove_stale_temporaries, require_writable
from mmdmt.finite import NonFiniteError, refuse_non_finite
from mmdmt.registry import RUNNERS

#: Folder and ledger entry of each kind of ensemble.
ENSEMBLE_NAMES = dict(predictions='ensemble', weights='averaged_weights')


@RUNNERS.register_module()
class MutualTrainingRunner:
    """Dynamic mutual training (DMT) and self-training as a chain of ordinary runs.

    Feng et al., "DMT: Dynamic mutual training for semi-supervised learning", Pattern Recognition
    2022. Round 0 trains each member on the labeled images. In each later round every member is
    fine-tuned on the labeled images and on pseudo-labels that the other member made with its
    weights of the round before. One member labels for itself, which is self-training (DST-CBC,
    CBST, curriculum labeling).

    A stage is an ordinary run of :class:`SemiRunner` in ``<work_dir>/stage_<round>_<member>``, with
    its config in ``config.py``. ``stages.json`` is the ledger: finished stages are skipped, an open
    one is resumed, a changed config is refused, and a stage belongs to one process at a time.

    Used through ``runner_type='mmdmt.MutualTrainingRunner'`` and the key ``mutual``:

    - ``task``: 'segmentation' (default) or 'classification', see
      :class:`~mmdmt.classification.ClassificationStageConfigBuilder`.
    - ``members`` (list[dict]): see :class:`~mmdmt.engine.mutual.MutualPlan`.
    - ``ratios`` (list[float]): the share of the pixels of each class that is kept, per round.
    - ``select`` (str, or a list with one for each round, round 0 first): which checkpoint of a
      stage goes on: 'last' (default); 'best' on validation by ``metric`` (default 'mIoU'), as
      DMT's code; 'best_so_far', the best over all rounds so far, as DST-CBC's code.
    - ``supervised``, ``round`` (dict): ``max_iters``, ``lr``, ``batch_size``, ``source_ratio``
      ([labeled, pseudo] images in a batch), ``from_scratch`` and ``cfg_options`` of round 0 and of
      the later ones. Of ``round`` also ``images`` ('all' or 'reliable', or a list with one for each
      round: the half of the images on which checkpoints of the labeling stage agree most) and
      ``augment`` (transforms of pseudo-labeled images, before the packing step), as in ST++, and
      ``batch_statistics``, see :class:`~mmdmt.models.PseudoLabelSegmentor`.
    - ``pseudo_loss`` (dict): default ``mmdmt.DynamicMutualLoss`` with gammas 5.
    - ``labeling`` (dict): the keyword-only arguments of :class:`~mmdmt.pseudo.PseudoLabeler`, and
      ``pipeline``, by default the test pipeline of the member that labels.
    - ``ensemble``: True, or ``dict(predictions=True, weights=True)``, validates the members' last
      checkpoints as one network, by the mean of their predictions or of their weights, in
      ``<work_dir>/ensemble`` and ``<work_dir>/averaged_weights``.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = resolve_config(cfg)
        self.builder = build_stage_config_builder(self.cfg)
        self.plan = self.builder.plan
        self.work_dir = osp.abspath(self.cfg.work_dir)
        self.ledger = Ledger(self.work_dir)

    @classmethod
    def from_cfg(cls, cfg: Union[Config, ConfigDict, dict]) -> 'MutualTrainingRunner':
        """Build from a config, as ``RUNNERS.build`` of stock tools does."""
        cfg = copy.deepcopy(cfg)
        return cls(cfg if isinstance(cfg, Config) else Config(cfg))

    def describe(self) -> str:
        """The plan with state, metric and checkpoint of each stage, as a table."""
        return stage_table(self.plan.stages, self.ledger.read(), self.builder.metric)

    def stage_config(self, name: str) -> Config:
        """The config that a stage, such as 'round_1.a', is or will be run with; nothing is run.

        Its text is a config of its own. Checkpoints of earlier stages that are not finished are
        named as they will be; with another rule than ``select='last'`` their step stands as ``*``.
        """
        return self._stage_config(self.plan.find(name), self._planned_checkpoint)

    def final_checkpoints(self) -> Dict[str, str]:
        """Path of each member's last checkpoint by member name."""
        stages = self.plan.stages[-len(self.plan.members) :]
        return {stage.member: self.ledger.checkpoint(stage.name) for stage in stages}

    def train(self) -> Dict[str, Dict[str, Any]]:
        """Run all stages that are not finished, or the one that ``cfg.stage`` names.

        Returns:
            dict[str, dict]: The ledger's entries by stage name.

        Raises:
            LedgerMismatchError: If a stage was begun with another config or from other checkpoints.
            BusyError: If another process works on a stage.
            OSError: If the work dir cannot be written to.
        """
        # Now, not with the first stage: one rank speaks for all about the ledger.
        join_process_group(self.cfg.get('launcher') or 'none', self.cfg.get('env_cfg') or {})
        from_main(lambda: require_writable(self.work_dir, '--work-dir'))
        check_data(self.cfg, check_chain(self.builder, self.work_dir), self.work_dir)
        check_names(self.builder)
        from_main(self._dump_config)
        only = self.cfg.get('stage')
        with Screen.chain(self._lengths() if Screen.quiet else []):
            for stage in [self.plan.find(only)] if only else self.plan.stages:
                Screen.index = self.plan.stages.index(stage)
                self._run_unless_done(stage)
                if only or stage.member == self.plan.member_names[-1]:
                    title = f'Stages after round {stage.round}:'
                    self._log(title, table=True, on_screen=bool(only))
        if not only and len(self.plan.members) > 1:
            for kind in ensemble_kinds(self.builder.mutual.get('ensemble', False)):
                self._run_ensemble(kind)
        if not only:
            report = from_main(self._conclude)
            self._log('All stages:', table=True)
            show(report)
        return from_main(self.ledger.read)

    def _lengths(self) -> List[int]:
        """Steps of each stage."""
        folders = {stage: osp.join(self.work_dir, stage.name) for stage in self.plan.stages}
        return [self.builder.build(*pair).train_cfg.max_iters for pair in folders.items()]

    def _conclude(self) -> str:
        """Rank 0: note which of the last round's checkpoints and the ensembles to use, and why."""
        entries, key = self.ledger.read(), self.builder.metric
        last = [stage.name for stage in self.plan.stages[-len(self.plan.members) :]]
        names = [*last, *(name for name in ENSEMBLE_NAMES.values() if self.ledger.is_done(name))]
        rows = [
            Candidate(
                self.ledger.checkpoint(name),
                '',
                entries[name]['metrics'],
                osp.join(self.work_dir, name, 'config.py'),
            )
            for name in names
        ]
        scored = [row for row in rows if key in row.metrics]
        chosen = max(scored, key=lambda row: row.metrics[key]) if scored else rows[0]
        name = names[rows.index(chosen)]
        why = f'{name}, the first of the last round: nothing was validated'
        if scored:
            score = chosen.metrics[key]
            why = f'{name}, of {names} the best on the validation set by {key} ({score:.2f})'
        if name == ENSEMBLE_NAMES['predictions']:
            why += f'; it runs {len(last)} networks for each image'
        method = 'dmt' if len(last) > 1 else 'self_training'
        task = self.builder.mutual.get('task', 'segmentation')
        return conclude(self.work_dir, chosen, why, rows, method, task)

    def _dump_config(self) -> None:
        """Write what is trained into the work dir, unless the config that was read lies there."""
        read = osp.abspath(self.cfg.filename or 'config.py')
        path = osp.join(self.work_dir, osp.basename(read))
        if path != read:
            whole = copy.deepcopy(self.cfg)
            whole.pop('stage', None)
            os.makedirs(self.work_dir, exist_ok=True)
            whole.dump(path)

    def redo(self, text: str) -> List[str]:
        """Put a stage, such as 'round_1.a', and all that are made from it away, to make them again.

        Returns:
            list[str]: Names of the stages. Their folders are in ``<work_dir>/replaced/<time>``.
        """
        join_process_group(self.cfg.get('launcher') or 'none', self.cfg.get('env_cfg') or {})
        return from_main(lambda: self._put_away(self.plan.with_later(self.plan.find(text))))

    def _put_away(self, stages: List[Stage]) -> List[str]:
        require_writable(self.work_dir, '--work-dir')
        away = osp.join(self.work_dir, 'replaced', time.strftime('%Y%m%d_%H%M%S'))
        with contextlib.ExitStack() as held:
            for stage in stages:
                held.enter_context(self.ledger.hold(stage.name))
            forget_final(self.work_dir)
            for stage in reversed(stages):
                self.ledger.forget(stage.name)
                folder = osp.join(self.work_dir, stage.name)
                if osp.isdir(folder):
                    os.makedirs(away, exist_ok=True)
                    os.rename(folder, osp.join(away, stage.name))
        return [stage.name for stage in stages]

    def _run_unless_done(self, stage: Stage) -> None:
        cfg = self._stage_config(stage, self.ledger.checkpoint)
        with contextlib.ExitStack() as held:
            is_open, latest = from_main(lambda: self._begin(stage, cfg, held))
            if is_open:
                cfg.update(resume=latest is not None, load_from=latest or cfg.load_from)
                self._run(stage, cfg)
                _free_memory()
            else:
                self._log(f'{stage.name}: finished before, skipped')

    def _begin(
        self, stage: Stage, cfg: Config, held: contextlib.ExitStack
    ) -> Tuple[bool, Optional[str]]:
        """Rank 0: take a stage for this process; whether it is open, and what to resume from."""
        config = self.builder.comparable(cfg)
        made_from = self.ledger.checksums(stage.needs)
        self.ledger.check(stage.name, config, made_from)
        if not self.ledger.is_done(stage.name):
            held.enter_context(self.ledger.hold(stage.name))
        if self.ledger.is_done(stage.name):  # before, or by another process in the meantime
            return False, None
        latest = find_latest_valid_checkpoint(cfg.work_dir)
        if latest is not None and self.ledger.entry(stage.name)['state'] == 'pending':
            raise RuntimeError(
                f'{cfg.work_dir} holds {osp.basename(latest)}, but {self.ledger.path} does not '
                f'know with which config it was made: put the folder away (or run with --redo '
                f'{stage.name})'
            )
        self.ledger.begin(stage.name, config, made_from)
        forget_final(self.work_dir)
        return True, latest

    def _run(self, stage: Stage, cfg: Config) -> None:
        began = time.time()
        labels = f'labels from {stage.labeled_by}' if stage.round else 'labeled images only'
        self._log(f'{stage.name}: {"resumes" if cfg.resume else "starts"}, {labels}')
        runner = self._build_runner(cfg)
        try:
            runner.train()
        except NonFiniteError as error:
            part = 'round' if stage.round else 'supervised'
            raise NonFiniteError(
                f'{stage.name}: {error} The chain stops here and keeps what is finished. To go on, '
                f'lower `mutual.{part}.lr` and run with --redo {stage.name}, or --redo the stage '
                'whose checkpoint is named as bad; finished stages that the change concerns are '
                'refused by name until they are made again, too.'
            ) from error

        product = from_main(lambda: self._product(stage, runner))
        self._finish(stage.name, *product, began)
        rule = self.builder.select_of(stage)
        path = osp.relpath(product[0], self.work_dir)
        self._log(f'goes on with {path} (select={rule})', on_screen=False)

    def _product(
        self, stage: Stage, runner: SemiRunner
    ) -> Tuple[str, Dict[str, float], Dict[str, Any]]:
        """Rank 0: checkpoint of a finished stage by its rule, metrics, and facts for the ledger."""
        rule = self.builder.select_of(stage)
        facts = dict(select=rule)
        if rule == 'last':
            path = osp.join(runner.work_dir, f'iter_{runner.max_iters}.pth')
            return path, runner.results.metrics, facts
        best = runner.message_hub.runtime_info.get('best_ckpt')
        if best is None:
            raise RuntimeError(
                f'`mutual.select={rule!r}` found no best checkpoint in {runner.work_dir}: set '
                '`train_cfg.val_interval` to at most `max_iters` and `val_dataloader`'
            )
        score = float(runner.message_hub.get_info('best_score'))
        if rule == 'best_so_far' and stage.round:
            before = self.ledger.entry(stage.previous)
            if before['metrics'].get(self.builder.metric, score) > score:
                facts['selected_from'] = before.get('selected_from', stage.previous)
                return osp.join(self.work_dir, before['checkpoint']), before['metrics'], facts
        return best, {self.builder.metric: score}, facts

    def _stage_config(self, stage: Stage, checkpoint_of: Callable[[str], str]) -> Config:
        """Config of a stage, with the checkpoints of the stages that it needs."""
        paths = from_main(lambda: {name: checkpoint_of(name) for name in stage.needs})
        return self.builder.build(
            stage,
            osp.join(self.work_dir, stage.name),
            load_from=paths.get(stage.previous),
            teacher_checkpoint=paths.get(stage.labeled_by),
        )

    def _planned_checkpoint(self, name: str) -> str:
        """Path of a stage's checkpoint, also where it will be."""
        if self.ledger.is_done(name):
            return self.ledger.checkpoint(name)
        stage, folder = self.plan.find(name), osp.join(self.work_dir, name)
        if self.builder.select_of(stage) != 'last':
            return osp.join(folder, f'best_{self.builder.metric.replace("/", "_")}_iter_*.pth')
        length = self.builder.build(stage, folder).train_cfg.max_iters
        return osp.join(folder, f'iter_{length}.pth')

    def _build_runner(self, cfg: Config) -> SemiRunner:
        # mmengine keeps loggers, message hubs and visualizers by name for the whole process: under
        # one name all stages would write into the folder of the first.
        cfg.experiment_name = f'{osp.basename(cfg.work_dir)}_{uuid4().hex[:8]}'
        if cfg.get('visualizer'):
            cfg.visualizer.name = cfg.experiment_name
        return SemiRunner.from_cfg(cfg)

    def _run_ensemble(self, kind: str) -> None:
        """Validate the final members as one network, unless that was done."""
        name, began = ENSEMBLE_NAMES[kind], time.time()
        models = [self.builder.member_model(member) for member in self.plan.member_names]
        cfg = ensemble_config(self.cfg, models, kind, osp.join(self.work_dir, name))
        path = osp.join(cfg.work_dir, 'ensemble.pth')
        with contextlib.ExitStack() as held:
            if not from_main(lambda: self._begin_ensemble(name, kind, path, cfg, held)):
                return
            runner = self._build_runner(cfg)
            runner.load_checkpoint(path, strict=True)
            metrics = runner.val() if cfg.get('val_dataloader') else {}
            self._finish(name, path, numbers(metrics), {}, began)
        self._log(f'Stages with {name}:', table=True, on_screen=False)

    def _begin_ensemble(
        self, name: str, kind: str, path: str, cfg: Config, held: contextlib.ExitStack
    ) -> bool:
        """Rank 0: whether the ensemble has to be validated; then its checkpoint is written."""
        checkpoints = list(self.final_checkpoints().values())
        facts = self.ledger.checksums([s.name for s in self.plan.stages[-len(checkpoints) :]])
        if self.ledger.entry(name).get('config') != facts:  # of other members, or of fewer rounds
            self.ledger.forget(name)
        elif self.ledger.is_done(name):
            return False
        held.enter_context(self.ledger.hold(name))
        self.ledger.begin(name, facts)
        remove_stale_temporaries(osp.dirname(path))
        trusted = self.cfg.get('trusted_checkpoints', ())
        merge_checkpoints(checkpoints, path, kind, trusted, cfg)
        return True

    def test(self) -> Dict[str, float]:
        """Test ``cfg.load_from``, as stock ``tools/test.py`` asks for."""
        cfg = copy.deepcopy(self.cfg)
        for key in ('mutual', 'runner_type'):
            cfg.pop(key, None)
        return SemiRunner.from_cfg(cfg).test()

    def _finish(
        self, name: str, path: str, metrics: Dict[str, float], facts: Dict[str, Any], began: float
    ) -> None:
        """Note in the ledger what a stage, or an ensemble, made."""
        seconds, key = time.time() - began, self.builder.metric
        from_main(lambda: self._refuse_non_finite(name, path, metrics))
        # A class that never occurs has no accuracy.
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        from_main(lambda: self.ledger.finish(name, path, metrics, seconds, **facts))
        found = f'{key} {metrics[key]:.2f}' if key in metrics else f'no {key!r} in {[*metrics]}'
        self._log(f'{name}: done, {found}')

    def _refuse_non_finite(self, name: str, path: str, metrics: Dict[str, float]) -> None:
        """Rank 0: a stage with such weights, or such a score, is not done."""
        key = self.builder.metric
        if not math.isfinite(metrics.get(key, 0)):
            raise NonFiniteError(
                f'{name}: the validation gives {key}={metrics[key]}, so that the stage is not '
                'done: is there any labeled pixel in the validation set? A restart validates again.'
            )
        content = load_checkpoint_file(path, trusted=self.cfg.get('trusted_checkpoints', ()))
        refuse_non_finite(content.get('state_dict', content), f'{name}: checkpoint {path}')

    def _log(self, message: str, table: bool = False, on_screen: bool = True) -> None:
        if is_main_process():
            text = f'{message}\n{self.describe()}' if table else message
            show(text) if on_screen else print_log(text, logger='current')


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
