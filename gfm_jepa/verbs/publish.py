"""`gfm-jepa publish`: weights with a model card."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    """Weights with a model card, to the Hub."""
    parser = argparse.ArgumentParser(
        'gfm-jepa publish', description='Write config, safetensors, model card and golden '
        'embeddings of an encoder, refuse tokens and paths of this machine, and push one commit to '
        'the Hub; or write the folder alone.',
    )  # fmt: skip
    parser.add_argument('weights', help='checkpoint, folder or bundled name')
    parser.add_argument('repo', help='name on the Hub, such as org/name')
    parser.add_argument('--dry-run', type=Path, help='folder to write; nothing is uploaded')
    parser.add_argument('--license', default='', help="of the weights, the Hub's name; that of the "
                        'card of what is published, else apache-2.0')  # fmt: skip
    parser.add_argument('--data', nargs='+', default=(), help='what it saw: "NAME (LICENCE)"')
    parser.add_argument('--datasets', nargs='+', default=(), help='the same, as ids of the Hub')
    parser.add_argument('--compute', default='', help='hardware and time')
    parser.add_argument('--limits', help='what it should not be used for')
    parser.add_argument('--rows', type=Path, help='JSON of gfm-jepa probe --output')
    parser.add_argument('--tag', help='of the commit, such as v1')
    parser.add_argument('--private', action='store_true', help='make a new repository private')
    parser.add_argument('--half', action='store_true', help='store matrices as float16')
    args = parser.parse_args(words)
    from ..models.model_card import CardFacts
    from ..models.publishing import publish, read_rows

    facts = CardFacts(
        args.license, args.data, args.datasets, args.compute, args.limits or CardFacts.limits,
        read_rows(args.rows) if args.rows else (),
    )  # fmt: skip
    where = publish(args.weights, args.repo, facts, args.dry_run, args.tag, args.private, args.half)
    print(f'{"written" if args.dry_run else "published"}: {where}')
