"""Derives the config of each stage, an ordinary training run, from one ``mutual`` config."""

import copy
import os.path as osp
from collections.abc import Iterator, Sequence
from typing import Any, Dict, List, Optional

from mmcv.transforms import LoadAnnotations
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from mmdmt.checks import check_choice, check_count, check_range, refuse_unknown_keys
from mmdmt.config import flatten, resolve_config, schedulers_of, shorten_warm_up
from mmdmt.datasets.derivation import pack_for_semi
from mmdmt.datasets.transforms.load_bands import LoadBands
from mmdmt.datasets.unlabeled_dataset import UnlabeledDataset
from mmdmt.engine.mutual.ensemble import ensemble_kinds
from mmdmt.engine.mutual.plan import SELECT_RULES, MutualPlan, Stage
from mmdmt.models.forward import BATCH_STATISTICS
from mmdmt.pseudo.reliability import RELIABLE
from mmdmt.pseudo.store import check_name
from mmdmt.registry import DATASETS, TASK_UTILS, TRANSFORMS, class_of

# fmt: off
MUTUAL_KEYS = {
    'task', 'members', 'ratios', 'select', 'metric', 'supervised', 'round', 'pseudo_loss',
    'labeling', 'ensemble',
}
STAGE_KEYS = {'max_iters', 'lr', 'batch_size', 'source_ratio', 'from_scratch', 'cfg_options'}
ROUND_KEYS = STAGE_KEYS | {'images', 'augment', 'batch_statistics'}
# What decides the outcome of a stage, and what of it belongs to the machine.
COMPARED_KEYS = (
    'model', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness',
    'chain',
)
VOLATILE_KEYS = {
    'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'data_root', 'store',
    'store_dir', 'soft_labels', 'val_interval', 'work_dir', 'only', 'labels_before',
}
# fmt: on
#: Which unlabeled images a round uses: all, or the more reliable half (ST++).
IMAGES = ('all', 'reliable')
DEFAULT_LOSS = dict(type='mmdmt.DynamicMutualLoss', gamma1=5.0, gamma2=5.0)


