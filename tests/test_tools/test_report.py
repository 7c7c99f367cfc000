"""The page about runs: made from real tiny work dirs, parsed as strict HTML5."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import html5lib
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from tiny_project import (
    base_config,
    labeled_only,
    load_config,
    make_tree,
    mean_teacher,
    mutual,
)

from mmdmt.engine.runners import SemiRunner
from mmdmt.evaluation.report import write_report
from mmdmt.pseudo import PseudoLabelStore
from mmdmt.registry import RUNNERS

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'report.py'
# What would end a script, a tag or an attribute, or be a formula, if it were not taken as text.
CLASSES = ['a', '</script><script>alert(1)</script>', '"c" & \'d\'', '$e_{']


def config(tree, work_dir, networks=False):
    """Four iterations, hostile class names."""
    cfg = base_config(tree, work_dir, max_iters=4)
    sets = [cfg['train_dataloader']['dataset']['datasets'][0], cfg['val_dataloader']['dataset']]
    for dataset in sets:
        dataset['metainfo'] = dict(dataset['metainfo'], classes=CLASSES)
    if networks:
        cfg['val_cfg'] = dict(type='mmdmt.NetworksValLoop')
    return cfg


def train(cfg, path):
    cfg = load_config(cfg, path)
    cfg.visualizer.name = cfg.experiment_name  # else the runs of a process share one, and its log
    RUNNERS.build(cfg).train()
    return cfg


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A labeled-only run, one with an online method, and a chain of two rounds."""
    root = tmp_path_factory.mktemp('work')
    tree = make_tree(root / 'tree')
    rng = np.random.default_rng(0)
    for index in range(4):  # of six unlabeled images
        mask = rng.integers(0, 4, (32, 32)).astype(np.uint8)
        mask[:4] = 255
        Image.fromarray(mask).save(tree / 'ann' / f'unlabeled_{index}.png')
    train(labeled_only(config(tree, root / 'labeled')), root / 'labeled.py')
    train(mean_teacher(config(tree, root / 'online', networks=True)), root / 'online.py')
    chain = mutual(config(tree, root / 'chain'), round=dict(max_iters=2, source_ratio=[1, 3]))
    train(chain, root / 'chain.py')
    return root


class Page:
    """A parsed page."""

    def __init__(self, path):
        self.path = Path(path)
        self.text = self.path.read_text(encoding='utf-8')
        parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
        self.root = parser.parse(self.text)

    def section(self, name):
        return next(e for e in self.root.iter('section') if e.get('id') == name)

    def rows(self, name):
        """Texts of the cells of all tables of a section, row by row."""
        return [[words(cell) for cell in row] for row in self.section(name).iter('tr')]


def words(element):
    return ' '.join(''.join(element.itertext()).split())


@pytest.fixture(scope='module')
def page(work):
    runs = [f'labels={work / "labeled"}', work / 'online', work / 'chain']
    return Page(write_report(runs, work / 'pages' / 'report.html', images=3))


def test_one_file_that_needs_nothing_else(page):
    assert page.path.stat().st_size < 10_000_000
    ids = [element.get('id') for element in page.root.iter() if element.get('id')]
    assert len(ids) > 100 and len(ids) == len(set(ids))
    targets = [
        value
        for element in page.root.iter()
        for key, value in element.attrib.items()
        if re.search(r'(src|href)$', str(key))
    ]
    assert targets and all(target.startswith(('#', 'data:')) for target in targets)
    assert {t[1:] for t in targets if t.startswith('#')} <= set(ids)
    assert not list(page.root.iter('link')) and '@import' not in page.text
    assert set(re.findall(r'url\((.)', page.text)) <= {'#'}


def test_both_themes(page):
    style = words(next(page.root.iter('style')))
    assert 'prefers-color-scheme: dark' in style and '[data-theme="dark"]' in style
    drawn = [element for element in page.root.iter() if str(element.tag).endswith('path')]
    colors = {c for e in drawn for c in re.findall(r'(?:fill|stroke): ([^;]+)', e.get('style', ''))}
    assert 'var(--s1)' in colors and not [c for c in colors if c.startswith('#0101')]


def test_names_are_text(page):
    assert len(list(page.root.iter('script'))) == 1
    names = [row[0] for row in page.rows('classes')]
    assert names[1:5] == CLASSES


