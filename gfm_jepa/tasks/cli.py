"""LightningCLI as we use it: data modules and tasks by class, one list of modalities."""

import re
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from jsonargparse import ArgumentError as JsonArgumentError
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from ..bundled import bundled_folder
from ..data.datamodules import PretrainDataModule
from ..data.raster_files import require_half_of_bands
from ..data.rasters import Rasters
from ..errors import InputError
from ..models.hub import from_pretrained, load_checkpoint
from .base import PretrainTask
from .callbacks import NaNGuard
from .pixelwise import PixelTask
from .runs import (
    AtomicCheckpointIO,
    DrawDashboard,
    Preemption,
    SaveTheEnd,
    default_loggers,
    newest_checkpoint,
)
from .supervised import SupervisedTask

# What jsonargparse says besides what is wrong.
_NOISE = ('Subtypes', 'Errors:', 'Given value', "- Expected a <class 'NoneType'>", 'Does not valid')

_NO_CLASS = re.compile(r'key "(model|data)":.*dot import path string: (\S+)', re.DOTALL)
_CLASSES = {
    'model': 'gfm_jepa.tasks, such as LeJEPA', 'data': 'gfm_jepa.data, such as RastersDataModule',
}  # fmt: skip

_WITHOUT_PATH = ('auto', 'last', 'best', 'hpc', 'registry')  # checkpoints by what they are


