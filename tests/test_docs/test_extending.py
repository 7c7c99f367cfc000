"""The worked example of ``docs/extending.md`` is trained as it stands there."""

import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from toy_scenes import generate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Folder with the files of the guide; the config's base is that of this checkout."""
    text = (ROOT / 'docs' / 'extending.md').read_text()
    for block in re.findall(r'```python\n(.*?)```', text, re.S):
        name = re.match(r'# (\w+\.py)\n', block)
        if name:
            (tmp_path / name.group(1)).write_text(
                block.replace("'configs/", f"'{ROOT.as_posix()}/configs/")
            )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop('my_fixmatch', None)


def test_the_method_of_the_guide_trains(example):
    data_root = generate(
        example / 'scenes', num_train=8, num_val=2, num_test=2, num_labeled=4, progress=False
    )
    cfg = Config.fromfile(example / 'my_config.py')
    cfg.merge_from_dict(
        dict(data_root=str(data_root), max_iters=2, batch_size=4, work_dir=str(example / 'run'))
    )
    cfg.experiment_name = 'extending'
    runner = RUNNERS.build(cfg)
    runner.train()
    assert type(runner.model).__name__ == 'MyFixMatch' and runner.model.step == 2
    scalars = runner.message_hub.log_scalars
    assert {'train/unsup_loss', 'train/unsup_keep_ratio', 'train/sup_decode.loss_ce'} <= set(
        scalars
    )
    state = torch.load(example / 'run' / 'iter_2.pth', weights_only=True)['state_dict']
    assert state['iterations'] == 2
