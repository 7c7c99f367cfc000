"""What may import what, how large the package is, and that nothing in it is dead."""

import ast
import io
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest
import vulture

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'mmdmt'
# The package had 12,972 lines when it was made light. What is added must be worth its lines: raise
# this on purpose, with a reason in the commit.
MAX_LINES = 27_150

# From the bottom up. A part imports from its own layer, without a circle, and from those below.
LAYERS = (
    {'version', 'dependencies', 'registry', 'checks', 'files', 'finite', 'distributed'},
    {'checkpoint', 'weights', 'config', 'protocols'},
    {'models', 'pseudo', 'datasets'},
    {'evaluation', 'export', 'composition'},
    {'engine', 'classification'},
    {'tools'},
)
HEIGHTS = {part: height for height, parts in enumerate(LAYERS) for part in parts}


def sources(folder):
    """Python files of a folder; not those that an editable installation links to."""
    return [path for path in sorted(folder.rglob('*.py')) if '.mim' not in path.parts]


def imports_of(path):
    """Modules and names that a file imports from this package, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            folder = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = '.'.join([*folder, *filter(None, [node.module])])
            if module.split('.')[0] == 'mmdmt':
                yield from ((module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from ((name, '') for name in names if name.split('.')[0] == 'mmdmt')


def imported_parts():
    """For each part of the package, and the tools, which parts each file of it imports."""
    found = defaultdict(lambda: defaultdict(set))
    for path in [*sources(PACKAGE), *sources(ROOT / 'tools')]:
        inside = path.relative_to(ROOT).with_suffix('').parts
        part = inside[1] if inside[0] == 'mmdmt' else 'tools'
        for module, name in imports_of(path):
            parts = [*module.split('.')[1:], name]
            if part != '__init__' and parts[0] not in ('', part, '__version__'):
                found[part][parts[0]].add(str(path.relative_to(ROOT)))
    return found


def test_every_part_has_a_layer():
    parts = {path.relative_to(PACKAGE).with_suffix('').parts[0] for path in sources(PACKAGE)}
    assert parts - {'__init__'} <= set(HEIGHTS)


def test_imports_point_downwards():
    upwards = {
        f'{part} imports {other}': sorted(files)
        for part, others in imported_parts().items()
        for other, files in others.items()
        if HEIGHTS[other] > HEIGHTS[part]
    }
    assert upwards == {}


def test_parts_import_each_other_without_a_circle():
    parts = {part: set(others) for part, others in imported_parts().items()}
    while leaves := [part for part, others in parts.items() if not others & set(parts)]:
        for part in leaves:
            del parts[part]
    assert parts == {}


def test_segmentation_does_not_need_classification():
    assert 'classification' not in imported_parts()['engine']


def test_no_private_name_is_imported():
    private = [
        f'{path.relative_to(ROOT)}: {module}.{name}'
        for path in [*sources(PACKAGE), *sources(ROOT / 'tools'), *sources(ROOT / 'examples')]
        for module, name in imports_of(path)
        if any(
            each.startswith('_') and each != '__version__' for each in (*module.split('.'), name)
        )
    ]
    assert private == []


def test_the_package_stays_small():
    assert sum(len(path.read_text().splitlines()) for path in sources(PACKAGE)) <= MAX_LINES


def code_lines(path):
    """Number of lines that hold code: no docstrings, comments or blank lines."""
    text = path.read_text()
    documented = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


@pytest.mark.parametrize(
    ('method', 'limit'),
    [
        ('mean_teacher', 60),
        ('fixmatch', 60),
        ('cps', 60),
        ('cutmix_seg', 60),
        ('unimatch', 60),
        ('u2pl', 100),
        ('unimatch_v2', 100),
        ('augseg', 60),
        ('released_dual_teacher', 60),
        ('dual_teacher', 150),
        ('cross_teacher', 150),
    ],
)
def test_a_method_is_its_algorithm(method, limit):
    assert 10 < code_lines(PACKAGE / 'models' / 'methods' / f'{method}.py') <= limit


def test_nothing_is_dead():
    finder = vulture.Vulture()
    finder.scavenge([str(path) for path in sources(PACKAGE)])
    found = finder.get_unused_code(min_confidence=80)
    assert [item.get_report() for item in found] == []
