"""LightningCLI as we use it: data modules and tasks by class, one list of modalities."""

from typing import Self

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ..data.datamodules import PretrainDataModule
from .base import PretrainTask


class GfmJepaCLI(LightningCLI):
    """Fit, validate, test, predict."""

    @classmethod
    def run(cls, words: list[str]) -> Self:
        """Parse the words of the command line and run its verb."""
        return cls(
            model_class=PretrainTask,
            datamodule_class=PretrainDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            # Our samplers shard by rank themselves, and keep batches of one shape together.
            trainer_defaults={'use_distributed_sampler': False},
            save_config_kwargs={'overwrite': True},
            auto_configure_optimizers=False,
            # Checkpoints hold plain values only, so that they load without unpickling classes.
            load_from_checkpoint_support=False,
            args=words,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Say once, under data, which modalities there are."""
        parser.link_arguments('data.init_args.modalities', 'model.init_args.modalities')
