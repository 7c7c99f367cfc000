"""Derives the config of each stage, an ordinary training run, from one ``mutual`` config."""

import copy
import os.path as osp
from collections.abc import Iterator, Sequence
from typing import Any, Dict, List, Optional, Union

from mmcv.transforms import LoadAnnotations
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from mmdmt.checks import refuse_unknown_keys
from mmdmt.config import resolve_config
from mmdmt.engine.mutual.ensemble import ensemble_kinds
from mmdmt.engine.mutual.plan import SELECT_RULES, MutualPlan, Stage
from mmdmt.pseudo.labeler import check_selection
from mmdmt.pseudo.prediction import check_tta
from mmdmt.registry import TRANSFORMS

MUTUAL_KEYS = {
    'task',
    'members',
    'ratios',
    'select',
    'metric',
    'supervised',
    'round',
    'pseudo_loss',
    'labeling',
    'ensemble',
}
STAGE_KEYS = {'max_iters', 'lr', 'batch_size', 'source_ratio', 'from_scratch', 'cfg_options'}
LABELING_KEYS = {
    'batch_size',
    'num_workers',
    'pixel_stride',
    'bins',
    'rule',
    'balance',
    'threshold',
    'amp',
    'tta',
    'pipeline',
}
DEFAULT_LOSS = dict(type='mmdmt.DynamicMutualLoss', gamma1=5.0, gamma2=5.0)
COMPARED_KEYS = (
    'model',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'randomness',
    'labeling',
    'chain',
)
VOLATILE_KEYS = (
    'num_workers',
    'persistent_workers',
    'pin_memory',
    'prefetch_factor',
    'data_root',
    'store_dir',
    'soft_labels',
    'val_interval',
    'work_dir',
)
PSEUDO_LABEL_DIR = 'pseudo_labels'


