import pytest
from mmengine.config import Config

from mmdmt.checkpoint import read_stored_config


def test_reads_what_mmengine_writes():
    cfg = Config(
        dict(
            a=1,
            negative=-0.5,
            none=None,
            quoted="it's",
            model=dict(type='X', scale=(2, 3), empty=[], flags=[True, False]),
            mixed={'backbone.norm': dict(lr_mult=0.1), 'head': {'decay.x': dict(v=(1,))}},
            nested=[dict(a=[(1, 2), [3]]), dict(b={'1x': 2})],
        )
    )
    assert read_stored_config(cfg.pretty_text).to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    'text',
    [
        '__import__("os").system("touch hacked")',
        'a = __import__("os").system("touch hacked")',
        'a = dict(b=open("x"))',
        'a = dict(**b)',
        'import os',
        'a = b = 1',
        'a = (',
    ],
)
def test_refuses_anything_else(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='Name the config file'):
        read_stored_config(text)
    assert not list(tmp_path.iterdir())
