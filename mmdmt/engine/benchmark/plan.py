"""A plan of runs that are compared: which there are, and the config of each."""

import copy
import functools
import hashlib
import os.path as osp
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from mmengine.config import Config

from mmdmt.checks import check_choice, check_count, refuse_unknown_keys
from mmdmt.config import flatten, merge_options, resolve_config, schedulers_of
from mmdmt.engine.benchmark.cost import step_cost
from mmdmt.engine.mutual.stage_config import VOLATILE_KEYS

# fmt: off
PLAN_KEYS = {
    'name', 'base', 'methods', 'baseline', 'labels', 'folds', 'lists', 'seeds', 'budget',
    'validations', 'metric', 'select_by', 'options', 'dataset', 'quick',
}
METHOD_KEYS = {'config', 'method', 'method_options', 'options', 'passes'}
# What says nothing about the outcome of a run.
_OF_THE_MACHINE = {
    'work_dir', 'launcher', 'log_level', 'log_processor', 'visualizer', 'vis_backends', 'env_cfg',
    'default_hooks', 'resume', 'filename',
} | VOLATILE_KEYS - {'val_interval'}
# fmt: on
#: Lengths of online methods that are numbers of steps: they are scaled with the budget.
TIME_SETTINGS = ('rampup_iters', 'shift_length')
#: Between the seeds of the members of mutual training, so that no two runs share one.
MEMBER_SEEDS = 100