class StageConfigBuilder:
    """Builds stage configs; unknown keys and values are refused at once.

    Args:
        cfg (Config): The whole config: an ordinary training config of an ``EncoderDecoder`` whose
            ``train_dataloader.dataset`` is a ``mmdmt.SemiDataset`` of a labeled and an unlabeled
            source, plus ``mutual``, see :class:`~mmdmt.engine.runners.MutualTrainingRunner`.
    """

    # What another task changes, beside the methods `_read_labels` and `_set_loss`.
    model_types = ('EncoderDecoder', 'mmseg.EncoderDecoder')
    default_metric = 'mIoU'
    labeler = 'mmdmt.PseudoLabeler'
    ranker: Optional[str] = 'mmdmt.ReliabilityRanker'
    store = 'pseudo_labels'
    check_name = staticmethod(check_name)  # of an image, before labels are stored under it

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.mutual = ConfigDict(cfg.get('mutual') or {}).to_dict()
        refuse_unknown_keys('mutual', self.mutual, MUTUAL_KEYS)
        for key in ('members', 'ratios'):
            if key not in self.mutual:
                raise ValueError(f'the config has no `mutual.{key}`')
        self.plan = MutualPlan(self.mutual['members'], self.mutual['ratios'])
        self.select = self.mutual.get('select', 'last')
        self.metric = self.mutual.get('metric', self.default_metric)
        self._check_values()

    def _check_values(self) -> None:
        for key in ('supervised', 'round'):
            settings = self.mutual.get(key, {})
            known = ROUND_KEYS if key == 'round' else STAGE_KEYS
            refuse_unknown_keys(f'mutual.{key}', settings, known)
            check_range(f'mutual.{key}.lr', settings.get('lr', 0), 0)
            check_count(f'mutual.{key}.batch_size', settings.get('batch_size', 1), 1)
        for name, value in self._batch_statistics.items():
            if self.ranker is None:
                raise ValueError(f'`mutual.round.{name}` is for segmentation')
            check_choice(f'mutual.round.{name}', value, BATCH_STATISTICS)
        options = {k: v for k, v in self.mutual.get('labeling', {}).items() if k != 'pipeline'}
        TASK_UTILS.get(self.labeler).check_options(options)
        self._check_lists()
        ensemble_kinds(self.mutual.get('ensemble', False))  # refuses unknown keys
        check_choice('model.type', self.cfg.model.get('type'), self.model_types)
        sources = self.cfg.train_dataloader.dataset.get('datasets', [])
        if len(sources) != 2:
            raise ValueError(
                '`train_dataloader.dataset` must be a mmdmt.SemiDataset of two sources, '
                f'[labeled, unlabeled]; it has {len(sources)}'
            )
        ratio = self._source_ratio
        if not isinstance(ratio, (list, tuple)) or len(ratio) != 2 or 0 in ratio:
            raise ValueError(
                'rounds have batches of labeled and pseudo-labeled images: `source_ratio`, or '
                '`mutual.round.source_ratio` where it is set, must be two numbers such as [1, 1], '
                f'not {ratio!r}'
            )

    @property
    def _source_ratio(self) -> Sequence[float]:
        """Labeled and pseudo-labeled images in a batch of a round."""
        own = self.cfg.train_dataloader.sampler.get('source_ratio', [])
        return self.mutual.get('round', {}).get('source_ratio', own)

    @property
    def _batch_statistics(self) -> Dict[str, str]:
        """What batch norms see in the rounds, where the config says it."""
        return {k: v for k, v in self.mutual.get('round', {}).items() if k == 'batch_statistics'}

    def _check_lists(self) -> None:
        """Check settings that may be a list with one value for each round."""
        rounds = len(self.plan.ratios)
        rules = self.select if isinstance(self.select, (list, tuple)) else [self.select]
        for rule in rules:
            check_choice('mutual.select', rule, SELECT_RULES)
        if rules is self.select and len(rules) != rounds + 1:
            raise ValueError(
                f'`mutual.select` is a list of {len(rules)} rules: it needs {rounds + 1}, one for '
                'round 0 and one for each of `mutual.ratios`'
            )
        for key, what in (('max_iters', 'numbers'), ('images', 'words')):
            values = self.mutual.get('round', {}).get(key)
            if isinstance(values, (list, tuple)) and len(values) != rounds:
                raise ValueError(
                    f'`mutual.round.{key}` has {len(values)} {what} for {rounds} ratios'
                )
        for stage in self.plan.stages:
            check_choice('mutual.round.images', self._images_of(stage.round), IMAGES)
            if self._images_of(stage.round) == 'reliable' and self.ranker is None:
                raise ValueError("`mutual.round.images='reliable'` is for segmentation")

    def select_of(self, stage: Stage) -> str:
        """The rule by which the checkpoint of a stage is chosen, one of ``SELECT_RULES``."""
        return self.select if isinstance(self.select, str) else self.select[stage.round]

    def build(
        self,
        stage: Stage,
        stage_dir: str,
        load_from: Optional[str] = None,
        teacher_checkpoint: Optional[str] = None,
    ) -> Config:
        """Config of one stage, an ordinary run of ``mmdmt.SemiRunner``.

        Args:
            stage (Stage): The stage.
            stage_dir (str): Its work dir.
            load_from (str, optional): Checkpoint to go on from. Not used in round 0 and with
                ``from_scratch``: they start from the member's own ``load_from``.
            teacher_checkpoint (str, optional): Checkpoint of the network that labels.
        """
        cfg, settings = self._member_config(stage), self._settings(stage)
        cfg.merge_from_dict(settings.get('cfg_options', {}))
        cfg.update(load_from=load_from, resume=False, work_dir=stage_dir)
        cfg.runner_type = 'mmdmt.SemiRunner'
        _set_schedule(cfg, settings.get('max_iters'), settings.get('lr'))
        self._set_data(cfg, stage, settings)
        self._set_start(cfg, stage, stage.round > 0 and bool(settings.get('from_scratch')))
        self._set_hooks(cfg, stage, teacher_checkpoint)
        if stage.round:
            self._set_loss(cfg.model)
        cfg.setdefault('custom_imports', dict(imports=['mmdmt'], allow_failed_imports=False))
        return resolve_config(cfg)

    def member_model(self, member: str) -> Dict[str, Any]:
        """Model config of a member's network, an ordinary network of mmseg or mmpretrain."""
        return self._member_config(Stage(0, member)).model

    def comparable(self, cfg: Config) -> Dict[str, str]:
        """Flat view of the values that decide the outcome of a stage, for the ledger."""
        flat = {}
        for key in COMPARED_KEYS:
            flatten(key, cfg.get(key), flat, VOLATILE_KEYS)
        hooks = cfg.get('default_hooks', {})
        for hook in filter(None, (*hooks.values(), *cfg.get('custom_hooks', []))):
            if str(hook.get('type')).split('.')[-1] == 'EMAHook':
                flatten('ema', hook, flat, VOLATILE_KEYS)
        hook = hooks.get('pseudo_labels')
        if hook:
            labeler = {key: value for key, value in hook.labeler.items() if key != 'model'}
            flatten('labeling', dict(labeler, ratio=hook.ratio), flat, VOLATILE_KEYS)
        return flat

    def _member_config(self, stage: Stage) -> Config:
        """The whole config with the member's options, the way round 0 sees it."""
        cfg = copy.deepcopy(self.cfg)
        member = self.plan.member(stage.member)
        cfg.merge_from_dict(copy.deepcopy(member.get('cfg_options', {})))
        cfg.train_dataloader.sampler.source_ratio = list(self._source_ratio)
        cfg.randomness = dict(cfg.get('randomness') or {})
        own = member.get('seed', self.plan.member_names.index(stage.member))
        cfg.randomness.seed = (cfg.randomness.get('seed') or 0) + own + 1000 * stage.round
        for key in ('mutual', 'stage'):
            cfg.pop(key, None)
        return resolve_config(cfg)  # a member may change `crop_size` and the like

    def _settings(self, stage: Stage) -> Dict[str, Any]:
        """A copy, since merging takes ``_delete_`` out of what later stages need too."""
        settings = copy.deepcopy(self.mutual.get('round' if stage.round else 'supervised', {}))
        for key in ('max_iters', 'images'):
            if stage.round and isinstance(settings.get(key), (list, tuple)):
                settings[key] = settings[key][stage.round - 1]
        return settings

    def _images_of(self, round_number: int) -> str:
        """Which images a round uses, one of ``IMAGES``; 'all' also before and after the chain."""
        if not 0 < round_number <= len(self.plan.ratios):
            return 'all'
        return self._settings(Stage(round_number, '')).get('images', 'all')

    def _set_start(self, cfg: Config, stage: Stage, from_scratch: bool) -> None:
        """Set the weights a stage starts from, and what the ledger compares of them."""
        cfg.chain = dict(select=self.select_of(stage), from_scratch=from_scratch)
        if from_scratch or not stage.round:
            member = self.plan.member(stage.member)
            cfg.load_from = first = member.get('load_from', self.cfg.get('load_from'))
            # Its name only: machines that share a chain may have it in different folders.
            cfg.chain.initial_checkpoint = osp.basename(first) if first else None
        if stage.round:
            cfg.chain.labeled_by = stage.labeled_by
        if self._images_of(stage.round) == 'reliable':
            cfg.chain.images = 'reliable'

    def _set_hooks(self, cfg: Config, stage: Stage, teacher_checkpoint: Optional[str]) -> None:
        """Set default hooks, which a child config that sets `custom_hooks` keeps."""
        hooks = cfg.setdefault('default_hooks', ConfigDict())
        if stage.round:
            hooks.pseudo_labels = dict(
                type='mmdmt.PseudoLabelHook',
                labeler=self._labeler(cfg, stage),
                checkpoint=teacher_checkpoint,
                ratio=stage.ratio,
            )
        if self._images_of(stage.round) == 'reliable':
            hooks.pseudo_labels.ranker = self._ranker(cfg, stage)
        if self._images_of(stage.round + 1) == 'reliable':
            hooks.checkpoint.milestones = _thirds(stage, cfg)[:-1]
        check = hooks.get('dataset_check')
        if check and check.get('cache', True) is True:  # one cache for the whole chain
            check.cache = osp.join(osp.dirname(cfg.work_dir), 'dataset_check.json')
        if self.select_of(stage) != 'last':
            hooks.checkpoint.save_best = self.metric
        elif (hooks.get('checkpoint') or {}).get('save_best') == 'auto':
            hooks.checkpoint.save_best = None  # nothing takes it

    def _set_data(self, cfg: Config, stage: Stage, settings: dict) -> None:
        """One labeled source in round 0, labeled and pseudo-labeled later."""
        loader = cfg.train_dataloader
        labeled, unlabeled = loader.dataset.datasets
        member = self.plan.member(stage.member)
        if stage.round:
            for part in _parts(unlabeled):
                self._read_labels(part, f'{cfg.work_dir}/{self.store}')
                part.pipeline[-1:-1] = copy.deepcopy(settings.get('augment', []))
                self._choose_images(part, cfg, stage)
        else:
            loader.dataset.datasets, loader.sampler.source_ratio = [labeled], [1]
            if member.get('labeled_list'):
                if 'ann_file' not in labeled:
                    raise ValueError(
                        f'member {member["name"]!r} has a `labeled_list`, but the labeled source, '
                        f'a {labeled.get("type")}, has no `ann_file`'
                    )
                labeled.ann_file = member['labeled_list']
        loader.batch_size = settings.get('batch_size', loader.batch_size)
        loader.sampler.batch_size = loader.batch_size

    def _labeler(self, cfg: Config, stage: Stage) -> Dict[str, Any]:
        """What labels for a stage, with the network and the pipeline of the member that does."""
        options = dict(self.mutual.get('labeling', {}))
        teacher = self._member_config(Stage(0, stage.teacher))
        pipeline = options.pop('pipeline', None)
        if pipeline:  # It says at which size images are labeled: not on the canvas of evaluation.
            (teacher.model.get('data_preprocessor') or {}).pop('test_cfg', None)
        pipeline = pipeline or _test_pipeline(teacher)
        scope = cfg.get('default_scope') or 'mmseg'
        dataset = copy.deepcopy(self.cfg.train_dataloader.dataset.datasets[1])
        for part in _parts(dataset):
            part['pipeline'] = _without_annotations(pipeline, scope)
            self._choose_images(part, cfg, stage)
        own = dict(type=self.labeler, store=f'{cfg.work_dir}/{self.store}', model=teacher.model)
        before = [self._images_of(stage.round - back) for back in (0, 1)]
        if before == ['all', 'reliable']:  # the reliable images keep their labels
            folder = osp.join(osp.dirname(cfg.work_dir), stage.previous)
            own['labels_before'] = f'{folder}/{self.store}'
        return dict(own, dataset=dataset, **options)

    def _choose_images(self, part: dict, cfg: Config, stage: Stage) -> None:
        """Leave out of an unlabeled source what its round does not use."""
        if self._images_of(stage.round) != 'reliable':
            return
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
            kind = DATASETS.get(part['type'])
        if not (isinstance(kind, type) and issubclass(kind, UnlabeledDataset)):
            raise ValueError(
                "`mutual.round.images='reliable'` needs unlabeled images by a "
                f'mmdmt.UnlabeledDataset, got {part["type"]!r}'
            )
        part['only'] = f'{cfg.work_dir}/{RELIABLE}'

    def _ranker(self, cfg: Config, stage: Stage) -> Dict[str, Any]:
        """What ranks all unlabeled images for a stage, by the checkpoints of its labeler."""
        labeler = self._labeler(cfg, stage)
        for part in _parts(labeler['dataset']):
            del part['only']
        keys = {'model', 'dataset', 'batch_size', 'num_workers', 'amp'} & set(labeler)
        teacher = Stage(stage.round - 1, stage.teacher)
        folder = osp.join(osp.dirname(cfg.work_dir), teacher.name)
        paths = [
            f'{folder}/iter_{step}.pth' for step in _thirds(teacher, self.build(teacher, folder))
        ]
        own = {key: labeler[key] for key in sorted(keys)}
        return dict(type=self.ranker, out=cfg.work_dir, checkpoints=paths, **own)

    def _read_labels(self, source: ConfigDict, store: str) -> None:
        """Let an unlabeled source give the labels of a store."""
        load = dict(type='mmdmt.LoadPseudoLabels', store_dir=store)
        first, *rest = source.pipeline
        source.pipeline = [first, load, *rest]  # right after the image

    def _set_loss(self, model: ConfigDict) -> None:
        """Let the network of a round learn from pseudo-labels."""
        model.type = 'mmdmt.PseudoLabelSegmentor'
        model.pseudo_loss = self.mutual.get('pseudo_loss', DEFAULT_LOSS)
        model.update(self._batch_statistics)


