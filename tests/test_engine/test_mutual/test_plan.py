import pytest

from mmdmt.engine.mutual.plan import MutualPlan, Stage

PAIR = [dict(name='c'), dict(name='i')]


def test_members_label_with_the_weights_of_the_round_before():
    plan = MutualPlan(PAIR, [0.2, 1.0])
    names = [stage.name for stage in plan.stages]
    assert names == [f'stage_{r}_{m}' for r in range(3) for m in 'ci']
    stage = plan.find('stage_2_c')
    assert (stage.labeled_by, stage.previous) == ('stage_1_i', 'stage_1_c')
    assert stage.ratio == 1.0
    assert plan.find('stage_2_i').labeled_by == 'stage_1_c'


def test_stages_of_a_round_do_not_need_each_other():
    plan = MutualPlan(PAIR, [0.2, 0.6, 1.0])
    for stage in plan.stages:
        assert all(plan.find(name).round == stage.round - 1 for name in stage.needs)


def test_one_member_labels_for_itself():
    plan = MutualPlan([{}], [0.5])
    assert plan.stages == [Stage(0, 'a'), Stage(1, 'a', 'a', 0.5)]
    assert plan.stages[1].needs == ['stage_0_a']


def test_three_members_form_a_ring():
    plan = MutualPlan([{}, {}, {}], [0.5])
    assert [stage.teacher for stage in plan.stages[3:]] == ['b', 'c', 'a']


@pytest.mark.parametrize('text', ['round_2.i', 'stage_2_i', '2.i'])
def test_stages_are_found_by_several_spellings(text):
    assert MutualPlan(PAIR, [0.2, 0.4]).find(text).name == 'stage_2_i'


@pytest.mark.parametrize('text', ['round_1.big_cnn', 'stage_1_big_cnn', '1.big_cnn'])
def test_names_of_members_may_have_underscores(text):
    plan = MutualPlan([dict(name='big_cnn'), dict(name='b')], [1.0])
    assert plan.find(text).member == 'big_cnn'


def test_what_is_made_from_a_stage_is_known():
    plan = MutualPlan(PAIR, [0.2, 1.0])
    later = [stage.name for stage in plan.with_later(plan.find('stage_1_c'))]
    assert later == ['stage_1_c', 'stage_2_c', 'stage_2_i']
    assert len(plan.with_later(plan.find('stage_0_i'))) == 5


def test_an_unknown_stage_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r'round_9\.i.*stage_0_c'):
        MutualPlan(PAIR, [0.2]).find('round_9.i')


@pytest.mark.parametrize(
    ('members', 'ratios', 'message'),
    [
        ([], [0.5], 'members'),
        ([dict(name='x'), dict(name='x')], [0.5], 'different names'),
        (PAIR, [0.0, 0.5], r'ratios.*0\.0'),
        (PAIR, [20], 'ratios'),
        ([dict(nmae='x')], [0.5], 'nmae'),
        ([dict(name='x/../../y')], [0.5], r'x/\.\./\.\./y.*letters'),
        ([dict(name='')], [0.5], 'name folders'),
        (2, [0.5], 'list of dicts, got 2'),
        (['a', 'b'], [0.5], 'list of dicts'),
        (PAIR, 0.5, 'list of numbers'),
    ],
)
def test_wrong_plans_are_refused(members, ratios, message):
    with pytest.raises(ValueError, match=message):
        MutualPlan(members, ratios)
