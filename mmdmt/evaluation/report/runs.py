"""What work dirs hold: configs, logged values, environments, stages. Nothing is predicted here."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from mmengine.config import Config

from mmdmt.checkpoint import find_latest_valid_checkpoint
from mmdmt.checks import listed
from mmdmt.config import is_classification
from mmdmt.datasets.splits.files import describe_list, read_list
from mmdmt.evaluation.report.curves import Curve, find_logs, read_all_curves

#: What a run is compared by, the first that was logged: segmentation, classification.
MAIN_SCORES = ('mIoU', 'accuracy/top1', 'Dice')
_STAGE = re.compile(r'stage_(\d+)_(.+)')
_SEED = re.compile(r'[-_/. ]+(?:seed[-_=]?|s)(\d+)$', re.IGNORECASE)
_NO_SCORE = re.compile(r'(data_)?time|step|memory|pseudo_labels/.*')


@dataclass
class StageInfo:
    """A stage of a chain, as its ledger has it."""

    name: str
    round: int
    member: str
    folder: Path
    entry: Dict[str, Any]
    cfg: Optional[Config] = None

    @property
    def is_done(self) -> bool:
        """Whether its checkpoint is final."""
        return self.entry.get('state') == 'done'


@dataclass
class Run:
    """A work dir.

    Attributes:
        name: How the page calls it.
        path: The folder.
        group: Name that the seeds of one method share.
        cfg: Config of the network to evaluate; None without any.
        config_text: Of the whole run.
        checkpoint: To evaluate, None where none was saved.
        curves: Values by key, network ('' for a single one) and iteration.
        scores: Keys that validation gave.
        stages: Of a chain, round by round.
        facts: Name and value of what was run.
        seconds: How long it took; 0 where that is not known.
        environment: Text of the log.
        notes: What is missing, a line each.
    """

    name: str
    path: Path
    group: str = ''
    cfg: Optional[Config] = None
    config_text: str = ''
    checkpoint: Optional[Path] = None
    curves: Dict[str, Dict[str, Curve]] = field(default_factory=dict)
    scores: List[str] = field(default_factory=list)
    stages: List[StageInfo] = field(default_factory=list)
    facts: Dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    lists: List[Dict[str, Any]] = field(default_factory=list)
    environment: str = ''
    warnings: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)

    @property
    def is_classification(self) -> bool:
        """Whether it trains a classifier."""
        return bool(self.cfg) and is_classification(self.cfg)

    @property
    def metric(self) -> str:
        """What it is compared by."""
        return next((name for name in MAIN_SCORES if name in self.curves), MAIN_SCORES[0])

    def last_score(self) -> Optional[float]:
        """Last value of the main metric in validation; of the first member of a chain."""
        for curve in self.curves.get(self.metric, {}).values():
            return curve[max(curve)]
        return None


def read_runs(work_dirs: Sequence[Union[str, Path]]) -> List[Run]:
    """Read work dirs, and all work dirs in the folders that are none themselves.

    Args:
        work_dirs: Folders, each optionally as ``NAME=FOLDER``.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no run; the error names it.
    """
    runs = []
    for given in work_dirs:
        name, _, folder = str(given).partition('=') if not Path(given).is_dir() else ('', '', given)
        path = Path(folder or given)
        if not path.is_dir():
            raise FileNotFoundError(f'work dir {path} does not exist')
        inside = [path] if _is_run(path) else _runs_below(path)
        if not inside:
            raise FileNotFoundError(
                f'{path} is no work dir of a run and holds none: expected stages.json, '
                '*/vis_data/ or a config with checkpoints'
            )
        for each in inside:
            own = name or path.resolve().name
            if each != path:
                own = '/'.join([*filter(None, [name]), each.relative_to(path).as_posix()])
            runs.append(_read_run(each, own, _SEED.sub('', own) if each != path else own))
    _make_names_differ(runs)
    return runs


def _is_run(path: Path) -> bool:
    has_config = any(path.glob('*.py'))
    has_product = any(path.glob('*.pth')) or (path / 'evaluation').is_dir()
    left = any((path / name).is_file() for name in ('stages.json', 'last_checkpoint'))
    return left or any(path.glob('*/vis_data')) or (has_config and has_product)


def _runs_below(path: Path, depth: int = 3) -> List[Path]:
    """Work dirs in a folder of several runs, such as that of a benchmark."""
    found = []
    for folder in sorted(child for child in path.iterdir() if child.is_dir()):
        if _is_run(folder):
            found.append(folder)
        elif depth > 1 and folder.name != 'scenes':
            found += _runs_below(folder, depth - 1)
    return found


def _make_names_differ(runs: List[Run]) -> None:
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.group = run.name = f'{run.path.parent.name}/{run.name}'
    names = [run.name for run in runs]
    for index, run in enumerate(runs):
        if names.count(run.name) > 1:
            run.group = run.name = f'{run.name} ({names[: index + 1].count(run.name)})'


def _read_run(path: Path, name: str, group: str) -> Run:
    run = Run(name, path, group)
    _read_config(run)
    ledger = path / 'stages.json'
    try:
        if ledger.is_file():
            _read_chain(run, json.loads(ledger.read_text(encoding='utf-8'))['stages'])
        else:
            _read_single(run)
    except (ValueError, KeyError, TypeError) as error:
        run.notes.append(f'stages.json cannot be read: {error}.')
    _read_logs(run)
    _describe(run)
    return run


def _read_config(run: Run) -> None:
    """The config that was dumped last; it holds everything, without bases."""
    files = sorted(run.path.glob('*.py'), key=lambda file: file.stat().st_mtime)
    files = files or sorted(run.path.glob('*/vis_data/config.py'))
    if not files:
        run.notes.append('No config in the work dir.')
        return
    run.config_text = files[-1].read_text(encoding='utf-8', errors='replace')
    run.cfg = _config(run, files[-1])


def _config(run: Run, file: Path) -> Optional[Config]:
    try:
        return Config.fromfile(str(file))
    except Exception as error:  # a config is code
        run.notes.append(f'{file.name} cannot be read as a config: {first_line(error)}.')
        return None


def _read_single(run: Run) -> None:
    """Curves and the checkpoint of an ordinary run."""
    final = run.path / 'final.json'
    if final.is_file():
        run.checkpoint = run.path / json.loads(final.read_text(encoding='utf-8'))['checkpoint']
    if run.checkpoint is None or not run.checkpoint.is_file():
        found = find_latest_valid_checkpoint(run.path)
        run.checkpoint = Path(found) if found else None
    curves = _curves(run, run.path)
    run.curves = _by_network(curves)
    last = max((max(c) for of_key in run.curves.values() for c in of_key.values()), default=0)
    planned = (run.cfg or {}).get('train_cfg', {}).get('max_iters')
    run.facts['Steps'] = f'{last} of {planned}' if planned and last < planned else str(last)
    if planned and last < planned:
        run.notes.append(f'The run is not finished: {last} of {planned} steps were logged.')


def _read_chain(run: Run, entries: Dict[str, Any]) -> None:
    """Stages, the curves of members one after the other, and the final checkpoint."""
    for name, entry in entries.items():
        match = _STAGE.fullmatch(name)
        if match:
            folder = run.path / name
            file = folder / 'config.py'
            cfg = _config(run, file) if file.is_file() else None
            run.stages.append(StageInfo(name, int(match[1]), match[2], folder, entry, cfg))
    run.stages.sort(key=lambda stage: (stage.round, stage.member))
    begun: Dict[str, int] = {}
    members = sorted({stage.member for stage in run.stages})
    for stage in run.stages:
        network = stage.member if len(members) > 1 else ''
        curves, begin = _curves(run, stage.folder), begun.get(stage.member, 0)
        for key, curve in curves.items():
            own = run.curves.setdefault(key, {}).setdefault(network, {})
            own.update({begin + step: value for step, value in curve.items()})
        length = (stage.cfg or {}).get('train_cfg', {}).get('max_iters', 0)
        begun[stage.member] = begin + length
    done = [stage for stage in run.stages if stage.is_done]
    waiting = [stage.name for stage in run.stages if not stage.is_done]
    if waiting:
        run.notes.append(f'The chain is not finished: {listed(waiting)}.')
    if done:
        last = next(stage for stage in done if stage.round == done[-1].round)
        run.checkpoint = run.path / last.entry.get('checkpoint', '')
        run.cfg = last.cfg or run.cfg
        run.facts['Evaluated stage'] = last.name
    run.facts['Steps'] = ', '.join(
        f'{steps}' + (f' ({member})' if len(begun) > 1 else '') for member, steps in begun.items()
    )
    if len(begun) > 1 and len(set(begun.values())) == 1:
        run.facts['Steps'] = f'{next(iter(begun.values()))} each'


def _curves(run: Run, folder: Path) -> Dict[str, Curve]:
    try:
        curves, scores = read_all_curves(find_logs(folder))
    except FileNotFoundError:
        run.notes.append(f'No curves: {folder.name} has no vis_data/scalars.json.')
        return {}
    scores = [name for name in scores if not _NO_SCORE.fullmatch(name)]
    run.scores += [name for name in scores if name not in run.scores]
    return curves


def _by_network(curves: Dict[str, Curve]) -> Dict[str, Dict[str, Curve]]:
    """``student/mIoU`` is mIoU of the student, where plain mIoU is that of one of the networks."""
    found: Dict[str, Dict[str, Curve]] = {}
    for key, curve in curves.items():
        network, _, name = key.rpartition('/')
        if network and name in curves and not network.startswith('pseudo_labels'):
            found.setdefault(name, {})[network] = curve
    for key, curve in curves.items():
        network, _, name = key.rpartition('/')
        if key not in found and not (network and name in found):
            found[key] = {'': curve}
    return found


def _read_logs(run: Run) -> None:
    """Environment and warnings of the newest log; seconds between the first and last lines.

    Of a run that wrote no lines they are those of its training steps.
    """
    logs = sorted(run.path.rglob('[0-9]*/[0-9]*.log'))
    own = [log for log in logs if 'test' not in log.relative_to(run.path).parts]
    for log in own[-1:]:
        text = log.read_text(encoding='utf-8', errors='replace')
        match = re.search(r'System environment:\n(.*?)\n-{20,}', text, re.DOTALL)
        run.environment = match[1] if match else ''
        seen = dict.fromkeys(re.findall(r' - WARNING - (.+)', text))
        run.warnings = list(seen)[:20]
    times = sorted(run.curves.get('time', {}).get('', {}).items())
    steps = zip([0, *(step for step, _ in times)], times)
    trained = sum(value * (step - before) for before, (step, value) in steps)
    run.seconds = max(sum(map(_duration, own)), trained)
    if run.stages:
        run.seconds = sum(stage.entry.get('seconds', 0) for stage in run.stages)
    if run.seconds:
        minutes = f'{run.seconds / 60:.0f} min'
        run.facts['Time'] = minutes if run.seconds > 90 else f'{run.seconds:.0f} s'
    if not run.environment:
        run.notes.append('The environment is not in the logs.')


def _duration(log: Path) -> float:
    """Seconds between the first and the last line of a log."""
    text = log.read_text(encoding='utf-8', errors='replace')
    stamps = re.findall(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', text, re.MULTILINE)
    times = [datetime.strptime(stamp, '%Y/%m/%d %H:%M:%S') for stamp in stamps[:1] + stamps[-1:]]
    return (times[-1] - times[0]).total_seconds() if times else 0.0


def _describe(run: Run) -> None:
    """Method, network, lists with their hashes, seed, versions."""
    cfg = run.cfg
    if cfg is not None:
        run.facts = dict(Method=_method(run), Network=_network(cfg.get('model', {})), **run.facts)
        run.facts['Seed'] = str((cfg.get('randomness') or {}).get('seed', 'not set'))
        sources = cfg.get('train_dataloader', {}).get('dataset', {})
        sources = sources.get('datasets', [sources] if sources else [])
        for part, source in zip(('labeled', 'unlabeled'), sources):
            run.lists.append(_describe_list(part, source))
    for key, value in re.findall(r'^ *([^:\n]+): (.+)$', run.environment, re.MULTILINE):
        if key in ('Python', 'PyTorch', 'MMEngine', 'GPU 0') or 'mmdmt' in key.lower():
            run.facts[key] = value
        elif 'commit' in key.lower():
            run.facts['Commit'] = value
    if 'Commit' not in run.facts:
        run.facts['Commit'] = 'not in the logs'


def _method(run: Run) -> str:
    model = run.cfg.get('model', {})
    if run.stages:
        rounds = max(stage.round for stage in run.stages)
        members = len({stage.member for stage in run.stages})
        kind = 'mutual training' if members > 1 else 'self-training'
        if not rounds:
            return 'labeled images only'
        return f'{kind}, {rounds} round{"s" * (rounds > 1)}'
    if 'segmentor' in model:
        return str(model.get('type')).split('.')[-1]
    sampler = run.cfg.get('train_dataloader', {}).get('sampler', {})
    alone = len([share for share in sampler.get('source_ratio', [1]) if share]) == 1
    return 'labeled images only' if alone else str(model.get('type'))


def _network(model: Dict[str, Any]) -> str:
    """Head on backbone."""
    inner = model.get('segmentor', model)
    inner = inner[0] if isinstance(inner, (list, tuple)) else inner
    parts = (inner.get('decode_head') or inner.get('head'), inner.get('backbone'))
    parts = [part[0] if isinstance(part, (list, tuple)) else part for part in parts]
    names = [str(part['type']).split('.')[-1] for part in parts if part and 'type' in part]
    return ' on '.join(names) or str(model.get('type'))


def _describe_list(part: str, source: Dict[str, Any]) -> Dict[str, Any]:
    """Where a list of images lies, how long it is, and its hash as in manifest.json of splits."""
    file = source.get('ann_file') or ''
    path = Path(source.get('data_root') or '', file)
    found = dict(part=part, file=file or str(source.get('data_root') or source.get('type')))
    try:
        return dict(found, **describe_list(read_list(path)))
    except (OSError, ValueError):
        return dict(found, size=None, sha256=None)


def first_line(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
