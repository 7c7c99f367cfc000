"""Runs of a plan: which there are, how long they are, what they cost."""

import copy
import functools
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from shipped_configs import CONFIGS, build, load, names_of

import mmdmt.classification  # noqa: F401
from mmdmt.config import schedulers_of
from mmdmt.engine.benchmark.cost import step_cost
from mmdmt.engine.benchmark.plan import Plan, identity, lengths_of, set_length
from mmdmt.engine.mutual import build_stage_config_builder

PLANS = sorted((CONFIGS / 'benchmarks').glob('*.py'))
TOY = 'fcn_unet_toy-scenes-96x96'
METHODS = dict(
    labeled_only=dict(config=f'supervised/{TOY}.py'), dmt=dict(config=f'dmt/dmt_{TOY}.py')
)


@functools.cache
def plan_of(path, quick=False):
    return Plan.fromfile(str(path), quick)


def small(**changes):
    settings = dict(name='x', methods=METHODS, seeds=[0, 1], budget=dict(student_steps=100))
    return Plan(Config({**settings, **changes}), str(CONFIGS))


def check_runs(plan):
    """Each method's config is that of the budget, for the first seed of every set of labels."""
    for run in plan.runs:
        if run.seed != plan.seeds[0]:
            continue
        cfg = plan.config(run, 'work_dir')
        (amount,) = plan.budget.values()
        amount = amount[run.labels] if isinstance(amount, dict) else amount
        assert sum(lengths_of(cfg)) == amount, run.name
        if plan.lists:
            folder = plan.lists.format(labels=run.labels, fold=run.fold, seed=run.seed)
            lists = [source.ann_file for source in cfg.train_dataloader.dataset.datasets]
            assert lists[0] == f'{folder}/labeled.txt'
            assert lists[1:] in ([], [f'{folder}/unlabeled.txt'])
        assert step_cost(cfg).passes > 0
        if run.labels == plan.labels[0]:  # it takes long, and other labels are other lists
            check_stages(cfg, amount)


def check_stages(cfg, amount):
    """What will be trained takes as many steps, schedulers included."""
    if 'mutual' not in cfg:
        assert {s.end for s in schedulers_of(cfg)} <= set(range(amount + 1))
        assert max(s.end for s in schedulers_of(cfg)) == amount
        return
    builder = build_stage_config_builder(copy.deepcopy(cfg))
    for member in builder.plan.member_names:
        stages = [stage for stage in builder.plan.stages if stage.member == member]
        built = [builder.build(stage, f'work_dir/{stage.name}') for stage in stages]
        assert sum(stage.train_cfg.max_iters for stage in built) == amount
        for stage in built:
            assert max(s.end for s in schedulers_of(stage)) == stage.train_cfg.max_iters


@pytest.mark.parametrize('path', PLANS, ids=lambda path: path.stem)
def test_shipped_plans_resolve_to_runs_of_their_budget(path):
    plan = plan_of(path)
    check_runs(plan)
    quick = plan_of(path, quick=True)
    check_runs(quick)
    assert len(quick.runs) < len(plan.runs)
    first = {run.method: run for run in reversed(quick.runs)}
    for run in first.values():
        cfg = quick.config(run, 'work_dir')
        build(cfg.model, cfg.default_scope)


def test_the_toy_plan_has_all_methods():
    plan = plan_of(CONFIGS / 'benchmarks' / 'toy.py')
    own = {Path(method['config']).stem for method in plan.methods.values()}
    shipped = {name.split('/')[1] for folder in FOLDERS for name in names_of(folder)}
    # The demo's variant of a method in the plan, chosen for scenes of a clear day.
    shipped.remove(f'dual-teacher-demo_{TOY}')
    assert own == {name for name in shipped if name.endswith(f'_{TOY}') or name == TOY}
    assert len(plan.seeds) == 5


# ------------------------------------------------------------------------------------------ length


def test_stages_keep_their_proportions_and_sum_to_the_budget():
    cfg = load(f'dmt/dmt_{TOY}')
    assert lengths_of(cfg) == [400, 300, 300]
    for steps, expected in ((1000, [400, 300, 300]), (501, [200, 151, 150]), (3, [1, 1, 1])):
        changed = copy.deepcopy(cfg)
        set_length(changed, steps)
        assert lengths_of(changed) == expected and sum(expected) == steps
    cfg.mutual.pop('supervised')  # as long as the config says
    changed = copy.deepcopy(cfg)
    set_length(changed, 100)
    assert lengths_of(changed) == [40, 30, 30]
    with pytest.raises(ValueError, match='2 steps are too few for 3 stages'):
        set_length(cfg, 2)