class Run(NamedTuple):
    """One training of a plan.

    Attributes:
        method: Its name in the plan.
        labels: Name of the set of labels, such as '1_8'.
        fold: Which draw of it.
        seed: Of weights, batches and augmentation.
    """

    method: str
    labels: str
    fold: Any
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run below that of the benchmark."""
        return f'{self.labels}_fold_{self.fold}/{self.method}/seed_{self.seed}'


class Plan:
    """Runs of several methods on several sets of labels with several seeds; docs/benchmark.md.

    Args:
        cfg: What the plan file says.
        folder: Folder that paths of configs are relative to.
        quick: Whether to take the smaller settings in ``quick``.

    Raises:
        ValueError: A key is unknown or missing, or a value has no meaning.
    """

    def __init__(self, cfg: Config, folder: str, quick: bool = False) -> None:
        settings = cfg.to_dict()
        refuse_unknown_keys('the plan', settings, PLAN_KEYS)
        smaller = settings.pop('quick', {})
        refuse_unknown_keys('quick', smaller, PLAN_KEYS - {'quick', 'name'})
        if quick and not smaller:
            raise ValueError('the plan has no `quick` settings: leave --quick out')
        self.folder, self.quick = folder, quick
        self.methods: Dict[str, dict] = dict(settings.get('methods') or {})
        self.name = settings.get('name', 'benchmark')
        self.base = settings.get('base')
        if quick:
            chosen = smaller.pop('methods', list(self.methods))
            self.methods = {name: self._method(name) for name in chosen}
            settings.update(smaller)
        self.baseline = settings.get('baseline', next(iter(self.methods), None))
        self.labels: List[str] = settings.get('labels', ['all'])
        self.folds: list = settings.get('folds', [0])
        self.lists: Optional[str] = settings.get('lists')
        self.seeds: List[int] = settings.get('seeds', [])
        self.budget: Dict[str, Any] = settings.get('budget', {})
        self.validations: int = settings.get('validations', 4)
        self.metric: str = settings.get('metric', 'mIoU')
        self.select_by: str = settings.get('select_by', 'mIoU')
        self.options: Dict[str, Any] = settings.get('options', {})
        self.dataset: Dict[str, Any] = settings.get('dataset', {})
        self._check()

    @classmethod
    def fromfile(
        cls, path: str, quick: bool = False, options: Optional[Dict[str, Any]] = None
    ) -> 'Plan':
        """Read a plan file; ``options`` as of ``--cfg-options``, also over those of ``quick``."""
        cfg = Config.fromfile(path)
        smaller = {*cfg.get('quick', {})} - {'methods'} if quick else ()
        for key, value in (options or {}).items():
            cfg.merge_from_dict({'quick.' * (key.split('.')[0] in smaller) + key: value})
        cfg.setdefault('name', Path(path).stem)
        return cls(cfg, osp.dirname(osp.abspath(path)), quick)

    def _method(self, name: str) -> dict:
        if name not in self.methods:
            raise ValueError(
                f'there is no method {name!r} in `methods`, which has {[*self.methods]}'
            )
        return self.methods[name]

    def _check(self) -> None:
        for key in ('methods', 'labels', 'folds', 'seeds'):
            value = getattr(self, key)
            if not value or not isinstance(value, (dict, list, tuple)):
                raise ValueError(f'`{key}` of the plan must list at least one, got {value!r}')
        self.labels = [str(labels) for labels in self.labels]
        self._method(self.baseline)
        for name, method in self.methods.items():
            refuse_unknown_keys(f'methods.{name}', method, METHOD_KEYS)
            if not ('config' in method or ('method' in method and self.base)):
                raise ValueError(
                    f'`methods.{name}` needs a `config`, or a `method` and the plan a `base`'
                )
        if len(self.budget) != 1:
            raise ValueError(
                f'`budget` must be dict(student_steps=...) or dict(passes=...), got {self.budget}'
            )
        (kind, amount) = next(iter(self.budget.items()))
        check_choice('budget', kind, ('student_steps', 'passes'))
        for labels in self.labels:
            own = amount.get(labels) if isinstance(amount, dict) else amount
            check_count(f'budget.{kind}' + f'.{labels}' * isinstance(amount, dict), own, 1)
        check_count('validations', self.validations, 1)
        refuse_unknown_keys('dataset', self.dataset, ('toy_scenes',))
        check_choice('metric', self.metric, ('mIoU', 'mAcc', 'aAcc'))

    @property
    def runs(self) -> List[Run]:
        """All runs; those of one seed together, so that comparisons are complete early."""
        return [
            Run(method, labels, fold, seed)
            for labels in self.labels
            for fold in self.folds
            for seed in self.seeds
            for method in self.methods
        ]

    # --- Config of a run -------------------------------------------------------------------------

    def config(self, run: Run, work_dir: str) -> Config:
        """The resolved config of a run: lists, seed and length are those of the plan.

        Raises:
            ValueError: The config has no length, or the budget cannot be given to it.
        """
        cfg = self._resolved(run)
        steps = self.steps(run, cfg)
        set_length(cfg, steps, {*self.options, *self.methods[run.method].get('options', {})})
        interval = -(-steps // self.validations)
        cfg.train_cfg.val_interval = interval
        hooks = dict(cfg.get('default_hooks') or {})
        own = dict(interval=interval, save_best=self.select_by, max_keep_ckpts=1)
        cfg.default_hooks = dict(hooks, checkpoint={**(hooks.get('checkpoint') or {}), **own})
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=run.seed)
        for index, member in enumerate((cfg.get('mutual') or {}).get('members', ())):
            member['seed'] = MEMBER_SEEDS * index  # the first one starts as the baseline does
        cfg.work_dir = work_dir
        return cfg

    def steps(self, run: Run, cfg: Config) -> int:
        """Student steps of a run: of the plan, or as many as its passes allow."""
        (kind, amount) = next(iter(self.budget.items()))
        amount = amount[run.labels] if isinstance(amount, dict) else amount
        if kind == 'student_steps':
            return amount
        own = step_cost(cfg, self.methods[run.method].get('passes'))
        if own is None:
            raise ValueError(
                f'the cost of {cfg.model.type} is not known: give `methods.{run.method}.passes`, '
                'see docs/benchmark.md'
            )
        return max(1, int(amount // own.passes))

    def _resolved(self, run: Run) -> Config:
        entry = self.methods[run.method]
        cfg = self._config_of(entry)
        for member in (cfg.get('mutual') or {}).get('members', ()) if self.lists else ():
            if 'labeled_list' in member:  # a subset, beside the list of all labels
                folder = osp.dirname(self._lists(run)['labeled_list'])
                member['labeled_list'] = f'{folder}/{osp.basename(member.labeled_list)}'
        merge_options(cfg, {**self._lists(run), **self.options, **entry.get('options', {})})
        return resolve_config(cfg)

    def _config_of(self, entry: dict) -> Config:
        """The config of a method, not resolved."""
        if 'config' in entry:
            return copy.deepcopy(_read(self._path(entry['config'])))
        from mmdmt.composition import compose_method  # plans of configs alone do not need it

        base = copy.deepcopy(_read(self._path(self.base)))
        return compose_method(base, entry['method'], method_options=entry.get('method_options'))

    def _lists(self, run: Run) -> Dict[str, str]:
        if self.lists is None:
            return {}
        folder = self.lists.format(labels=run.labels, fold=run.fold, seed=run.seed)
        return {f'{kind}_list': f'{folder}/{kind}.txt' for kind in ('labeled', 'unlabeled')}

    def _path(self, path: str) -> str:
        beside = osp.join(self.folder, path)
        return osp.normpath(beside) if osp.exists(beside) else path


@functools.cache
def _read(path: str) -> Config:
    """A config file, which takes long to read and which many runs share."""
    return Config.fromfile(path)


def lengths_of(cfg: Config) -> List[int]:
    """Steps of a run of an online method, or of each stage of a member of mutual training."""
    mutual = cfg.get('mutual')
    if not mutual:
        return [cfg.train_cfg.max_iters]
    first = (mutual.get('supervised') or {}).get('max_iters', cfg.train_cfg.max_iters)
    later = (mutual.get('round') or {}).get('max_iters', cfg.train_cfg.max_iters)
    rounds = len(mutual.ratios)
    return [first, *(later if isinstance(later, (list, tuple)) else [later] * rounds)]


def set_length(cfg: Config, steps: int, given: Sequence[str] = ()) -> None:
    """Give a resolved config another length, and everything in it that is counted in steps.

    Stages of mutual training keep their proportions, and their sum is ``steps``. Schedulers that
    end with training still do; warm-ups, and :data:`TIME_SETTINGS` of online methods that are not
    in ``given``, keep their share of the run. A fraction is a share of ``steps``.

    Raises:
        ValueError: The run is not counted in steps, or has more stages than steps.
    """
    if 'max_iters' not in (cfg.get('train_cfg') or {}):
        raise ValueError('`train_cfg.max_iters` is missing: a benchmark is counted in steps')
    lengths, end = lengths_of(cfg), cfg.train_cfg.max_iters
    if steps < len(lengths):
        raise ValueError(f'{steps} steps are too few for {len(lengths)} stages: raise `budget`')
    scale = steps / sum(lengths)
    if 'mutual' in cfg:
        first, *later = _shares(lengths, steps)
        for key, value in (('supervised', first), ('round', later)):
            cfg.mutual[key] = dict(cfg.mutual.get(key) or {}, max_iters=value)
        new_end = end  # each stage sets its own
    else:
        cfg.train_cfg.max_iters = new_end = steps
        for key in TIME_SETTINGS:
            value = cfg.model.get(key)
            if isinstance(value, float) or (isinstance(value, int) and f'model.{key}' not in given):
                factor = steps if isinstance(value, float) else scale
                cfg.model[key] = round(value * factor) or int(key == 'shift_length')
    schedulers = schedulers_of(cfg)
    for scheduler in schedulers:
        for key in {'begin', 'end'} & set(scheduler):
            old = scheduler[key]
            scheduler[key] = new_end if old == end else round(old * scale)
    kept = [s for s in schedulers if 'end' not in s or s.get('begin', 0) < s['end']]
    if schedulers:
        cfg.param_scheduler = kept


def _shares(lengths: Sequence[int], total: int) -> List[int]:
    """Whole numbers of at least 1 in the proportions of ``lengths`` whose sum is ``total``."""
    ends, done = [], 0
    for index, length in enumerate(lengths):
        done += length
        least, most = index + 1, total - (len(lengths) - index - 1)
        end = round(total * done / sum(lengths))
        ends.append(min(max(end, least, ends[-1] + 1 if ends else 1), most))
    return [end - begin for begin, end in zip([0, *ends], ends)]


# --- Identity of a run ---------------------------------------------------------------------------


def identity(cfg: Config) -> Dict[str, str]:
    """What decides the outcome of a run, flat, with the SHA-256 of its lists of images."""
    flat: Dict[str, str] = {}
    for key in cfg:
        flatten(key, cfg[key], flat, _OF_THE_MACHINE, _text)
    for source in cfg.train_dataloader.dataset.get('datasets', []):
        # Generated images have a manifest.
        for name in (source.get('ann_file') or '', 'manifest.json'):
            path = osp.join(source.get('data_root') or '', name)
            if osp.isfile(path):
                digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                flat[f'list {name}'] = digest[:16]
    return flat


def _text(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)