class SaveConfig(SaveConfigCallback):
    """Write config.yaml as soon as training begins.

    Not before: a run that goes on keeps what it was made with until its checkpoint has fitted, and
    a test keeps it for good.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        super().setup(trainer, pl_module, 'fit')


class GfmJepaCLI(LightningCLI):
    """Fit, validate, test, predict.

    Whatever can be wrong with the input is looked at before the first file is written.
    """

    @classmethod
    def run(cls, words: list[str]) -> Self:
        """Parse the words of the command line and run its verb.

        Raises:
            InputError: In one sentence, whatever the parser or our own classes refuse.
        """
        try:
            return cls(
                model_class=PretrainTask,
                datamodule_class=PretrainDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                # Our samplers shard by rank, and keep batches of one shape together.
                trainer_defaults={'use_distributed_sampler': False},
                save_config_callback=SaveConfig,
                save_config_kwargs={'overwrite': True},
                auto_configure_optimizers=False,
                # Checkpoints hold plain values only, so that they load without unpickling.
                load_from_checkpoint_support=False,
                args=words,
            )
        except (
            ArgumentError, JsonArgumentError, ValueError, TypeError, MisconfigurationException
        ) as error:  # fmt: skip
            raise _as_input_error(error) from error

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Let errors be raised, to be told in one sentence."""
        return super().init_parser(**kwargs, exit_on_error=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning does, without its warning that the words come from us."""
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Say once, under data, which modalities and classes there are."""
        parser.link_arguments(
            'data.modality_specs', 'model.init_args.modalities', apply_on='instantiate'
        )
        # Tasks without classes have no such argument, and the link does nothing then.
        parser.link_arguments('data.class_names', 'model.init_args.classes', apply_on='instantiate')

    def before_instantiate_classes(self) -> None:
        """Look for weights and a checkpoint before data are read, which may take a while.

        Raises:
            InputError: If they are not there.
        """
        weights = self._get(self.config, 'model').get('init_args.encoder.weights')
        if weights and not (Path(weights).exists() or bundled_folder(weights)):
            from_pretrained(weights)
        path = self._get(self.config, 'ckpt_path')
        if path and path not in _WITHOUT_PATH and not Path(path).is_file():
            raise InputError(
                f'There is no checkpoint {path}; name a .ckpt file of `gfm-jepa fit`, or take '
                f'--ckpt_path auto, the newest of this run.'
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has unless it is told otherwise: loggers, guards, whole checkpoints.

        Raises:
            InputError: If ``--ckpt_path last``, or any but ``fit`` with ``auto``, finds none.
        """
        settings = self._get(self.config_init, 'trainer')
        root, name = Path(settings['default_root_dir'] or 'runs'), self._run_name()
        resumed = self._find_checkpoint(settings, root / name)
        if settings['logger'] in (None, True):
            kwargs['logger'] = default_loggers(root, name, resumed)
        plugins = as_list(settings['plugins'])
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            plugins.append(AtomicCheckpointIO())
        callbacks = as_list(settings['callbacks'])
        if self.subcommand == 'fit':
            for kind in (NaNGuard, Preemption, SaveTheEnd, DrawDashboard):
                if not any(isinstance(c, kind) for c in callbacks):
                    callbacks.append(kind())
        for strategy in (settings['strategy'], kwargs.get('strategy')):
            if isinstance(strategy, ModelParallelStrategy):
                # A checkpoint in pieces is a folder, from which nothing of ours loads or resumes.
                strategy._save_distributed_checkpoint = False
        if settings['sync_batchnorm']:
            raise InputError(
                'trainer.sync_batchnorm is not needed: batch norms span all ranks anyway; leave it '
                'out.'
            )
        if spans_processes(settings) and self._may_leave_out():
            kwargs['strategy'] = 'ddp_find_unused_parameters_true'
        return super().instantiate_trainer(plugins=plugins, callbacks=callbacks, **kwargs)

    def _may_leave_out(self) -> bool:
        """Whether a step may use only part of the encoder.

        A batch may lack a modality, and trained weights may have a readout, which few methods heed.
        """
        config = getattr(self.model, 'encoder_config', None)
        return len(self.datamodule.modalities) > 1 or bool(config and config.weights)

    def _run_name(self) -> str:
        """What the run is called: as its config file, or the run that wrote it; or its method."""
        paths = [Path(str(file)).absolute() for file in self._get(self.config, 'config') or []]
        stems = [
            p.parent.parent.name
            if p.stem == 'config' and re.fullmatch(r'version_\d+', p.parent.name)
            else p.stem
            for p in paths
        ]
        return next((s for s in stems if s != 'config'), type(self.model).__name__.lower())

    def _find_checkpoint(self, settings: dict[str, Any], folder: Path) -> Path | None:
        """What to go on from; ``auto`` and ``last`` become the newest checkpoint of this run."""
        wanted = self._get(self.config_init, 'ckpt_path')
        if wanted not in ('auto', 'last'):
            return Path(wanted) if wanted else None
        for logger in as_list(settings['logger']):
            if isinstance(logger, Logger):
                folder = Path(logger.save_dir or '.') / str(logger.name or '')
                break
            if logger is False:
                folder = Path(settings['default_root_dir'] or '.') / 'checkpoints'
        for callback in as_list(settings['callbacks']):
            if isinstance(callback, ModelCheckpoint) and callback.dirpath:
                folder = Path(callback.dirpath)
        found = newest_checkpoint(folder)
        if found is None and self.subcommand != 'fit':
            raise InputError(
                f'There is no checkpoint in {folder} to {self.subcommand}; name one with '
                f'--ckpt_path, or give the words of the run that wrote it.'
            )
        if found is None and wanted == 'last':
            raise InputError(
                f'There is no checkpoint in {folder} to go on from; start without --ckpt_path, or '
                f'take --ckpt_path auto, which begins anew where there is none.'
            )
        self.config_init[self.subcommand]['ckpt_path'] = str(found) if found else None
        return found

    def before_fit(self) -> None:
        """Look at the data, the checkpoint and the length of the run before anything is written."""
        if self.trainer.max_steps == -1 and self.trainer.max_epochs in (None, -1):
            raise InputError(
                'The schedules need to know the length of the run; set trainer.max_steps or '
                'trainer.max_epochs (trainer.max_time may stop it earlier).'
            )
        self._look('fit', 'train')

    def after_fit(self) -> None:
        """Say where the weights are."""
        for callback in self.trainer.checkpoint_callbacks:
            path = getattr(callback, 'last_model_path', '')
            if path:
                verb = 'probe'
                if isinstance(self.model, SupervisedTask):
                    verb = 'segment' if isinstance(self.model, PixelTask) else 'classify'
                rank_zero_info(f'checkpoint: {path}; use it with `gfm-jepa {verb} {path} ...`')

    def before_validate(self) -> None:
        """Look before anything is written."""
        self._look('validate', 'val')

    def before_test(self) -> None:
        """Look before anything is written."""
        self._look('test', 'test')

    def before_predict(self) -> None:
        """Look before anything is written, and whether something will be.

        Raises:
            InputError: If no callback writes what is predicted, or nothing was trained.
        """
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(c, BasePredictionWriter) for c in callbacks):
            raise InputError(
                'Nothing would write what is predicted; add --trainer.callbacks='
                'gfm_jepa.tasks.WriteEmbeddings --trainer.callbacks.output=FOLDER.zarr, or take '
                '`gfm-jepa embed`.'
            )
        encoder = self.model.encoder_config
        labelled = isinstance(self.model, SupervisedTask)  # a head is in no weights
        trained = (encoder.weights or encoder.pretrained) and not labelled
        if not (trained or self._get(self.config_init, 'ckpt_path')):
            raise InputError(
                'Predictions would be those of random weights; name a checkpoint with --ckpt_path'
                + ('.' if labelled else ', or weights with --model.encoder.weights.')
            )
        self._look('predict', 'predict')

    def _look(self, stage: str, part: str) -> None:
        """Set the data up, put one sample past the encoder, and open the checkpoint."""
        path = self._get(self.config_init, 'ckpt_path')
        named = path and path not in _WITHOUT_PATH
        if named and 'pytorch-lightning_version' not in load_checkpoint(Path(path)):
            raise InputError(
                f'{path} holds weights, but no state of a run; give them as '
                f'--model.encoder.weights, or name a checkpoint of `gfm-jepa fit`.'
            )
        self.datamodule.setup(stage)
        name = f'{part}_dataloader'
        # A data module may lack the method, or return a list of no loaders.
        loader = is_overridden(name, self.datamodule) and getattr(self.datamodule, name)()
        dataset = getattr(loader, 'dataset', None)
        if dataset is None:
            raise InputError(
                f'{type(self.datamodule).__name__} has no part to {stage}; take another data '
                f'module, or give this one such a part, if it takes one.'
            )
        if self.model.encoder.needs_half and isinstance(dataset, Rasters):
            require_half_of_bands(c.file for c in dataset.file_chips)
        sample = dataset[0]
        batch = {k: v[None] if isinstance(v, Tensor) else v for k, v in sample.items()}
        self.model.encoder.check(self.model.one_date(batch, 0))

    def _parse_ckpt_path(self) -> None:
        """Leave the config alone: what it says holds, not what a checkpoint was made with."""


def spans_processes(settings: Mapping[str, Any]) -> bool:
    """Whether Lightning will start DDP: asked for, or by itself on several devices."""
    devices = settings['devices']
    if settings['strategy'] != 'auto':
        return bool(settings['strategy'] == 'ddp')
    if devices in ('auto', -1, '-1'):
        on_gpus = settings['accelerator'] in ('auto', 'gpu', 'cuda')
        devices = torch.cuda.device_count() if on_gpus else 1
    elif isinstance(devices, str):
        devices = devices.split(',') if ',' in devices else int(devices)
    count = len(devices) if isinstance(devices, list) else devices
    return bool(count > 1 or settings['num_nodes'] > 1)


def as_list(value: Any) -> list[Any]:
    """A setting that may be nothing, one thing or several."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _as_input_error(error: BaseException) -> BaseException:
    """The sentence of our own that lies below an error, or the parser's in one line."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, InputError):
            return InputError(str(below))
        below = below.__cause__ or below.__context__
    if isinstance(error, MisconfigurationException):
        return InputError(f'{" ".join(str(error).split())[:300]} Change the options of trainer.')
    if not isinstance(error, ArgumentError | JsonArgumentError):
        return error
    if unknown := _NO_CLASS.search(str(error)):
        key, name = unknown.groups()
        return InputError(
            f'{key}={name} names no class; take one of {_CLASSES[key]}, or a whole path.'
        )
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(_NOISE)]
    return InputError(' '.join(kept)[:400])
