"""The scripts of examples/ run as they stand, and the notebooks are the scripts."""

import os
import runpy
import warnings
from pathlib import Path

import jupytext
import pytest
from forked import Forked

EXAMPLES = Path(__file__).parent.parent / 'examples'
SCRIPTS = sorted(EXAMPLES.glob('*.py'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.stem)
def test_the_script_runs(script, tmp_path):
    (tmp_path / 'configs').symlink_to(EXAMPLES.parent / 'configs')

    def run():
        os.environ |= {'STEPS': '2', 'MPLBACKEND': 'Agg'}
        warnings.resetwarnings()
        runpy.run_path(str(script), run_name='__main__')
        return 0

    printed, status = Forked(run).communicate()
    assert status == 0, printed[-2000:]
    assert any(p.is_file() for p in (tmp_path / 'example').rglob('*'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.stem)
def test_the_notebook_is_the_script(script):
    """After a change: jupytext --to ipynb examples/*.py."""
    notebook = jupytext.read(script.with_suffix('.ipynb'))
    cells = [(c.cell_type, c.source) for c in jupytext.read(script).cells]
    assert [(c.cell_type, c.source) for c in notebook.cells] == cells
    assert {c for c, _ in cells} == {'code', 'markdown'}
