"""The documentation site builds: what `mkdocs build --strict` refuses, without mkdocs."""

import re
from importlib import import_module
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / 'docs').glob('*.md'))


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav']
    named = [page for item in nav for value in item.values()
             for page in (value if isinstance(value, list) else [value])]  # fmt: skip
    assert sorted(named) == [p.name for p in PAGES]


def test_links_stay_within_the_site():
    links = [(p, link) for p in PAGES for link in re.findall(r'\]\(([^)#]+)', p.read_text())]
    assert links
    for page, link in links:
        assert link.startswith('https://') or (page.parent / link).resolve() in PAGES, (page, link)


def test_what_the_api_names_is_there():
    names = re.findall(r'^::: (\S+)$', (ROOT / 'docs/api.md').read_text(), re.MULTILINE)
    assert len(names) > 20
    for name in names:
        module, _, last = name.rpartition('.')
        assert hasattr(import_module(module), last) or import_module(name), name