def test_warm_ups_and_ramps_keep_their_share_of_the_run():
    cfg = load(f'dual_teacher/dual-teacher_{TOY}')
    warm_up, decay = schedulers_of(cfg)
    old = cfg.train_cfg.max_iters, warm_up.end, cfg.model.shift_length, cfg.model.rampup_iters
    set_length(cfg, 3 * old[0])
    warm_up, decay = schedulers_of(cfg)
    assert (warm_up.end, decay.begin, decay.end) == (3 * old[1], 3 * old[1], 3 * old[0])
    assert (cfg.model.shift_length, cfg.model.rampup_iters) == (3 * old[2], 3 * old[3])
    set_length(cfg, 1)  # no warm-up is left
    assert [(s.begin, s.end) for s in schedulers_of(cfg)] == [(0, 1)]
    assert cfg.model.shift_length == 1 and cfg.model.rampup_iters == 0


def test_what_the_plan_sets_itself_is_not_scaled():
    method = dict(config=f'dual_teacher/dual-teacher_{TOY}.py', options={'model.shift_length': 7})
    plan = small(methods=dict(METHODS, dual_teacher=method))
    run = next(run for run in plan.runs if run.method == 'dual_teacher')
    assert plan.config(run, 'x').model.shift_length == 7


@pytest.mark.parametrize(('name', 'steps'), [('toy', 400), ('msrc21', 600)])
def test_ramps_end_in_the_middle_of_every_length_of_the_cpu_plans(name, steps):
    budget = {'budget.student_steps': steps, 'seeds': [0]}
    plan = Plan.fromfile(str(CONFIGS / 'benchmarks' / f'{name}.py'), options=budget)
    models = [plan.config(run, 'x').model for run in plan.runs]
    ramps = {model.type: model.rampup_iters for model in models if 'unsup_weight' in model}
    assert len(ramps) >= 9 and set(ramps.values()) == {steps // 2}, ramps


# -------------------------------------------------------------------------------------------- cost


@functools.cache
def step_tool():
    path = CONFIGS.parent / 'tools' / 'analysis_tools' / 'benchmark_step.py'
    spec = importlib.util.spec_from_file_location('benchmark_step', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


NOT_ONLINE = ('benchmarks', 'dmt', 'st', 'supervised', 'dmt_classification', 'prevmatch')
FOLDERS = sorted(p.name for p in CONFIGS.iterdir() if p.is_dir() and p.name[0] != '_')
ONLINE = [name for name in FOLDERS if name not in NOT_ONLINE]


@pytest.mark.parametrize(
    'name', [n for folder in ONLINE for n in names_of(folder) if n.endswith(TOY)]
)
def test_costs_are_the_passes_that_a_step_makes(name):
    tool, cfg = step_tool(), load(name)
    cfg.model.segmentor.backbone.base_channels = 4
    cfg.model.segmentor.decode_head.update(in_channels=4, channels=4)
    cfg.model.data_preprocessor = None
    cfg.model.pop('data_preprocessor')
    cfg.model.segmentor.data_preprocessor.size = (32, 32)
    args = type('Args', (), dict(device='cpu', warmup=1, rounds=1, size=(32, 32)))
    model = tool.build_model(cfg, args)
    if hasattr(model, 'sup_only'):
        model.sup_only = 0
    optimizer = tool.build_optim_wrapper(model, cfg.optim_wrapper)
    counts = tool.images_per_source(cfg)

    def step():
        model.train_step(tool.make_batch(counts, (32, 32), 11), optimizer)

    passes = tool.record_passes(model, step)
    found = [sum(p.shape[0] for p in passes if p.gradient == kind) for kind in (True, False)]
    assert found == [*map(int, step_cost(cfg))]


def test_equal_compute_gives_each_method_the_steps_it_can_pay_for():
    methods = dict(METHODS, mean_teacher=dict(config=f'mean_teacher/mean-teacher_{TOY}.py'))
    plan = small(methods=methods, budget=dict(passes=24_000))
    lengths = {
        run.method: sum(lengths_of(plan.config(run, 'x'))) for run in plan.runs if not run.seed
    }
    # 8 images with gradient are 24 passes; a teacher labels 4 more; there are two members.
    assert lengths == dict(labeled_only=1000, mean_teacher=24_000 // 28, dmt=500)


def test_the_cost_of_a_method_of_ones_own_is_asked_for():
    cfg = load(f'mean_teacher/mean-teacher_{TOY}')
    cfg.model.type = 'torch.nn.Identity'
    assert step_cost(cfg, ((1, 1), (0, 2))) == (8, 8)


# ---------------------------------------------------------------------------------- plan and seeds


def test_runs_are_all_combinations_and_share_no_seed_of_a_member():
    plan = small(labels=['4', '8'], folds=[0, 1], lists='splits/{labels}/{fold}')
    assert len(plan.runs) == 2 * 2 * 2 * 2 == len({run.name for run in plan.runs})
    run = next(run for run in plan.runs if run.method == 'dmt' and run.seed == 1)
    cfg = plan.config(run, 'x')
    assert cfg.randomness.seed == 1
    assert [member.seed for member in cfg.mutual.members] == [0, 100]
    assert cfg.train_dataloader.dataset.datasets[0].ann_file == 'splits/4/0/labeled.txt'
    hook = cfg.default_hooks.checkpoint
    assert (cfg.train_cfg.val_interval, hook.interval, hook.save_best) == (25, 25, 'mIoU')


def test_the_command_line_is_stronger_than_the_smaller_settings(tmp_path):
    settings = dict(methods=METHODS, seeds=[0, 1], budget=dict(student_steps=100))
    settings['quick'] = dict(seeds=[0], budget=dict(student_steps=9), methods=['labeled_only'])
    path = tmp_path / 'mine.py'
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in settings.items()))
    options = {'budget.student_steps': 5, 'validations': 1}
    for quick, seeds in ((True, [0]), (False, [0, 1])):
        plan = Plan.fromfile(str(path), quick, options)
        assert (plan.name, plan.seeds, plan.validations) == ('mine', seeds, 1)
        assert plan.budget == dict(student_steps=5)


def test_subsets_of_members_lie_beside_the_labels():
    config = 'dmt/dmt_deeplabv3plus_r50_1_8_pascal_voc12-321x321.py'
    plan = small(methods=dict(dmt=dict(config=config)), lists='splits/{labels}/fold_{fold}',
                 labels=['1_4'], folds=[2])  # fmt: skip
    members = plan.config(plan.runs[0], 'x').mutual.members
    assert {str(Path(member.labeled_list).parent) for member in members} == {'splits/1_4/fold_2'}


def test_names_of_methods_are_composed_with_the_base(monkeypatch):
    def compose_method(cfg, method, method_options=None):
        found.append((Path(cfg.filename).stem, method, method_options))
        return cfg

    found = []
    composition = SimpleNamespace(compose_method=compose_method)
    monkeypatch.setitem(sys.modules, 'mmdmt.composition', composition)
    method = dict(method='unimatch', method_options=dict(threshold=0.9))
    plan = small(methods=dict(METHODS, unimatch=method), base=f'supervised/{TOY}.py')
    run = next(run for run in plan.runs if run.method == 'unimatch')
    assert lengths_of(plan.config(run, 'x')) == [100]
    assert found == [(TOY, 'unimatch', dict(threshold=0.9))]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(seed=[0]), 'unknown keys .*seed.* meant'),
        (dict(methods={}), '`methods` of the plan must list at least one'),
        (dict(methods=dict(a=dict(config='x', steps=3))), r'methods.a. has unknown keys'),
        (dict(methods=dict(a=dict(method='dmt'))), 'needs a `config`, or a `method` and .* `base`'),
        (dict(seeds=0), '`seeds` of the plan must list at least one, got 0'),
        (dict(budget={}), '`budget` must be dict'),
        (dict(budget=dict(epochs=3)), '`budget` must be one of'),
        (dict(budget=dict(student_steps=0)), r'budget.student_steps. must be an integer'),
        (dict(budget=dict(student_steps={'4': 3})), r'budget.student_steps.all'),
        (dict(baseline='none'), "no method 'none' in `methods`, which has"),
        (dict(labels='1_8'), "`labels` of the plan must list at least one, got '1_8'"),
        (dict(dataset=dict(scenes=1)), '`dataset` has unknown keys'),
        (dict(metric='IoU'), '`metric` must be one of'),
    ],
)
def test_a_wrong_plan_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_identity_knows_what_decides_the_outcome(tmp_path):
    plan = small()
    run = plan.runs[0]
    first = identity(plan.config(run, 'a'))
    assert identity(plan.config(run, 'b')) == first
    other = small(options={'optim_wrapper.optimizer.lr': 0.5})
    second = identity(other.config(run, 'a'))
    assert [key for key in first if first[key] != second[key]] == ['optim_wrapper.optimizer.lr']


def test_configs_that_are_not_counted_in_steps_are_refused():
    with pytest.raises(ValueError, match=r'`train_cfg.max_iters` is missing'):
        set_length(Config(dict(train_cfg=dict(by_epoch=True, max_epochs=3))), 5)
