"""Imports go one way, and the top level is light."""

import ast
import subprocess
import sys
from pathlib import Path

import gfm_jepa

PACKAGE = Path(gfm_jepa.__file__).parent
BASE = {'errors', 'output_paths', 'bundled', 'modalities', 'masks', 'losses', 'views',
        'photo_views', 'metrics'}  # fmt: skip
ALLOWED = {
    'errors': set(),
    'output_paths': {'errors'},
    'bundled': set(),
    'modalities': {'errors'},
    'masks': {'errors'},
    'losses': set(),
    'metrics': set(),
    'views': {'errors', 'modalities'},
    'photo_views': {'errors', 'modalities', 'views'},
    'models': BASE,
    'data': BASE,
    'tasks': BASE | {'models', 'data', 'evaluation'},  # to draw a run at its end
    'evaluation': BASE | {'models', 'data'},
    'inference': BASE | {'models', 'data'},
}


def imported_parts(file: Path) -> set[str]:
    """Which parts of the package a file imports."""
    depth = len(file.relative_to(PACKAGE).parts)
    parts = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [a.name for a in node.names]
            parts |= {name.split('.')[0] for name in names} - {'__version__'}
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('gfm_jepa.'):
            parts.add(str(node.module).split('.')[1])
    return parts


def test_imports_go_one_way():
    checked = 0
    for file in PACKAGE.rglob('*.py'):
        part = file.relative_to(PACKAGE).parts[0].removesuffix('.py')
        if part in ALLOWED:
            assert imported_parts(file) <= ALLOWED[part] | {part}, file
            checked += 1
    assert checked > 15


def test_top_level_import_is_light():
    code = 'import sys, gfm_jepa; print(sorted({"torch", "timm", "rasterio"} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_loading_weights_waits_for_no_library_but_torch():
    """Each of these takes longer to import than the bundled weights take to load."""
    code = (
        "import sys, gfm_jepa; gfm_jepa.from_pretrained('gfm-jepa-nano');"
        "print(sorted({'timm', 'torchvision', 'lightning', 'torch._dynamo', 'rasterio'}"
        ' & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_the_package_runs_as_a_module():
    command = [sys.executable, '-m', 'gfm_jepa', 'no-such-verb']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'no-such-verb' in done.stderr


def test_public_names_resolve():
    for name in gfm_jepa.__all__:
        assert getattr(gfm_jepa, name) is not None
