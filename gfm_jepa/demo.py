"""The whole way on made-up landscapes: make, pretrain, probe, draw. What `make demo` runs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from .data.datamodules import RastersDataModule
from .data.labels import MajorityLabels
from .data.landscapes import CLASSES
from .data.rasters import Rasters
from .data.synthetic import SyntheticLandscapes
from .errors import InputError
from .evaluation.baselines import ImageStatistics, random_init
from .evaluation.dashboard import write_dashboard
from .evaluation.features import extract_features
from .evaluation.plots import confusion_matrix, save
from .evaluation.probes import knn_probe, linear_probe, write_rows
from .modalities import LULC, resolve_all
from .models.hub import from_pretrained
from .tasks import CollapseGuard, EncoderConfig, LeJEPA, OptimizerConfig
from .views import Views

MODALITIES = ['s2_l2a', 's1', 'dem']
CHIP = 48  # pixels at 10 m; the DEM's are 16 at 30 m


def demo(output: Path, steps: int = 800, places: int = 16) -> list[dict[str, Any]]:
    """Run it all, and say where everything is.

    Args:
        output: Folder of the landscapes, the run and the figures.
        steps: Optimizer steps.
        places: Landscapes to make; a quarter is held out for the test, at least one.

    Returns:
        A row for the trained encoder, its random copy and image statistics, accuracies 0..1.
    """
    if steps < 1:
        raise InputError(f'The demo trains for {steps} steps; give 1 or more.')
    if places < 6:
        raise InputError(
            f'The demo needs 6 places or more to train, choose and test on, not {places}.'
        )
    folders = SyntheticLandscapes(output / 'landscapes', places, 288).write(progress=True)
    held_out = max(places // 4, 1)
    parts = folders[: -2 * held_out], folders[-2 * held_out : -held_out], folders[-held_out:]
    checkpoint = _pretrain(parts[0], output, steps)
    print(f'checkpoint: {checkpoint}')
    rows = _probe(checkpoint, parts, output)
    width = max(len(r['name']) for r in rows)
    print(f'\n{len(CLASSES)} land-cover classes on {rows[0]["n_test"]} chips of held-out places')
    print(f'{"":<{width}}  kNN-5 %  linear %')
    for row in rows:
        print(f'{row["name"]:<{width}}  {100 * row["knn5"]:>7.1f}  {100 * row["linear"]:>8.1f}')
    print(f'\nfigures, rows and metrics: {output}')
    return rows


def _pretrain(folders: Sequence[Path], output: Path, steps: int) -> Path:
    """LeJEPA on the training places; returns the checkpoint."""
    seed_everything(0)
    data = RastersDataModule(
        [str(f) for f in folders], MODALITIES, chip_size=CHIP, stride=24, batch_size=32
    )
    task = LeJEPA(
        MODALITIES, EncoderConfig('nano', stem='conv'), OptimizerConfig(lr=1e-3),
        Views(modality_dropout=0.1, global_scale=(0.4, 1.0), global_fraction=2 / 3),
    )  # fmt: skip
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator='auto', log_every_n_steps=min(10, steps),
        limit_val_batches=0, num_sanity_val_steps=0, gradient_clip_val=1.0,
        use_distributed_sampler=False, enable_model_summary=False, enable_checkpointing=False,
        logger=CSVLogger(output, name='', version='metrics'), callbacks=[CollapseGuard()],
    )  # fmt: skip
    trainer.fit(task, data)
    path = output / 'lejepa.ckpt'
    trainer.save_checkpoint(path, weights_only=False)  # the optimizer too, to go on from
    write_dashboard(output / 'metrics', output / 'dashboard.png')
    return path


def _probe(checkpoint: Path, parts: Sequence[Sequence[Path]], output: Path) -> list[dict[str, Any]]:
    """KNN and linear on held-out places, of the encoder, its random copy and image statistics."""
    modalities = (*resolve_all(MODALITIES), LULC)
    chips = [MajorityLabels(Rasters(p, modalities, CHIP, CHIP // 2)) for p in parts]
    encoder = from_pretrained(checkpoint)
    statistics = [ImageStatistics(name) for name in MODALITIES]

    def image_statistics(batch: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([s(batch) for s in statistics], dim=1)

    embeds: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
        'trained': encoder,
        'random init': random_init(encoder),
        'image statistics': image_statistics,
    }
    rows = []
    for name, embed in embeds.items():
        train, val, test = (extract_features(embed, c) for c in chips)
        linear = linear_probe(train, val, test)
        rows.append(
            {
                'name': name, 'dataset': 'synthetic-landscapes', 'split': 'held-out places',
                'knn5': knn_probe(train, test).accuracy, 'linear': linear.accuracy,
                'n_train': len(train), 'n_val': len(val), 'n_test': len(test), 'C': linear.C,
            }
        )  # fmt: skip
        if name == 'trained':
            figure = confusion_matrix(test.labels, linear.predictions, CLASSES)
            save(figure, output / 'confusion_matrix.png')
    write_rows(rows, output / 'probe.json')
    return rows