class StageConfigBuilder:
    """Builds stage configs.

    Args:
        cfg (Config): The whole config: an ordinary training config of an ``EncoderDecoder`` whose
            ``train_dataloader.dataset`` is a ``mmdmt.SemiDataset`` of a labeled and an unlabeled
            source, plus ``mutual``, see :class:`~mmdmt.engine.runners.MutualTrainingRunner`.

    Raises:
        ValueError: On unknown or missing keys, naming them.
    """

    # What another task changes, see `classification_stages`.
    model_types = ('EncoderDecoder', 'mmseg.EncoderDecoder')
    labeling_keys = LABELING_KEYS
    default_metric = 'mIoU'

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.mutual = _plain(cfg.get('mutual') or {})
        self._check_keys()
        self.plan = MutualPlan(self.mutual['members'], self.mutual['ratios'])
        self.select = self.mutual.get('select', 'last')
        self.metric = self.mutual.get('metric', self.default_metric)
        self._check_values()

    def _check_keys(self) -> None:
        refuse_unknown_keys('mutual', self.mutual, MUTUAL_KEYS)
        for key in ('members', 'ratios'):
            if key not in self.mutual:
                raise ValueError(f'the config has no `mutual.{key}`')
        for key in ('supervised', 'round'):
            refuse_unknown_keys(f'mutual.{key}', self.mutual.get(key, {}), STAGE_KEYS)

    def _check_values(self) -> None:
        self._check_labeling(self.mutual.get('labeling', {}))
        self._check_select(self.select)
        self._check_lengths()
        ensemble_kinds(self.mutual.get('ensemble', False))  # refuses unknown keys
        if self.cfg.model.get('type') not in self.model_types:
            raise ValueError(
                f'`model.type` must be {self.model_types[0]} for mutual training, got '
                f'{self.cfg.model.get("type")!r}'
            )
        sources = self.cfg.train_dataloader.dataset.get('datasets', [])
        if len(sources) != 2:
            raise ValueError(
                '`train_dataloader.dataset` must be a mmdmt.SemiDataset of two sources, '
                f'[labeled, unlabeled]; it has {len(sources)}'
            )

    def _check_labeling(self, labeling: dict) -> None:
        refuse_unknown_keys('mutual.labeling', labeling, self.labeling_keys)
        check_tta(labeling.get('tta'), 'mutual.labeling.tta')
        check_selection(
            labeling.get('rule', 'argmax'),
            labeling.get('balance', 'class'),
            labeling.get('threshold'),
        )
        for key, least in (('batch_size', 1), ('num_workers', 0), ('pixel_stride', 1), ('bins', 2)):
            value = labeling.get(key, least)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f'`mutual.labeling.{key}` must be at least {least}, got {value!r}')

    def _check_select(self, select: Union[str, list]) -> None:
        rules = select if isinstance(select, (list, tuple)) else [select]
        if any(rule not in SELECT_RULES for rule in rules):
            raise ValueError(f'`mutual.select` must be of {SELECT_RULES}, got {select!r}')
        stages = len(self.plan.ratios) + 1
        if rules is select and len(rules) != stages:
            raise ValueError(
                f'`mutual.select` is a list of {len(rules)} rules: it needs {stages}, one for '
                'round 0 and one for each of `mutual.ratios`'
            )

    def _check_lengths(self) -> None:
        lengths = self.mutual.get('round', {}).get('max_iters')
        if isinstance(lengths, (list, tuple)) and len(lengths) != len(self.plan.ratios):
            raise ValueError(
                f'`mutual.round.max_iters` has {len(lengths)} numbers for '
                f'{len(self.plan.ratios)} ratios: give one number, or one a round'
            )

    def select_of(self, stage: Stage) -> str:
        """The rule, one of ``SELECT_RULES``, by which the checkpoint of a stage is chosen."""
        return self.select if isinstance(self.select, str) else self.select[stage.round]

    # ------------------------------------------------------------------ stages

    def build(
        self,
        stage: Stage,
        stage_dir: str,
        load_from: Optional[str] = None,
        teacher_checkpoint: Optional[str] = None,
    ) -> Config:
        """Config of one stage.

        Args:
            stage (Stage): The stage.
            stage_dir (str): Its work dir.
            load_from (str, optional): Checkpoint to start from. Not used in a round with
                ``from_scratch``, which starts as round 0 did.
            teacher_checkpoint (str, optional): Checkpoint of the network that labels.

        Returns:
            Config: Of an ordinary run of ``mmdmt.SemiRunner``.
        """
        cfg = self._member_config(stage)
        settings = self._settings(stage)
        # Copies: merging takes `_delete_` out of what is merged, which later stages need too.
        cfg.merge_from_dict(copy.deepcopy(settings.get('cfg_options', {})))
        _set_schedule(cfg, settings.get('max_iters'), settings.get('lr'))
        self._set_data(cfg, stage, settings, stage_dir)
        if stage.round:
            self._set_pseudo_labels(cfg, stage, stage_dir, teacher_checkpoint)
        from_scratch = bool(settings.get('from_scratch')) and stage.round > 0
        first = self.initial_checkpoint(stage)
        cfg.load_from = first if from_scratch else load_from
        cfg.resume = False
        cfg.work_dir = stage_dir
        check = cfg.get('default_hooks', {}).get('dataset_check')
        if check and check.get('cache', True) is True:  # one cache for the whole chain
            check.cache = osp.join(osp.dirname(stage_dir), 'dataset_check.json')
        select = self.select_of(stage)
        if select != 'last':
            cfg.default_hooks.checkpoint.save_best = self.metric
        cfg.chain = dict(select=select, from_scratch=from_scratch)
        if from_scratch or not stage.round:
            # Its name only: machines that share a chain may have it in different folders.
            cfg.chain.initial_checkpoint = osp.basename(first) if first else None
        return cfg

    def initial_checkpoint(self, stage: Stage) -> Optional[str]:
        """Checkpoint that round 0 of a stage's member starts from, None without."""
        return self.plan.member(stage.member).get('load_from', self.cfg.get('load_from'))

    def member_model(self, member: str) -> Dict[str, Any]:
        """Model config of a member's network, an ordinary mmseg segmentor."""
        return self._member_config(Stage(0, member)).model

    def comparable(self, cfg: Config) -> Dict[str, str]:
        """Flat view of the values that decide the outcome of a stage, for the ledger."""
        flat = {}
        for key in COMPARED_KEYS:
            _flatten(key, cfg.get(key), flat)
        return flat

    def _settings(self, stage: Stage) -> Dict[str, Any]:
        """``mutual.supervised`` or ``mutual.round``, with the length of this round."""
        settings = self.mutual.get('round' if stage.round else 'supervised', {})
        lengths = settings.get('max_iters')
        if stage.round and isinstance(lengths, (list, tuple)):
            settings = dict(settings, max_iters=lengths[stage.round - 1])
        return settings

    def _member_config(self, stage: Stage) -> Config:
        """The whole config with the member's options, the way round 0 sees it."""
        cfg = copy.deepcopy(self.cfg)
        member = self.plan.member(stage.member)
        cfg.merge_from_dict(copy.deepcopy(member.get('cfg_options', {})))
        cfg.randomness = dict(cfg.get('randomness') or {})
        own = member.get('seed', self.plan.member_names.index(stage.member))
        cfg.randomness.seed = (cfg.randomness.get('seed') or 0) + own + 1000 * stage.round
        for key in ('mutual', 'runner_type', 'stage'):
            cfg.pop(key, None)
        return resolve_config(cfg)  # a member may change `crop_size` and the like

    def _set_data(self, cfg: Config, stage: Stage, settings: dict, stage_dir: str) -> None:
        """One labeled source in round 0, labeled and pseudo-labeled later."""
        loader = cfg.train_dataloader
        labeled, unlabeled = loader.dataset.datasets
        member = self.plan.member(stage.member)
        if stage.round == 0 and member.get('labeled_list'):
            _set_list(labeled, member)
        if stage.round:
            for part in _parts(unlabeled):
                part['pipeline'] = _with_pseudo_labels(part['pipeline'], _store_dir(stage_dir))
            loader.dataset.datasets = [labeled, unlabeled]
            ratio = settings.get('source_ratio', loader.sampler.get('source_ratio'))
        else:
            loader.dataset.datasets = [labeled]
            ratio = [1]
        loader.batch_size = settings.get('batch_size', loader.batch_size)
        loader.sampler.batch_size = loader.batch_size
        loader.sampler.source_ratio = ratio
        _set_off_line_preprocessor(cfg.model)

    def _set_pseudo_labels(
        self, cfg: Config, stage: Stage, stage_dir: str, teacher_checkpoint: Optional[str]
    ) -> None:
        """The dynamic loss, and the hook that labels before training."""
        cfg.model.type = 'mmdmt.PseudoLabelSegmentor'
        cfg.model.pseudo_loss = self.mutual.get('pseudo_loss', DEFAULT_LOSS)
        labeling = dict(self.mutual.get('labeling', {}))
        teacher = self._member_config(Stage(0, stage.teacher))
        pipeline = labeling.pop('pipeline', None) or test_pipeline(teacher)
        dataset = copy.deepcopy(self.cfg.train_dataloader.dataset.datasets[1])
        for part in _parts(dataset):
            part['pipeline'] = _without_annotations(pipeline, cfg.get('default_scope', 'mmseg'))
        hook = dict(
            type='mmdmt.PseudoLabelHook',
            store_dir=_store_dir(stage_dir),
            model=teacher.model,
            checkpoint=teacher_checkpoint,
            dataset=dataset,
            ratio=stage.ratio,
            **labeling,
        )
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]
        cfg.labeling = dict(
            teacher=stage.labeled_by, ratio=stage.ratio, dataset=dataset, **labeling
        )


