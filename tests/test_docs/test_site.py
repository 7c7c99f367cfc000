"""The site of guides and API builds without a warning and holds what it should."""

import re
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    build(load_config(str(ROOT / 'mkdocs.yml'), site_dir=str(folder)))  # strict: a warning raises
    return folder


def test_every_guide_is_a_page_that_can_be_found(site):
    names = {path.stem for path in (ROOT / 'docs').glob('*.md')} - {'README'}
    assert {path.stem for path in (site / 'docs').glob('*.html')} >= names
    nav = re.findall(r'docs/(\w+)\.md', (ROOT / 'mkdocs.yml').read_text())
    assert set(nav) == names | {'README'} and len(nav) == len(set(nav))


def test_the_first_page_is_the_readme_and_its_links_lead_to_pages(site):
    html = (site / 'index.html').read_text()
    assert 'MMSegmentation' in html
    local = re.findall(r'href="((?:docs|configs)/[^"#]+)', html)
    assert len(local) > 20 and all((site / name).is_file() for name in local)


def test_the_api_has_every_module_with_its_docstrings(site):
    html = (site / 'api' / 'mmdmt.models.methods.unimatch.html').read_text()
    assert 'feature_dropout' in html and 'Probability that a channel is dropped' in html
    assert ':class:' not in html  # roles have become code
    assert (site / 'search' / 'search_index.json').stat().st_size > 100_000


def test_citation_and_package_have_one_version():
    import mmdmt

    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == mmdmt.__version__
    assert f'## {mmdmt.__version__}' in (ROOT / 'CHANGELOG.md').read_text()
