"""What the guides point at exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
GUIDES += sorted((ROOT / 'configs').glob('*/README.md'))


def anchors(path):
    titles = re.findall(r'^#+ (.*)$', path.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('guide', GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(guide):
    broken = []
    for target in re.findall(r'\]\(([^)\s]+)\)', guide.read_text()):
        if re.match(r'[a-z]+:', target):
            continue
        name, _, anchor = target.partition('#')
        path = (guide.parent / name) if name else guide
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize('guide', GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(guide):
    """Tools, configs, modules and tests that a guide names; patterns and placeholders aside."""
    named = re.findall(
        r'(?<![\w/])((?:tools|configs|mmdmt|tests|examples|docs)/[\w./-]+\.(?:py|sh|md|yml))',
        guide.read_text(),
    )
    missing = sorted({name for name in named if not (ROOT / name).exists()})
    if guide.name == 'extending.md':  # what the reader is to write
        missing = [name for name in missing if 'my_fixmatch' not in name]
    assert not missing