def _store_dir(stage_dir: str) -> str:
    return f'{stage_dir}/{PSEUDO_LABEL_DIR}'


def _set_schedule(cfg: Config, max_iters: Optional[int], lr: Optional[float]) -> None:
    """Set length and learning rate; schedulers that ended with the old length end with the new."""
    if lr is not None:
        cfg.optim_wrapper.optimizer.lr = lr
    if max_iters is None:
        return
    old = cfg.train_cfg.max_iters
    cfg.train_cfg.max_iters = max_iters
    cfg.train_cfg.val_interval = min(cfg.train_cfg.get('val_interval', max_iters), max_iters)
    for scheduler in schedulers_of(cfg):
        if scheduler.get('end') == old:
            scheduler['end'] = max_iters


def schedulers_of(cfg: Config) -> List[dict]:
    """The parameter schedulers of a config, which may have one, a list, or none."""
    schedulers = cfg.get('param_scheduler') or []
    return [schedulers] if isinstance(schedulers, dict) else list(schedulers)


def test_pipeline(cfg: Config) -> List[dict]:
    """The pipeline by which images are loaded for prediction.

    Raises:
        ValueError: If the config has no test set.
    """
    for key in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(key) or {}).get('dataset')
        if dataset is not None:
            return next(_parts(dataset))['pipeline']
    raise ValueError(
        'images are labeled as they are tested, but there is neither `test_dataloader` nor '
        '`val_dataloader`: give one, or `mutual.labeling.pipeline`'
    )


