"""Training that diverges: how it ends, and what is left of it."""

import json
import re

import numpy as np
import pytest
import torch
from forked_tool import ForkedTool, forked_ranks
from mmcv.transforms import BaseTransform
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS, RUNNERS, TRANSFORMS
from tiny_classification import (
    RUNTIME,
    classification_config,
    make_folders,
    mutual_classification,
)
from tiny_models import tiny_segmentor
from tiny_project import (
    base_config,
    labeled_only,
    load_config,
    make_tree,
    mean_teacher,
    mutual,
    online,
    write_config,
)

import mmdmt.classification  # noqa: F401
from mmdmt.checkpoint import find_latest_valid_checkpoint, load_checkpoint_file, save_atomically
from mmdmt.engine.mutual import LedgerMismatchError
from mmdmt.engine.mutual.ensemble import merge_checkpoints
from mmdmt.engine.runners import MutualTrainingRunner
from mmdmt.export.segmentor import export_segmentor
from mmdmt.finite import NonFiniteError, non_finite
from mmdmt.pseudo import PseudoLabeler

pytestmark = pytest.mark.usefixtures('unformatted_configs')
NAN = float('nan')
METHODS = dict(
    supervised=labeled_only,
    mean_teacher=mean_teacher,
    fixmatch=lambda cfg: online(cfg, 'mmdmt.FixMatch'),
    fixmatch_teacher=lambda cfg: online(cfg, 'mmdmt.FixMatch', labeler='teacher'),
    u2pl=lambda cfg: online(cfg, 'mmdmt.U2PL'),
    dual_teacher=lambda cfg: online(cfg, 'mmdmt.DualTeacher', shift_length=2),
    released_dual_teacher=lambda cfg: online(
        cfg, 'mmdmt.ReleasedDualTeacher', shift_length=2, strong=None
    ),
    cross_teacher=lambda cfg: online(cfg, 'mmdmt.CrossTeacher'),
    unimatch=lambda cfg: online(cfg, 'mmdmt.UniMatch'),
    unimatch_v2=lambda cfg: online(cfg, 'mmdmt.UniMatchV2'),
    cps=lambda cfg: online(cfg, 'mmdmt.CPS'),
    cps_cutmix=lambda cfg: online(cfg, 'mmdmt.CPS', mix=dict(type='mmdmt.CutMix')),
    cutmix_seg=lambda cfg: online(cfg, 'mmdmt.CutMixSeg'),
)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def with_lr(cfg, lr=1e6, logged_every=50):
    cfg['optim_wrapper']['optimizer']['lr'] = lr
    cfg['default_hooks']['logger'] = dict(interval=logged_every)
    return cfg


def run(cfg, work_dir, runtime='default_runtime.py'):
    return RUNNERS.build(load_config(cfg, work_dir / 'config.py', runtime)).train()


def left(work_dir):
    """Checkpoints of a work dir, all of which are finite."""
    paths = sorted(work_dir.rglob('*.pth'))
    for path in paths:
        loaded = load_checkpoint_file(path)
        loaded.pop('message_hub', None)
        assert non_finite(loaded) == [], path
    return [str(path.relative_to(work_dir)) for path in paths]


@pytest.mark.parametrize('method', METHODS)
def test_a_learning_rate_of_a_million(tree, tmp_path, method):
    cfg = with_lr(METHODS[method](base_config(tree, tmp_path, max_iters=30, interval=1)))
    message = r'(?s)at iteration \d+: loss=.*not finite: \S+, of.*iter_\d\.pth.*now \d+'
    with pytest.raises(NonFiniteError, match=message) as error:
        run(cfg, tmp_path)
    kept = left(tmp_path)
    assert kept and find_latest_valid_checkpoint(tmp_path).endswith(kept[-1])
    assert kept[-1] in str(error.value)


@HOOKS.register_module()
class SpoilLoss(Hook):
    """Makes the loss of one iteration, counted from 0, NaN."""

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        parse = type(runner.model).parse_losses
        factor = NAN if runner.iter == self.at else 1
        runner.model.parse_losses = lambda losses: parse(
            runner.model, {key: value * factor for key, value in losses.items()}
        )


def test_a_run_is_resumed_from_the_last_good_checkpoint(tree, tmp_path):
    cfg = mean_teacher(base_config(tree, tmp_path, max_iters=6))
    cfg['custom_hooks'] = [dict(type='SpoilLoss', at=2)]
    message = r'at iteration 3: loss=nan, .* student\..*iter_2\.pth'
    with pytest.raises(NonFiniteError, match=message):
        run(cfg, tmp_path)
    assert left(tmp_path) == ['iter_2.pth']
    cfg.pop('custom_hooks')
    run(dict(cfg, resume=True), tmp_path)
    ended = ['best_mIoU_iter_6.pth', 'final.pth', 'iter_4.pth', 'iter_6.pth']
    assert left(tmp_path) == ended


