"""Config texts of a run."""

import copy

import pytest
from mmengine.config import Config
from tiny_project import base_config, labeled_only, load_config, make_tree
from yapf.yapflib import yapf_api

from mmdmt.engine.formatted_config import FormattedConfig
from mmdmt.engine.runners import SemiRunner

TEXT = dict(model=dict(type='Some', sizes=[1, 2, 3]), max_iters=4)


@pytest.fixture
def formatted_texts(formatted_configs, monkeypatch):
    """What has been formatted, as users' runs do it."""
    texts, format_code_of_yapf = [], yapf_api.FormatCode

    def format_code(text, **options):
        texts.append(text)
        return format_code_of_yapf(text, **options)

    monkeypatch.setattr(yapf_api, 'FormatCode', format_code)
    return texts


def test_the_text_is_that_of_mmengine_and_is_formatted_once(formatted_texts, tmp_path):
    stock = Config(TEXT)
    cfg = FormattedConfig.of(Config(TEXT))
    expected = stock.pretty_text
    formatted_texts.clear()

    assert cfg.pretty_text == expected
    assert copy.deepcopy(cfg).pretty_text == expected
    cfg.dump(str(tmp_path / 'config.py'))

    assert (tmp_path / 'config.py').read_text() == expected
    assert len(formatted_texts) == 1


def test_changes_are_seen(formatted_texts):
    cfg = FormattedConfig.of(Config(TEXT))
    before = cfg.pretty_text
    cfg.model.sizes[1] = 7

    assert cfg.pretty_text == Config(cfg.to_dict()).pretty_text != before


def test_settings_are_read_and_written_as_in_any_config(tmp_path):
    Config(TEXT).dump(str(tmp_path / 'some.py'))
    cfg = FormattedConfig.of(Config.fromfile(tmp_path / 'some.py'))
    cfg.merge_from_dict({'model.type': 'Other'})
    cfg.more = dict(a=1)

    assert cfg.filename == str(tmp_path / 'some.py')
    assert (cfg.model.type, cfg.more.a, 'max_iters' in cfg) == ('Other', 1, True)
    assert '_formatted' not in cfg.to_dict()


def test_a_run_formats_its_config_once(formatted_texts, tmp_path):
    cfg = labeled_only(base_config(make_tree(tmp_path / 'tree'), tmp_path, 1))
    cfg = load_config(cfg, tmp_path / 'tiny.py')
    formatted_texts.clear()
    SemiRunner.from_cfg(cfg).train()

    assert len(formatted_texts) == len(set(formatted_texts)) == 1