def _parts(dataset: dict) -> Iterator[dict]:
    """The data sets with a pipeline that a source, such as a ``ConcatDataset``, consists of."""
    if 'pipeline' in dataset:
        yield dataset
        return
    inner = dataset.get('datasets') or [dataset[key] for key in ('dataset',) if key in dataset]
    if not inner:
        raise ValueError(f'a data set of type {dataset.get("type")!r} has no `pipeline`')
    for part in inner:
        yield from _parts(part)


def _set_list(labeled: ConfigDict, member: dict) -> None:
    """Let a member learn from the labeled images of its own list."""
    if 'ann_file' not in labeled:
        raise ValueError(
            f'member {member["name"]!r} has a `labeled_list`, but the labeled source is a '
            f'{labeled.get("type")} without `ann_file`: give the list to one data set'
        )
    labeled.ann_file = member['labeled_list']


def _set_off_line_preprocessor(model: ConfigDict) -> None:
    """Let the preprocessor carry stored confidences; views are for on-line methods."""
    preprocessor = model.data_preprocessor
    for key in ('strong', 'num_strong'):
        preprocessor.pop(key, None)
    preprocessor.type = 'mmdmt.SemiDataPreprocessor'
    preprocessor.branches = False


def _with_pseudo_labels(pipeline: Sequence[dict], store_dir: str) -> list:
    """Insert the loading of stored labels after the loading of the image."""
    load = dict(type='mmdmt.LoadPseudoLabels', store_dir=store_dir)
    first, *rest = copy.deepcopy(list(pipeline))
    return [first, load, *rest]


def _without_annotations(pipeline: Sequence[dict], scope: str) -> list:
    """A test pipeline for images without masks; ``scope`` is where short names are looked up."""
    with DefaultScope.overwrite_default_scope(scope):
        return [copy.deepcopy(step) for step in pipeline if not _loads_annotations(step)]


def _loads_annotations(step: dict) -> bool:
    kind = TRANSFORMS.get(step['type'])
    return isinstance(kind, type) and issubclass(kind, LoadAnnotations)


def _flatten(prefix: str, value: Any, out: Dict[str, str]) -> None:
    """Write nested dicts and lists as ``a.b.0.c -> text`` without keys of the machine."""
    if prefix.rsplit('.', 1)[-1] in VOLATILE_KEYS:
        return
    if isinstance(value, dict):
        for key in value:
            _flatten(f'{prefix}.{key}', value[key], out)
    elif isinstance(value, (list, tuple)) and any(isinstance(v, (dict, list)) for v in value):
        for index, item in enumerate(value):
            _flatten(f'{prefix}.{index}', item, out)
    else:
        out[prefix] = str(value)


def _plain(value: Any) -> Any:
    """A deep copy of a config value in plain dicts and lists."""
    return value.to_dict() if isinstance(value, ConfigDict) else copy.deepcopy(value)