@HOOKS.register_module()
class SpoilWeight(Hook):
    """Initializes a weight with NaN."""

    priority = 'HIGH'

    def before_train(self, runner):
        torch.nn.init.constant_(runner.model.decode_head.conv_seg.weight, NAN)


def test_weights_that_are_nan_from_the_start(tree, tmp_path):
    cfg = labeled_only(base_config(tree, tmp_path))
    cfg['custom_hooks'] = [dict(type='SpoilWeight')]
    with pytest.raises(NonFiniteError, match=r'from iteration 0: .* decode_head\.conv_seg\.weight'):
        run(cfg, tmp_path)
    assert left(tmp_path) == []


@TRANSFORMS.register_module()
class SpoilImage(BaseTransform):
    """Gives floats, and NaN in one image."""

    def transform(self, results):
        image = results['img'].astype(np.float32)
        if 'labeled_1.' in results['img_path'] and 'unlabeled' not in results['img_path']:
            image[3, 3] = NAN
        return dict(results, img=image)


def test_an_image_with_nan(tree, tmp_path):
    cfg = labeled_only(base_config(tree, tmp_path))
    cfg['train_dataloader']['dataset']['datasets'][0]['pipeline'].insert(-1, SPOIL_IMAGE)
    with pytest.raises(NonFiniteError, match=r'hold NaN or infinity: \S*labeled_1\.png\.'):
        run(cfg, tmp_path)
    assert left(tmp_path) == []


SPOIL_IMAGE = dict(type='SpoilImage')


