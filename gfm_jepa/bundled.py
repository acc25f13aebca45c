"""The weights that ship inside the package; this file imports neither torch nor timm."""

from pathlib import Path

BUNDLE = Path(__file__).parent / 'weights'


def bundled_names() -> list[str]:
    """Names of the encoders that ship with the package."""
    return sorted(p.parent.name for p in BUNDLE.glob('*/config.json'))


def bundled_folder(name: str) -> Path | None:
    """Folder of a bundled encoder, None for any other name."""
    return BUNDLE / name if name in bundled_names() else None


def bundled_sentence() -> str:
    """What is bundled, for messages."""
    names = bundled_names()
    return f'bundled are {", ".join(names)}' if names else 'no weights are bundled'
