"""Fetch weights from the Hub: one commit, its cache, and the hashes that its client leaves open."""

import errno
import hashlib
import re
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of its client
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import InputError
from .weight_files import CONFIG, INDEX, WEIGHTS, shard_names


def download(repo_id: str, revision: str | None, local_files_only: bool) -> tuple[Path, str]:
    """Fetch the files of an encoder, or take them from the cache.

    Args:
        repo_id: Such as ``org/name``.
        revision: Branch, tag or commit; the default branch if None.
        local_files_only: Ask no server.

    Returns:
        The folder in the cache, and the commit.

    Raises:
        InputError: If it is not there, the server fails, or a file is not what its hash says.
    """
    try:
        config = Path(hf_hub_download(repo_id, CONFIG, revision=revision,
                                      local_files_only=local_files_only))  # fmt: skip
        commit = config.parent.name
        # The other files come from the commit that the first was of, whatever is pushed meanwhile.
        try:
            paths = [_fetch(repo_id, WEIGHTS, commit, local_files_only)]
        except EntryNotFoundError as error:
            # The client calls a server that fails "not in the cache", and that "not there".
            absent = isinstance(error, LocalEntryNotFoundError) and not local_files_only
            index = _index(repo_id, commit, local_files_only or absent)
            if index is None:
                raise
            paths = [index, *(_fetch(repo_id, name, commit, local_files_only)
                              for name in shard_names(index))]  # fmt: skip
    except InputError:
        raise
    # The client wraps some of what fails in RuntimeError and ValueError.
    except (HTTPError, EntryNotFoundError, OSError, RuntimeError, ValueError) as error:
        raise InputError(_sentence(error, repo_id, revision, local_files_only)) from error
    for path in (config, *paths):
        check_hash(path)
    return config.parent, commit


def download_file(repo_id: str, name: str, commit: str) -> Path:
    """Fetch one more file of a commit, or take it from the cache.

    Raises:
        InputError: If it is not there, the server fails, or it is not what its hash says.
    """
    try:
        path = _fetch(repo_id, name, commit, False)
    except (HTTPError, EntryNotFoundError, OSError, RuntimeError, ValueError) as error:
        raise InputError(_sentence(error, repo_id, commit, False, name)) from error
    check_hash(path)
    return path


def check_hash(path: Path) -> None:
    """Compare a file of the cache with the hash that the server named it by.

    The client compares sizes only. The cache names a blob by the server's ETag: the sha256 of
    large files, git's own sha1 of small ones. Without symbolic links (on some Windows) the name is
    lost, and there is nothing to compare with.

    Raises:
        InputError: If they differ.
    """
    blob = path.resolve()
    content = blob.read_bytes()
    if re.fullmatch(r'[0-9a-f]{64}', blob.name):
        found = hashlib.sha256(content).hexdigest()
    elif re.fullmatch(r'[0-9a-f]{40}', blob.name):
        found = hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
    else:
        return
    if found != blob.name:
        raise InputError(
            f'{path.name} has the hash {found[:12]}, but the Hub says {blob.name[:12]}; it is '
            f'damaged or was changed: delete {blob} and load again.'
        )


def _index(repo_id: str, commit: str, local_files_only: bool) -> Path | None:
    """The index of shards; None if only the cache is asked, and does not hold it."""
    try:
        return _fetch(repo_id, INDEX, commit, local_files_only)
    except LocalEntryNotFoundError:
        if local_files_only:
            return None
        raise


def _fetch(repo_id: str, name: str, commit: str, local_files_only: bool) -> Path:
    return Path(hf_hub_download(repo_id, name, revision=commit, local_files_only=local_files_only))


def _sentence(
    error: Exception,
    repo_id: str,
    revision: str | None,
    local: bool,
    name: str = '',
) -> str:
    """What went wrong, and what to do."""
    at = f' at {revision}' if revision else ''
    if local:
        return f'The cache holds no {repo_id}{at}; leave out local_files_only to fetch it.'
    # The client says "not in the cache" of whatever the server answered: that stands below.
    below = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
    cause = below if isinstance(below, Exception) else error
    if isinstance(cause, GatedRepoError):
        return (
            f'{repo_id} is given only to those who accept its terms (403); do so on its page on '
            f'the Hub, and log in with `hf auth login`.'
        )
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f'There is no folder or file {repo_id!r}, and the Hub knows no {repo_id} (404); check '
            f'the name, and log in with `hf auth login` if it is private.'
        )
    if isinstance(cause, RevisionNotFoundError):
        return f'{repo_id} has no branch, tag or commit {revision!r} (404); check the revision.'
    if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
        if name:
            return f'{repo_id}{at} lacks {name} (404); ask who published it to add that file.'
        return f'{repo_id}{at} lacks {CONFIG} or {WEIGHTS} (404); it holds no encoder of ours.'
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        advice = {
            401: 'log in with `hf auth login`', 403: 'see whether your account may read it',
            429: 'wait some minutes, and try again',
        }.get(status, 'see whether it is up, and try again')  # fmt: skip
        return f'The Hub answered {status} for {repo_id}{at}; {advice}.'
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            f'There is no folder or file {repo_id!r}, the cache does not hold it{at}, and '
            f'HF_HUB_OFFLINE forbids to ask the Hub; unset it, or fetch the weights beforehand.'
        )
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        return f'{repo_id}{at} could not be written ({cause}); set HF_HOME to a folder with room.'
    reason = str(cause).splitlines()[0][:120] if str(cause) else ''
    return (
        f'There is no folder or file {repo_id!r}, and the Hub gave no such weights '
        f'({type(cause).__name__}: {reason}); check the name, the revision and the network.'
    )