@METRICS.register_module()
class SpoilMetric(BaseMetric):
    """Scores that are NaN whatever was predicted."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(mIoU=NAN, mDice=NAN)


def test_a_score_that_is_nan_is_never_the_best(tree, tmp_path):
    cfg = labeled_only(base_config(tree, tmp_path, max_iters=2))
    cfg['val_evaluator'] = dict(type='SpoilMetric')
    cfg['default_hooks']['checkpoint']['save_best'] = 'mIoU'
    run(cfg, tmp_path)
    assert left(tmp_path) == ['final.pth', 'iter_2.pth']


# ------------------------------------------------------------------------------- two processes

SPOIL_ONE_RANK = """
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class SpoilOneRank(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = runner.model.module
        parse = type(model).parse_losses
        factor = float('nan') if get_rank() == 1 and runner.iter == 2 else 1
        model.parse_losses = lambda losses: parse(
            model, {key: value * factor for key, value in losses.items()}
        )
"""


def test_all_processes_end_with_the_message_of_the_bad_one(tree, tmp_path):
    (tmp_path / 'spoil_one_rank.py').write_text(SPOIL_ONE_RANK)
    cfg = mean_teacher(base_config(tree, tmp_path, max_iters=6))
    cfg['custom_imports'] = dict(imports=['mmdmt', 'spoil_one_rank'], allow_failed_imports=False)
    cfg['custom_hooks'] = [dict(type='SpoilOneRank')]
    path = write_config(cfg, tmp_path / 'config.py')
    log = tmp_path / 'ranks.log'
    tools = forked_ranks('train.py', path, log=log, PYTHONPATH=str(tmp_path))
    texts = [tool.finish(check=False) for tool in tools]
    assert [tool.process.exitcode for tool in tools] == [1, 1]
    messages = [re.findall(r'NonFiniteError: (.*)', text)[-1] for text in texts]
    assert messages[0] == messages[1]
    assert 'at iteration 3 of rank 1: loss=nan' in messages[0]
    assert left(tmp_path) == ['iter_2.pth']


# ------------------------------------------------------------------------------- mutual training


def chain(tree, work_dir, lr, **settings):
    settings.setdefault('supervised', dict(max_iters=2))
    settings.setdefault('round', dict(max_iters=4, lr=lr, source_ratio=[1, 3]))
    return mutual(base_config(tree, work_dir, interval=1), ratios=[0.5], **settings)


def states(work_dir):
    stages = json.loads((work_dir / 'stages.json').read_text())['stages']
    return {name: entry['state'] for name, entry in stages.items()}


def test_a_chain_stops_at_the_stage_that_diverges_and_can_be_gone_on_with(tree, tmp_path):
    path = write_config(chain(tree, tmp_path, 1e6), tmp_path / 'chain.py')
    tool = ForkedTool('train.py', path, log=tmp_path / 'log')
    text = tool.finish(check=False)
    assert tool.process.exitcode == 1
    assert re.search(r'NonFiniteError: stage_1_a: .*`mutual\.round\.lr`.* --redo stage_1_a', text)
    done = dict(stage_0_a='done', stage_0_b='done')
    assert states(tmp_path) == dict(done, stage_1_a='running')
    assert 'stage_0_b/iter_2.pth' in left(tmp_path)

    cfg = load_config(chain(tree, tmp_path, 1e-3), tmp_path / 'chain.py')
    with pytest.raises(LedgerMismatchError, match='stage_1_a'):
        MutualTrainingRunner(cfg).train()
    runner = MutualTrainingRunner(cfg)
    runner.redo('stage_1_a')
    runner.train()
    assert states(tmp_path) == dict(done, stage_1_a='done', stage_1_b='done')
    left(tmp_path)


def test_a_stage_whose_score_is_nan_is_not_done(tree, tmp_path):
    cfg = chain(tree, tmp_path, 1e-3)
    cfg['val_evaluator'] = dict(type='SpoilMetric')
    with pytest.raises(NonFiniteError, match='stage_0_a: the validation gives mIoU=nan'):
        run(cfg, tmp_path)
    assert states(tmp_path) == dict(stage_0_a='running')
    cfg['mutual']['metric'] = 'mAcc'  # which nothing reports: allowed, and other scores may be NaN
    cfg['mutual']['members'] = cfg['mutual']['members'][:1]
    entries = run(cfg, tmp_path)
    assert entries['stage_1_a']['state'] == 'done' and entries['stage_1_a']['metrics'] == {}


def test_a_chain_of_classifiers(tmp_path):
    tree = make_folders(tmp_path / 'folders')
    cfg = with_lr(mutual_classification(classification_config(tree, tmp_path, 30, 1)))
    with pytest.raises(NonFiniteError, match=r'stage_0_a: .* at iteration \d+: loss='):
        run(cfg, tmp_path, RUNTIME)
    assert states(tmp_path) == dict(stage_0_a='running')
    left(tmp_path)


# ------------------------------------------------------------------------------- files


@pytest.fixture(scope='module')
def spoiled(unformatted_configs, tree, tmp_path_factory):
    """A checkpoint as older versions wrote them: a trained one with NaN in it."""
    work_dir = tmp_path_factory.mktemp('spoiled')
    run(labeled_only(base_config(tree, work_dir, max_iters=2)), work_dir)
    content = load_checkpoint_file(work_dir / 'iter_2.pth')
    content['state_dict']['decode_head.conv_seg.bias'][1] = NAN
    save_atomically(content, work_dir / 'iter_2.pth')
    return work_dir / 'iter_2.pth'


REFUSED = r'iter_2\.pth\S* .*holds NaN or infinity in 1 tensors: decode_head\.conv_seg\.bias'


def used_by_a_runner(tree, work_dir, spoiled, **settings):
    cfg = labeled_only(base_config(tree, work_dir))
    return RUNNERS.build(
        load_config(dict(cfg, load_from=str(spoiled), **settings), work_dir / 'config.py')
    )


def label_with(tree, work_dir, spoiled):
    unlabeled = base_config(tree, work_dir)['train_dataloader']['dataset']['datasets'][1]
    unlabeled['pipeline'] = [unlabeled['pipeline'][0], dict(type='PackSegInputs')]
    store = str(work_dir / 'store')
    labeler = PseudoLabeler(store, tiny_segmentor(), unlabeled, num_workers=0)
    labeler.run(str(spoiled), 0.5)


USES = dict(
    load_from=lambda *args: used_by_a_runner(*args).train(),
    resume=lambda *args: used_by_a_runner(*args, resume=True).train(),
    test=lambda *args: used_by_a_runner(*args).test(),
    labeling=label_with,
    predictions=lambda tree, work_dir, path: merge_checkpoints(
        [path], work_dir / 'out.pth', 'predictions'
    ),
    averaged_weights=lambda tree, work_dir, path: merge_checkpoints(
        [path], work_dir / 'out.pth', 'weights'
    ),
    export=lambda tree, work_dir, path: export_segmentor(path, work_dir),
)


@pytest.mark.parametrize('use', USES)
def test_weights_that_are_nan_are_used_for_nothing(tree, spoiled, tmp_path, use):
    with pytest.raises(NonFiniteError, match=REFUSED):
        USES[use](tree, tmp_path, spoiled)
    assert left(tmp_path) == []