def _set_schedule(cfg: Config, max_iters: Optional[int], lr: Optional[float]) -> None:
    """Set length and learning rate; schedulers that ended with the old length end with it."""
    if lr is not None:
        cfg.optim_wrapper.optimizer.lr = lr
    if max_iters is None:
        return
    old = cfg.train_cfg.max_iters
    cfg.train_cfg.max_iters = max_iters
    cfg.train_cfg.val_interval = min(cfg.train_cfg.get('val_interval', max_iters), max_iters)
    shorten_warm_up(cfg, [old], max_iters)
    for scheduler in schedulers_of(cfg):
        if scheduler.get('end') == old:
            scheduler['end'] = max_iters


def _thirds(stage: Stage, cfg: Config) -> List[int]:
    """Iterations at the end of each third of a stage."""
    length = cfg.train_cfg.max_iters
    if length < 3:
        raise ValueError(
            f'{stage.name} has `max_iters`={length}: the reliability of images needs checkpoints '
            'at one and two thirds of it, so at least 3'
        )
    return [round(length / 3), round(2 * length / 3), length]


def _test_pipeline(cfg: Config) -> List[dict]:
    """The pipeline by which images are loaded for prediction."""
    for key in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(key) or {}).get('dataset')
        if dataset is not None:
            return next(_parts(dataset))['pipeline']
    raise ValueError(
        'images are labeled as they are tested, but there is neither `test_dataloader` nor '
        '`val_dataloader`: give one, or `mutual.labeling.pipeline`'
    )


def _parts(dataset: dict) -> Iterator[dict]:
    """The datasets with a pipeline that a source consists of, such as a ``ConcatDataset``."""
    if 'pipeline' in dataset:
        yield dataset
        return
    if 'datasets' not in dataset and 'dataset' not in dataset:
        raise ValueError(f'a dataset of type {dataset.get("type")!r} has no `pipeline`')
    for part in dataset.get('datasets') or [dataset['dataset']]:
        yield from _parts(part)


def _without_annotations(pipeline: Sequence[dict], scope: str) -> list:
    """A test pipeline for images without masks; ``scope`` is where short names are looked up."""
    with DefaultScope.overwrite_default_scope(scope):
        kinds = [class_of(TRANSFORMS, step['type']) or object for step in pipeline]
    steps = [step for step, kind in zip(pipeline, kinds) if not issubclass(kind, LoadAnnotations)]
    noting = any(issubclass(kind, LoadBands) for kind in kinds)  # what was not measured
    return pack_for_semi(steps) if noting else copy.deepcopy(steps)
