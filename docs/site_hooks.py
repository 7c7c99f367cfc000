"""What MkDocs is told beyond mkdocs.yml: which files are pages, and the pages of the API.

The site has the folders of the repository (``README.md`` is its first page, guides are in
``docs/``, methods' configs in ``configs/``), so that a link that works in the repository works in
the site. Files of the repository that a page links to are copied.
"""

import ast
import re
from pathlib import Path
from typing import Dict, Iterator, List

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'docs/*.md', 'configs/*/README.md']
LINK = re.compile(r'\]\(([^)\s#]+)')
ROLE = re.compile(r':\w+:<code>[~.]*([^<]+)</code>')
"""``:class:`.UniMatch``` of a docstring, after it has become HTML."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages from the whole repository, and write those of the API."""
    for file in list(files.documentation_pages()):
        files.remove(file)
    pages = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))
    for path in pages:
        files.append(_copied(config, path))
    for path in sorted(linked_files(pages) - set(pages)):
        if files.get_file_from_path(str(path.relative_to(ROOT))) is None:
            files.append(_copied(config, path))
    reference = list(modules())
    for name in reference:
        text = f'# `{name}`\n\n::: {name}\n    options:\n      show_root_heading: false\n'
        files.append(File.generated(config, f'api/{name}.md', content=text))
    configs = [file.relative_to(ROOT).as_posix() for file in pages if 'configs' in file.parts]
    config.nav.append({'Configs': configs})
    config.nav.append({'API': api_nav(reference)})
    return files


def api_nav(reference: List[str]) -> list:
    """Pages of the API, those of a package together, without what all of a package begin with."""
    packages: Dict[str, list] = {}
    for name in reference:
        package, _, rest = name.removeprefix('mmdmt.').partition('.')
        packages.setdefault(package, []).append({rest or package: f'api/{name}.md'})
    return [{package: pages} if len(pages) > 1 else pages[0] for package, pages in packages.items()]


def _copied(config: MkDocsConfig, path: Path) -> File:
    name = path.relative_to(ROOT).as_posix()
    name = 'index.md' if name == 'README.md' else name
    return File.generated(config, name, abs_src_path=str(path))


def linked_files(pages: List[Path]) -> set:
    """Files of the repository that pages link to."""
    found = set()
    for page in pages:
        for target in LINK.findall(page.read_text(encoding='utf-8')):
            path = (page.parent / target).resolve()
            if ':' not in target and path.is_file() and ROOT in path.parents:
                found.add(path)
    return found


def modules() -> Iterator[str]:
    """Modules that define a public class or function, by their names."""
    for path in sorted((ROOT / 'mmdmt').rglob('*.py')):
        if '.mim' in path.parts or path.name == '__init__.py':
            continue
        body = ast.parse(path.read_text(encoding='utf-8')).body
        defined = (ast.ClassDef, ast.FunctionDef)
        if any(isinstance(node, defined) and not node.name.startswith('_') for node in body):
            yield '.'.join(path.relative_to(ROOT).with_suffix('').parts)


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Links to the repository's first page lead to the site's."""
    up = '../' * page.file.src_uri.count('/')
    return re.sub(rf'\]\({re.escape(up)}README\.md', f']({up}index.md', markdown)


def on_page_content(html: str, page, config: MkDocsConfig, files: Files) -> str:
    """Write roles of docstrings as code."""
    return ROLE.sub(r'<code>\1</code>', html)
