"""The model card: what the weights are, in words and in the metadata that the Hub indexes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

import gfm_jepa

from ..errors import InputError
from .base import BaseEncoder
from .weight_files import CARD

CITATION = """@software{{gfm_jepa,
  title = {{gfm_jepa: JEPA pretraining on any rasters}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}"""
_LIMITS = (
    'The embedding knows no date and no place but that within the chip. Bands of other sensors, '
    'other units, and ground sampling distances far from those above were not tested. Made for '
    'research on land cover; not for decisions about people.'
)


@dataclass(frozen=True)
class CardFacts:
    """What only the publisher knows.

    Args:
        licence: SPDX name of the weights' licence, in the Hub's spelling; that of the card of what
            is published, or ``apache-2.0``, where nothing is said.
        data: What it was trained on, with the licence of each.
        datasets: The same as ids of the Hub, for its index.
        compute: Hardware and time.
        limits: What it should not be used for.
        rows: Of `gfm-jepa probe --output`.
    """

    licence: str = ''
    data: Sequence[str] = ()
    datasets: Sequence[str] = ()
    compute: str = ''
    limits: str = _LIMITS
    rows: Sequence[Mapping[str, Any]] = field(default=())


def model_card(encoder: BaseEncoder, repo_id: str, facts: CardFacts, run: Mapping[str, Any]) -> str:
    """Write the card.

    Args:
        encoder: Whose card it is.
        repo_id: Under which name it will be found.
        facts: What only the publisher knows.
        run: Method, steps and settings of the run; empty if they are not known.
    """
    metadata: dict[str, Any] = {
        'license': facts.licence or 'apache-2.0',
        'library_name': 'gfm_jepa',
        'pipeline_tag': 'image-feature-extraction',
        'tags': ['remote-sensing', 'earth-observation', 'self-supervised-learning', 'jepa',
                 'torchgeo', 'timm', *encoder.modalities],
    }  # fmt: skip
    if facts.datasets:
        metadata['datasets'] = list(facts.datasets)
    parameters = sum(p.numel() for p in encoder.parameters())
    name = repo_id.rpartition('/')[2]
    sections = {
        f'# {name}': f'An encoder of rasters with {parameters:,} parameters and embeddings of '
        f'width {encoder.num_features}, pretrained without labels by gfm_jepa '
        f'{gfm_jepa.__version__}. Raw physical units go in; statistics are inside; NaN means "not '
        f'there".',
        '## How to load': _loading(encoder, repo_id),
        '## Modalities': _modalities(encoder),
        '## Data': '\n'.join(f'- {d}' for d in facts.data) or 'Not stated.',
        '## Method and compute': _method(run, facts.compute),
        '## Frozen features': _probes(facts.rows, name),
        '## Limits': facts.limits,
        '## Citation': f'```bibtex\n{CITATION.format(version=gfm_jepa.__version__)}\n```',
    }
    body = '\n\n'.join(f'{title}\n\n{text}' for title, text in sections.items())
    return f'---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n{body}\n'


def card_metadata(folder: Path) -> dict[str, Any]:
    """Read the metadata at the head of a card; empty if there is none."""
    path = folder / CARD
    parts = path.read_text(errors='replace').split('---\n', 2) if path.is_file() else []
    try:
        content = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except yaml.YAMLError as error:
        raise InputError(
            f'The head of {path} is not YAML ({str(error).splitlines()[0]}); mend it, since it '
            f'states the licence.'
        ) from error
    return content if isinstance(content, dict) else {}


def inherited_facts(facts: CardFacts, folder: Path) -> CardFacts:
    """Fill in licence and data that are not stated from the card of what is published, if any."""
    path = folder / CARD
    if not path.is_file():
        return facts
    data = re.search(r'^## Data\n\n((?:- .*\n)+)', path.read_text(errors='replace'), re.MULTILINE)
    return replace(
        facts,
        licence=facts.licence or str(card_metadata(folder).get('license', '')),
        data=facts.data or (data[1].removeprefix('- ').strip().split('\n- ') if data else ()),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _loading(encoder: BaseEncoder, repo_id: str) -> str:
    name, modality = next(iter(encoder.modalities.items()))
    step = encoder.patch_sizes[name]
    return (
        f'```python\nimport gfm_jepa\n\nencoder = gfm_jepa.from_pretrained({repo_id!r})\n'
        f'embedding = encoder({{{name!r}: chips}})  # (B, {len(modality.bands)}, H, W) to '
        f'(B, {encoder.num_features}); H and W multiples of {step}\n'
        f'gfm_jepa.verify_golden(encoder, {repo_id!r})  # the same numbers as where it was made\n'
        f'```'
    )


def _modalities(encoder: BaseEncoder) -> str:
    rows = [
        [m.name, ' '.join(m.bands), f'{m.gsd:g} m', m.unit, m.source or 'not stated']
        for m in encoder.modalities.values()
    ]
    return table(['modality', 'bands', 'gsd', 'unit', 'statistics from'], rows)


def _method(run: Mapping[str, Any], compute: str) -> str:
    lines = [f'Compute: {compute or "not stated"}.']
    if run:
        lines += ['', table(['setting', 'value'], [[k, str(v)] for k, v in run.items()])]
    return '\n'.join(lines)


def _probes(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    if not rows:
        return 'Not measured.'
    # The first row is of the weights, under the path that they were read from.
    titles = [name, *(str(r['name']) for r in rows[1:])]
    cells = [
        [title, str(r['dataset']), str(r['split']), str(r['features']),
         f'{100 * r["knn5"]:.2f}', f'{100 * r["linear"]:.2f}',
         f'{r["n_train"]} / {r["n_val"]} / {r["n_test"]}']
        for title, r in zip(titles, rows, strict=True)
    ]  # fmt: skip
    head = ['name', 'dataset', 'split', 'features', 'kNN-5 %', 'linear %', 'images']
    return (
        f'{table(head, cells)}\n\nProtocol: `gfm-jepa probe`; frozen features, images to fit / to '
        f'choose C of the logistic regression / to test; the encoder is not fine-tuned.'
    )
