"""Our names in timm (``gfm_jepa_nano``, ...), without importing timm or torch.

timm finds models by a registry that fills as modules are imported, and has no entry point for other
packages. ``import gfm_jepa`` therefore registers light functions: at once if timm is imported, else
at the moment when it is, through one finder that steps aside afterwards. What builds the
models is imported when a model is made.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .bundled import bundled_folder

SIZES = ('nano', 'tiny', 'small', 'base', 'large')


def gfm_jepa_nano(pretrained: bool = False, **kwargs: Any) -> Any:
    """Width 128, 4 blocks; see `gfm_jepa.models.timm_models.create`."""
    return _create('nano', pretrained, kwargs)


def gfm_jepa_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """Width 192, 6 blocks; see `gfm_jepa.models.timm_models.create`."""
    return _create('tiny', pretrained, kwargs)


def gfm_jepa_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """Width 384, 12 blocks; see `gfm_jepa.models.timm_models.create`."""
    return _create('small', pretrained, kwargs)


def gfm_jepa_base(pretrained: bool = False, **kwargs: Any) -> Any:
    """Width 768, 12 blocks; see `gfm_jepa.models.timm_models.create`."""
    return _create('base', pretrained, kwargs)


def gfm_jepa_large(pretrained: bool = False, **kwargs: Any) -> Any:
    """Width 1024, 24 blocks; see `gfm_jepa.models.timm_models.create`."""
    return _create('large', pretrained, kwargs)


def gfm_jepa_nano_pyramid(pretrained: bool = False, **kwargs: Any) -> Any:
    """Feature maps of five scales; see `gfm_jepa.models.pyramid.create_pyramid`."""
    return _create_pyramid('nano', pretrained, kwargs)


def gfm_jepa_tiny_pyramid(pretrained: bool = False, **kwargs: Any) -> Any:
    """Feature maps of five scales; see `gfm_jepa.models.pyramid.create_pyramid`."""
    return _create_pyramid('tiny', pretrained, kwargs)


def gfm_jepa_small_pyramid(pretrained: bool = False, **kwargs: Any) -> Any:
    """Feature maps of five scales; see `gfm_jepa.models.pyramid.create_pyramid`."""
    return _create_pyramid('small', pretrained, kwargs)


def gfm_jepa_base_pyramid(pretrained: bool = False, **kwargs: Any) -> Any:
    """Feature maps of five scales; see `gfm_jepa.models.pyramid.create_pyramid`."""
    return _create_pyramid('base', pretrained, kwargs)


def gfm_jepa_large_pyramid(pretrained: bool = False, **kwargs: Any) -> Any:
    """Feature maps of five scales; see `gfm_jepa.models.pyramid.create_pyramid`."""
    return _create_pyramid('large', pretrained, kwargs)


def _create(preset: str, pretrained: bool, options: dict[str, Any]) -> Any:
    from .models.timm_models import create

    return create(preset, pretrained, **options)


def _create_pyramid(preset: str, pretrained: bool, options: dict[str, Any]) -> Any:
    from .models.pyramid import create_pyramid

    return create_pyramid(preset, pretrained, **options)


# timm reads this name from the module of the functions above.
default_cfgs: dict[str, Any] = {}


def register_when_timm_is_there() -> None:
    """Register now, or as soon as timm is imported."""
    if 'timm.models' in sys.modules:
        _register()
    elif not any(isinstance(f, _TimmFinder) for f in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


def _register() -> None:
    from timm.models import generate_default_cfgs, is_model, register_model

    cfgs = {}
    names = [(f'gfm_jepa_{size}{end}', size) for size in SIZES for end in ('', '_pyramid')]
    for name, size in names:
        folder = bundled_folder(f'gfm-jepa-{size}')
        cfgs[name] = {
            # So that timm lists which names have weights; we read the file ourselves.
            'file': str(folder / 'model.safetensors') if folder else None,
            # Normalisation is inside the models, in raw units: timm's transforms, which divide
            # 8-bit images by 255 first, give them back.
            'mean': (0.0, 0.0, 0.0), 'std': (1 / 255, 1 / 255, 1 / 255),
            'input_size': (3, 64, 64), 'num_classes': 0, 'classifier': 'head',
        }  # fmt: skip
    default_cfgs.update(generate_default_cfgs(cfgs))
    for name, _ in names:
        if not is_model(name):
            register_model(globals()[name])


class _TimmFinder(MetaPathFinder):
    """Finds timm as the others do, and registers our names once it is imported."""

    _asks_others = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for timm alone, as often as somebody asks whether it is there."""
        if name != 'timm' or self._asks_others:
            return None
        self._asks_others = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asks_others = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
