"""Publish weights: a folder that says all about itself and nothing about its maker's machine."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from ..bundled import bundled_folder
from ..errors import InputError
from .base import BaseEncoder
from .golden import verify_golden, write_golden
from .hub import from_pretrained, is_matrix, load_checkpoint, write_encoder
from .model_card import CardFacts, inherited_facts, model_card
from .weight_files import CARD, CONFIG, read_json, refuse_foreign, replace_folder, weights_hash

# What must not leave the machine: keys of the usual services, and absolute paths.
_PRIVATE = {
    'a token': re.compile(
        r'hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}'
        r'|A[KS]IA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,}|api_org_\w{20,}|npm_\w{20,}|AIza[\w-]{30,}'
        r'|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY'
        r'|://[^\s/@"]+:[^\s/@"]+@'
    ),
    'a path of a machine': re.compile(
        r'(?<![\w/.~])/\w[\w.-]*/[\w.][^\s"|]*|(?<![\w/.~:])//\w[\w.-]*/\w[^\s"|]*'
        r'|\\\\\w[^\s"|]*|\b[A-Za-z]:[\\/]+\w[^\s"|]*|~\w*/[\w.]|file://'
    ),
}  # fmt: skip


def publish(
    source: str | os.PathLike[str],
    repo_id: str,
    facts: CardFacts,
    dry_run: Path | None = None,
    tag: str | None = None,
    private: bool = False,
    half: bool = False,
) -> str:
    """Write a release of an encoder, and upload it.

    Args:
        source: A checkpoint of `gfm-jepa fit`, or anything else that `from_pretrained` takes.
        repo_id: Such as ``org/name``.
        facts: For the model card.
        dry_run: Folder to write instead of uploading anything.
        tag: Of the new commit, such as ``v1``.
        private: Make a new repository private.
        half: Round matrices to float16 and store them so: half the size.

    Returns:
        Where it is: the folder, or the address on the Hub and the commit.

    Raises:
        InputError: If the source is no encoder, the rows of the card are of other weights,
            something private would leave the machine, or the Hub refuses.
    """
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo_id):
        raise InputError(f'{repo_id!r} should be a name on the Hub, such as org/name.')
    encoder = from_pretrained(source)
    require_rows_of(encoder, facts.rows)  # before the weights are rounded
    facts = inherited_facts(facts, _folder_of_card(source, encoder.revision, facts.licence))
    run = describe_run(Path(source)) if Path(source).is_file() else {}
    parent = None
    if dry_run is not None:
        refuse_foreign(dry_run, (CONFIG, CARD))
        # On the same file system, so that the files can be moved.
        parent = dry_run if dry_run.is_dir() else dry_run.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        release = Path(temporary) / 'release'
        release.mkdir()
        write_release(encoder, release, model_card(encoder, repo_id, facts, run), half)
        if dry_run is None:
            return _upload(release, repo_id, tag, private)
        replace_folder(release, dry_run)
        return str(dry_run)


def _folder_of_card(source: str | os.PathLike[str], commit: str | None, licence: str) -> Path:
    """Where the card of what is published lies, if anywhere; of a commit of the Hub, its cache."""
    folder = bundled_folder(str(source)) or Path(source)
    if commit is None:
        return folder
    from .downloads import download_file

    try:
        return download_file(str(source), CARD, commit).parent
    except InputError as error:
        if licence:
            return folder
        raise InputError(
            f'The licence of {source} is not known ({error}); say it with --license.'
        ) from error


def write_release(encoder: BaseEncoder, folder: Path, card: str, half: bool = False) -> None:
    """Write the four files, and see whether they load to the same embeddings.

    Args:
        encoder: What to write.
        folder: Where to.
        card: Its model card.
        half: Round matrices to float16, in place, and store them so.

    Raises:
        InputError: If they hold something private, or do not load.
    """
    if half:  # the golden embeddings are those of the rounded weights
        with torch.no_grad():
            for value in filter(is_matrix, encoder.state_dict().values()):
                value.copy_(value.half())
    write_encoder(encoder, folder, half)
    (folder / CARD).write_text(card)
    write_golden(encoder, folder)
    for path in sorted(folder.iterdir()):
        refuse_private(path)
    verify_golden(from_pretrained(folder), folder)


def refuse_private(path: Path) -> None:
    """Look for tokens and paths of a machine in a text, or in the header of a safetensors file.

    Raises:
        InputError: Naming the file and what was found.
    """
    with path.open('rb') as file:
        if path.suffix == '.safetensors':
            length = int.from_bytes(file.read(8), 'little')
            text = file.read(length).decode(errors='replace')
        else:
            text = file.read().decode(errors='replace')
    if path.suffix == '.json':  # its escapes would hide what stands in its strings
        text = '\n'.join(_strings(json.loads(text)))
    for kind, pattern in _PRIVATE.items():
        if found := pattern.search(text):
            shown = found[0][:6] + '...' if kind == 'a token' else found[0][:80]
            raise InputError(
                f'{path.name} would hold {kind} ({shown}); write the encoder with save_pretrained, '
                f'change its config.json or the options of publish, and publish that folder.'
            )


def _strings(content: Any) -> Iterator[str]:
    """All strings in the content of a JSON file."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from (key, *_strings(value))
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)


