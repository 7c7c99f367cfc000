"""The table of estimated memory is that of the configs that are shipped."""

import re

from shipped_configs import CONFIGS, load

from mmdmt.datasets.samplers.multi_source_sampler import split_batch

ROW = re.compile(r'^\| `([a-z_]+/\S+)` *\| *([\d+]+) \|', re.MULTILINE)


def images_of(name):
    """Images in a step, labeled and unlabeled ones apart, as the table writes them."""
    cfg = load(name)
    sampler = cfg.train_dataloader.sampler
    ratio = (cfg.get('mutual') or {}).get('round', {}).get('source_ratio', sampler.source_ratio)
    return '+'.join(str(count) for count in split_batch(sampler.batch_size, ratio))


def test_the_rows_are_configs_with_their_batches():
    rows = ROW.findall((CONFIGS.parent / 'docs' / 'running.md').read_text())
    assert len(rows) > 50
    assert [name for name, _ in rows if not (CONFIGS / f'{name}.py').is_file()] == []
    assert {name: images_of(name) for name, _ in rows} == dict(rows)
