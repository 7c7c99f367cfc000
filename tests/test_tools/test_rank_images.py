import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'rank_images.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('rank_images', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def work_dir(tmp_path):
    stage = tmp_path / 'stage_1_a'
    stage.mkdir()
    images = [['d/best', 0.9], ['middle', 0.5], ['worst', 0.125]]
    (stage / 'reliability.json').write_text(json.dumps(dict(images=images)))
    return tmp_path


def test_the_least_reliable_image_is_the_next_to_label(tool, work_dir, capsys):
    tool.main([str(work_dir), '--next', '2'])
    assert capsys.readouterr().out == 'worst\nmiddle\n'
    tool.main([str(work_dir / 'stage_1_a'), '--scores'])
    assert capsys.readouterr().out == '0.1250 worst\n0.5000 middle\n0.9000 d/best\n'


def test_a_folder_without_one_ranking_is_refused(tool, work_dir):
    (work_dir / 'stage_1_b').mkdir()
    (work_dir / 'stage_1_b' / 'reliability.json').write_text('{}')
    for folder, count in ((work_dir, 2), (work_dir / 'none', 0)):
        with pytest.raises(SystemExit, match=f'holds {count} files'):
            tool.main([str(folder)])