def test_scores_are_those_of_mmseg(page, work):
    cfg = Config.fromfile(str(work / 'labeled' / 'labeled.py'))
    cfg.update(load_from=str(work / 'labeled' / 'iter_4.pth'), experiment_name='scores')
    expected = SemiRunner.from_cfg(cfg).test()
    head, *rows = page.rows('summary')
    column = head.index('mIoU')
    assert [row[0].split()[0] for row in rows] == ['labels', 'online', 'chain']
    assert float(rows[0][column]) == pytest.approx(expected['mIoU'], abs=0.06)
    gaps = [float(row[column]) - float(rows[0][column]) for row in rows[1:]]
    shown = [float(row[column + 1].replace('−', '-')) for row in rows[1:]]
    assert shown == pytest.approx(gaps, abs=0.11)


def test_what_was_run(page, work):
    text = words(page.section('runs'))
    assert 'MeanTeacher' in text and 'mutual training, 2 rounds' in text
    assert 'labeled images only' in text and 'FCNHead on ResNet' in text
    assert 'optim_wrapper' in text and 'TorchVision' in text
    hashes = [row for row in page.rows('runs') if row[0] == 'unlabeled']
    assert hashes and all(re.fullmatch('[0-9a-f]{64}', row[-1]) for row in hashes)


def test_curves_of_all_networks(page):
    text = words(page.section('curves'))
    assert {'student', 'teacher', 'a', 'b'} <= set(re.findall(r'\w+', text))
    assert 'unsup_keep_ratio' in text and 'pseudo_keep_ratio' in text


def test_rounds(page, work):
    section = page.section('rounds')
    ledger = json.loads((work / 'chain' / 'stages.json').read_text())['stages']
    for name, entry in ledger.items():
        assert name in words(section) and f'{entry["metrics"]["mIoU"]:.1f}' in words(section)
    manifest = PseudoLabelStore(work / 'chain' / 'stage_1_a' / 'pseudo_labels').manifest
    share = manifest['predicted_pixels'][0] / sum(manifest['predicted_pixels'])
    row = next(row for row in page.rows('rounds') if row[0] == 'a')
    assert float(row[2]) == pytest.approx(100 * share, abs=0.06)
    assert 'Shares: of all 6 images' in words(section)


def test_browser_shows_the_same_images_of_every_run(page):
    articles = list(page.section('tested').iter('article'))
    assert len(articles) == 3
    for article in articles:
        titles = [words(h4) for h4 in article.iter('h4')]
        assert titles == ['image and truth', 'labels', 'online', 'chain']
        assert len(list(article.iter('img'))) == 2 + 3 * 3  # label, confidence, errors
        data = json.loads(article.get('data-item'))
        assert 0 <= data['error'] <= 1 and 0 < data['confidence'] <= 1
        assert 0 <= data['disagreement'] <= 1 and data['classes']
    errors = [json.loads(article.get('data-item'))['error'] for article in articles]
    assert len(set(errors)) > 1


def test_browser_of_pseudo_labels(page):
    articles = list(page.section('unlabeled').iter('article'))
    titles = [words(h4) for h4 in articles[0].iter('h4')]
    assert 'chain: round 1, for a' in titles and 'chain: round 2, for b' in titles
    assert 'online: trained' in titles
    kept = [words(f) for f in page.section('unlabeled').iter('figcaption')]
    assert any(re.fullmatch(r'label, \d+ % kept', text) for text in kept)


