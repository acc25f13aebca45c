"""Figures: what they say is checked by their texts, lines and bars."""

from pathlib import Path

import pytest
import torch

from gfm_jepa.cli import main
from gfm_jepa.errors import InputError
from gfm_jepa.evaluation.dashboard import PANELS, dashboard
from gfm_jepa.evaluation.plots import confusion_matrix, probe_bars, save

CSV = """effective_rank,epoch,grad_norm,lr,mean_cosine,sigreg,step,train_loss,val_knn5,val_loss
,0,,0.001,,,0,2.0,,
12.5,0,0.7,0.002,0.1,3.0,10,1.5,,
,0,,,,,10,,0.25,1.75
,1,,0.001,,,20,9.0,,
,1,,,,,20,,0.5,1.25
,1,,0.001,,,20,1.0,,
"""


def test_confusion_matrix_says_percents_of_rows():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    predictions = torch.tensor([0, 0, 0, 1, 1, 1])
    axes = confusion_matrix(labels, predictions, ['a', 'b', 'c']).axes[0]
    cells = {tuple(map(int, t.get_position())): t.get_text() for t in axes.texts}
    assert cells == {(0, 0): '75', (1, 0): '25', (1, 1): '100'}  # (predicted, true)
    assert [t.get_text() for t in axes.get_yticklabels()] == ['a (4)', 'b (2)', 'c (0)']
    assert axes.get_title() == '83.33 % of 6 images right'


def test_dashboard_reads_what_lightning_writes(tmp_path):
    (tmp_path / 'version_0').mkdir()
    (tmp_path / 'version_0/metrics.csv').write_text(CSV)
    figure = dashboard(tmp_path)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    assert set(lines) == {
        'train_loss', 'val_loss', 'lr', 'val_knn5', 'effective_rank', 'mean_cosine', 'grad_norm',
        'sigreg',
    }  # fmt: skip
    # Step 20 was logged before and after the run was broken off.
    assert lines['train_loss'].get_xydata().tolist() == [[0, 2.0], [10, 1.5], [20, 1.0]]
    assert lines['val_knn5'].get_xydata().tolist() == [[10, 25.0], [20, 50.0]]
    assert lines['train_loss'].get_linestyle() != lines['val_loss'].get_linestyle()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [title for kind, (title, *_) in PANELS.items() if kind != 'momentum']
    assert all(axes.get_ylabel().strip() for axes in figure.axes)
    assert [a.get_xlabel() for a in figure.axes[-2:]] == ['optimizer step'] * 2
    assert 'version_0 to step 20' in figure.get_suptitle()
    assert main(['dashboard', str(tmp_path), '-o', 'new/run.png']) == 0
    assert Path('new/run.png').stat().st_size > 20_000


def test_a_row_that_was_broken_off_is_no_number(tmp_path):
    path = tmp_path / 'metrics.csv'
    path.write_text('epoch,step,train_loss\n0,0,3.0\n0,10,2.0\n0,20,0.97900721.8048\n0,30,1.0\n')
    (curve,) = (line for axes in dashboard(path).axes for line in axes.get_lines())
    assert curve.get_xydata().tolist() == [[0, 3.0], [10, 2.0], [30, 1.0]]
    path.write_text('step,train_loss\n0,3.0\nnan,2.0\ninf,2.0\n', encoding='utf-8-sig')
    (curve,) = (line for axes in dashboard(path).axes for line in axes.get_lines())
    assert curve.get_xydata().tolist() == [[0, 3.0]]


def test_dashboard_without_some_columns(tmp_path):
    path = tmp_path / 'metrics.csv'
    path.write_text('epoch,lr-AdamW,step,embedding_std\n0,0.1,0,\n0,0.2,5,1\n')
    figure = dashboard(path)
    assert [a.get_title() for a in figure.axes] == [PANELS[k][0] for k in ('spread', 'lr')]
    path.write_text('epoch,step\n0,0\n')
    with pytest.raises(InputError, match='nothing to draw'):
        dashboard(path)
    with pytest.raises(InputError, match=r'There is no metrics\.csv'):
        dashboard(tmp_path / 'none')
    for content in (b'PK\0\3', b'step,loss\n1,\xff\n'):
        path.write_bytes(content)
        with pytest.raises(InputError, match='but binary'):
            dashboard(path)


def row(name, knn5, linear, dataset='d'):
    return {'name': name, 'dataset': dataset, 'knn5': knn5, 'linear': linear, 'n_train': 60,
            'n_test': 20}  # fmt: skip


def test_probe_bars_are_percents_in_the_order_of_the_rows():
    axes = probe_bars([row('mine', 0.5, 0.75), row('random init', 0.25, 0.4)]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [50, 25, 75, 40]
    assert [t.get_text() for t in axes.get_yticklabels()] == ['mine', 'random init']
    assert axes.patches[0].get_hatch() != axes.patches[2].get_hatch()
    assert axes.get_title() == 'd: 60 train, 20 test'
    two = probe_bars([row('mine', 0.5, 0.75), row('mine', 0.2, 0.3, 'e')]).axes[0]
    assert [t.get_text() for t in two.get_yticklabels()] == ['mine, d', 'mine, e']


@pytest.mark.parametrize('ending', ['png', 'pdf', 'svg'])
def test_save_makes_the_folder_and_no_global_figure(tmp_path, ending):
    import matplotlib.pyplot as plt

    path = tmp_path / 'new' / f'bars.{ending}'
    save(probe_bars([row('mine', 0.5, 0.75)]), path)
    assert path.stat().st_size > 1000
    assert plt.get_fignums() == []