def describe_run(path: Path) -> dict[str, Any]:
    """Method, steps and settings out of a checkpoint: numbers and short words, never paths."""
    checkpoint = load_checkpoint(path)
    epoch, stated = checkpoint.get('epoch', -1), checkpoint.get('hyper_parameters')
    run: dict[str, Any] = {
        'method': checkpoint.get('task', 'not stated'),
        'optimizer steps': checkpoint.get('global_step', 'not stated'),
        'epochs begun': epoch + 1 if isinstance(epoch, int) else 'not stated',
        'seed': checkpoint.get('seed'),
        'weights of': checkpoint['encoder_prefix'].rstrip('.'),
    }
    left_out = re.compile('modalities|modality_specs|_.*')
    settings = stated if isinstance(stated, dict) else {}
    told = {k: v for k, v in settings.items() if isinstance(k, str) and not left_out.fullmatch(k)}
    return run | {k: v for k, v in _flat(told).items() if _is_plain(v)}


def read_rows(path: Path) -> Sequence[Mapping[str, Any]]:
    """Read the rows of `gfm-jepa probe --output`.

    Raises:
        InputError: If the file holds something else.
    """
    if not path.is_file():
        raise InputError(f'There is no {path}; `gfm-jepa probe ... --output {path}` writes it.')
    try:
        rows = read_json(path)
    except InputError as error:
        raise InputError(
            f'{path} is not JSON; give the rows that `gfm-jepa probe --output` writes.'
        ) from error
    wanted = {'name', 'dataset', 'split', 'features', 'knn5', 'linear', 'n_train', 'n_val',
              'n_test'}  # fmt: skip
    if not isinstance(rows, list) or not all(
        isinstance(r, dict) and wanted <= set(r)
        and all(isinstance(r[key], int | float) for key in ('knn5', 'linear')) for r in rows
    ):  # fmt: skip
        raise InputError(f'{path} should hold the rows that `gfm-jepa probe --output` writes.')
    return rows


def require_rows_of(encoder: BaseEncoder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows that other weights were measured for; those that do not say which are taken.

    Raises:
        InputError: If the first row, which is of the weights, states another hash.
    """
    stated = rows[0].get('weights_hash') if rows else None
    if stated and stated != (own := weights_hash(encoder)):
        raise InputError(
            f'The rows are of weights with the hash {stated} ({rows[0]["name"]}), but those to be '
            f'published have {own}; run `gfm-jepa probe` on them, and give its rows.'
        )


def _upload(folder: Path, repo_id: str, tag: str | None, private: bool) -> str:
    """Push the folder as one commit."""
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message='Publish encoder'
        )
    # The client wraps what fails while a large file is sent in RuntimeError and ValueError.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(
            f'The Hub did not take {repo_id} ({type(error).__name__}: {reason}); log in with `hf '
            f'auth login`, see whether you may write there, and try again.'
        ) from error
    place = f'{url} at commit {commit.oid}'
    try:
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f'The encoder is at {place}, but the Hub did not take the tag {tag!r} '
            f'({" ".join(str(error).split())[:200]}); give that commit another one.'
        ) from error
    return place


def _flat(settings: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested settings with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def _is_plain(value: Any) -> bool:
    """Whether a setting is a number, a short word, or a short list of them."""
    if isinstance(value, str):
        return bool(re.fullmatch(r'[\w.+-]{1,40}', value))
    if isinstance(value, list | tuple):
        return len(json.dumps(value, default=str)) < 60 and all(_is_plain(v) for v in value)
    return isinstance(value, int | float)