def test_a_record_in_the_work_dir_is_believed(work, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(work / 'labeled', run)
    confusion = [[8, 2, 0, 0], [0, 10, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = [80.0, 100 * 10 / 12, None, None]
    image = dict(intersect=[8, 10, 0, 0], pred=[8, 12, 0, 0], label=[10, 10, 0, 0])
    record = dict(
        classes=CLASSES,
        metrics=dict(mIoU=77.75, aAcc=90.0, mAcc=90.0),
        per_class=dict(IoU=iou, Acc=[80.0, 100.0, None, None]),
        confusion=confusion,
        images=[dict(image, name=str(work / 'tree' / 'img' / 'val_1.png'))],
        dataset='test',
        network='student',
        selected_by='last',
    )
    (run / 'evaluation').mkdir()
    (run / 'evaluation' / 'iter_4.student.json').write_text(json.dumps(record))
    others = {  # of a checkpoint that validation selected, of a network that does not predict
        'best_mIoU_iter_2.student': dict(selected_by='best mIoU on val'),
        'iter_4.a': dict(default=False),
    }
    for name, own in others.items():
        (run / 'evaluation' / f'{name}.json').write_text(json.dumps(dict(record, **own)))
    (run / 'evaluation' / 'broken.json').write_text('{"classes"')
    found = Page(write_report([run], tmp_path / 'report.html', images=2))
    row = found.rows('summary')[1]
    assert '77.8' in row and 'student, evaluation/iter_4.student.json (test images)' in row
    assert [row[-1] for row in found.rows('classes')[1:5]] == ['80.0', '83.3', '–', '–']
    assert 'broken.json cannot be read' in words(found.section('summary'))
    articles = list(found.section('tested').iter('article'))
    assert [words(article.find('h3')).split()[0] for article in articles] == ['val_1']


def test_one_run_is_compared_with_no_other(work, tmp_path):
    page = Page(write_report([work / 'online'], tmp_path / 'report.html', images=1))
    assert 'difference' not in page.rows('summary')[0]
    assert [e.get('name') for e in page.section('tested').iter('input')].count('disagreement') == 0
    options = [words(option) for option in page.section('tested').iter('option')]
    assert 'error' in options and 'disagreement' not in options
    assert 'What the trained networks say of them' in words(page.section('unlabeled'))


def test_a_run_without_scores_whose_log_has_no_lines(work, tmp_path):
    shutil.copytree(work / 'labeled', tmp_path / 'run')
    for log in (tmp_path / 'run').rglob('*.log'):
        log.write_text('')
    (scalars,) = (tmp_path / 'run').rglob('scalars.json')
    lines = [dict(step=step, iter=step, loss=1.0, time=30.0) for step in (2, 4)]
    scalars.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    page = Page(write_report([tmp_path / 'run'], tmp_path / 'report.html', predict=False))
    head, row = page.rows('summary')
    assert row[head.index('time')] == '2 min' and row[head.index('mIoU')] == '–'
    assert 'No scores yet' in words(page.section('summary'))


def test_what_is_missing_is_said(work, tmp_path):
    shutil.copytree(work / 'online', tmp_path / 'unfinished')
    for file in (tmp_path / 'unfinished').glob('*.pth'):
        file.unlink()
    scalars = next((tmp_path / 'unfinished').rglob('scalars.json'))
    lines = scalars.read_text().splitlines()
    scalars.write_text('\n'.join(lines[:2]) + '\n{"loss": 1.0, "st')  # killed while it wrote
    shutil.copytree(work / 'chain', tmp_path / 'chain')
    ledger = tmp_path / 'chain' / 'stages.json'
    content = json.loads(ledger.read_text())
    content['stages']['stage_2_b']['state'] = 'running'
    ledger.write_text(json.dumps(content))
    (tmp_path / 'chain' / 'stage_1_a' / 'pseudo_labels' / 'manifest.json').unlink()
    for scalars in (tmp_path / 'chain' / 'stage_0_a').rglob('scalars.json'):
        scalars.unlink()
    shutil.copytree(work / 'labeled', tmp_path / 'bare')
    for file in (tmp_path / 'bare').glob('*.py'):
        file.unlink()
    for logs in (tmp_path / 'bare').glob('*/vis_data'):  # of the run, and of its evaluation
        shutil.rmtree(logs)
    names = ('unfinished', 'chain', 'bare')
    out = write_report([tmp_path / n for n in names], tmp_path / 'report.html', predict=False)
    text = words(Page(out).section('summary'))
    assert 'The run is not finished: 2 of 4 steps' in text
    assert 'there is no checkpoint yet' in text or 'predicting is off' in text
    assert 'The chain is not finished: stage_2_b' in text
    assert 'No pseudo-labels of stage_1_a' in text
    assert 'No curves: stage_0_a' in text and 'No config in the work dir' in text
    assert 'predicting is off (--no-predict)' in text


def test_data_that_is_gone(work, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(work / 'labeled', run)
    file = run / 'labeled.py'
    file.write_text(file.read_text().replace(str(work / 'tree'), str(tmp_path / 'gone')))
    text = words(Page(write_report([run], tmp_path / 'report.html')).section('summary'))
    assert 'Nothing could be predicted' in text and 'gone' in text


def test_pages_stay_below_their_size(work, tmp_path):
    whole = write_report([work / 'labeled'], tmp_path / 'a.html', images=3).stat().st_size
    limit = whole - 3_000 + 200_000
    small = write_report([work / 'labeled'], tmp_path / 'b.html', images=3, max_bytes=limit)
    assert small.stat().st_size < limit - 150_000
    assert 'left out: the page is full' in words(Page(small).section('tested'))


def test_seeds_of_a_benchmark_are_one_method(work, tmp_path):
    for seed in (0, 1):
        shutil.copytree(work / 'labeled', tmp_path / 'bench' / 'all' / 'labels' / f'seed_{seed}')
    shutil.copytree(work / 'online', tmp_path / 'bench' / 'all' / 'teacher' / 'seed_0')
    row = dict(method='teacher', labels='all', checkpoint='last', seeds=[[0, 0]], mean=12.34)
    row.update(std=None, difference=dict(mean=-1.5, low=-2.5, high=0.5))
    results = dict(plan='tiny', rows=[row])
    (tmp_path / 'bench' / 'results.json').write_text(json.dumps(results))
    out = write_report([tmp_path / 'bench'], tmp_path / 'r.html', images=1, baseline='all/labels')
    rows = Page(out).rows('summary')
    assert rows[1][0] == 'all/labels 2 seeds baseline' and '± 0.0' in rows[1][1]
    assert rows[2][0] == 'all/teacher'
    assert rows[-1] == ['teacher', 'all', 'last', '1', '12.3', '–', '−1.5', '−2.5 … +0.5']
    titles = [words(h4) for h4 in Page(out).section('tested').iter('h4')]
    assert titles == ['image and truth', 'all/labels/seed_0', 'all/teacher/seed_0']
    # A benchmark knows its baseline.
    (tmp_path / 'bench' / 'results.json').write_text(json.dumps(dict(results, baseline='teacher')))
    out = write_report([tmp_path / 'bench'], tmp_path / 'r.html', predict=False)
    assert [row[0] for row in Page(out).rows('summary')[1:3]] == [
        'all/teacher baseline',
        'all/labels 2 seeds',
    ]


def test_classification_has_curves_and_scores(tmp_path):
    run = tmp_path / 'classifier'
    (run / '20260101_000000' / 'vis_data').mkdir(parents=True)
    (run / 'config.py').write_text("default_scope = 'mmpretrain'\nmodel = dict(type='X')\n")
    lines = [dict(step=5, iter=5, loss=1.0), {'step': 5, 'accuracy/top1': 61.25}]
    text = '\n'.join(json.dumps(line) for line in lines)
    (run / '20260101_000000' / 'vis_data' / 'scalars.json').write_text(text)
    page = Page(write_report([run], tmp_path / 'report.html'))
    head, row = page.rows('summary')
    assert row[head.index('accuracy/top1')] == '61.2' and 'last validation (val images)' in row
    assert 'Images are shown of segmentation only' in words(page.section('summary'))


@pytest.mark.parametrize(
    ('given', 'error', 'message'),
    [
        (dict(work_dirs=['nowhere']), FileNotFoundError, 'work dir nowhere does not exist'),
        (dict(work_dirs=['tree']), FileNotFoundError, 'is no work dir of a run and holds none'),
        (dict(work_dirs=['labeled'], baseline='x'), ValueError, r"none of the runs \['labeled'\]"),
        (dict(work_dirs=['labeled'], images=-1), ValueError, '`images` must be'),
    ],
)
def test_bad_input(work, monkeypatch, given, error, message):
    monkeypatch.chdir(work)
    with pytest.raises(error, match=message):
        write_report(**given, out='bad.html')
    assert not (work / 'bad.html').exists()


def test_the_tool(work, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location('report', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out = tmp_path / 'page.html'
    args = [f'x={work / "labeled"}', '--out', str(out), '--no-predict', '--title', 'Mine <b>']
    tool.main(args)
    assert str(out) in capsys.readouterr().out
    assert words(next(Page(out).root.iter('title'))) == 'Mine <b>'
