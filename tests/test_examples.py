"""The scripts of examples/ run as they stand, and the notebooks are the scripts."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

EXAMPLES = Path(__file__).parent.parent / 'examples'
SCRIPTS = sorted(EXAMPLES.glob('*.py'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.stem)
def test_the_script_runs(script, tmp_path):
    (tmp_path / 'configs').symlink_to(EXAMPLES.parent / 'configs')
    environment = {**os.environ, 'STEPS': '2', 'MPLBACKEND': 'Agg'}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(p.is_file() for p in (tmp_path / 'example').rglob('*'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.stem)
def test_the_notebook_is_the_script(script):
    """After a change: jupytext --to ipynb examples/*.py."""
    notebook = jupytext.read(script.with_suffix('.ipynb'))
    cells = [(c.cell_type, c.source) for c in jupytext.read(script).cells]
    assert [(c.cell_type, c.source) for c in notebook.cells] == cells
    assert {c for c, _ in cells} == {'code', 'markdown'}
