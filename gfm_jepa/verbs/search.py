"""`gfm-jepa search`: the places that are most similar to a query."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..evaluation.embeddings import Embeddings
    from ..models import BaseEncoder


def main(words: Sequence[str]) -> None:
    """Find places."""
    parser = argparse.ArgumentParser(
        'gfm-jepa search', description='The most similar places of what `gfm-jepa embed` wrote, by '
        'cosine. Writes the similarity of all cells of a map (.tif), or the places found of a '
        'table (.parquet), and a picture. The last line is JSON: the places found.',
    )  # fmt: skip
    add = parser.add_argument
    add('embeddings', type=Path, help='.tif or .parquet')
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument('--at', type=float, nargs=2, metavar=('LON', 'LAT'), help='degrees')
    query.add_argument('--place', type=int, help='number of a row, or of a cell, row by row')
    query.add_argument('--image', help='an example, a raster of one chip or more; needs --weights')
    add('--weights', help='that made the embeddings')
    add('-k', type=int, default=10, help='places to find')
    add('-o', '--output', type=Path, required=True, help='.tif or .parquet, as the embeddings are')
    add('--picture', type=Path, help='PNG; beside the output by default')
    args = parser.parse_args(words)
    import numpy as np

    from ..errors import InputError
    from ..evaluation.embeddings import EmbeddingMap, open_embeddings, require_like
    from ..evaluation.map_figures import found_places
    from ..evaluation.plots import save
    from ..evaluation.search import Search, load, similarity
    from ..output_paths import picture_beside

    if args.k < 1:
        raise InputError(f'-k is {args.k}; give at least 1 place to find.')
    picture = picture_beside(args.output, args.picture, (args.embeddings, args.image, args.weights))
    embeddings = open_embeddings(args.embeddings)
    require_like(args.output, embeddings)
    values, places = load(embeddings)
    at = None if args.image else embeddings.place_at(*args.at) if args.at else args.place
    if at is None:
        if not args.weights:
            raise InputError(f'{args.image} has to be embedded first; add --weights.')
        wanted = embed_image(args.weights, args.image, embeddings)
    else:
        row = np.flatnonzero(places == at)
        if not len(row):
            raise InputError(f'Place {at} of {args.embeddings} holds no data; name another.')
        wanted = values[row[0]]
    score, numbers = Search(values)(wanted, args.k + 1)
    # The query is its own nearest neighbour, which nobody asked for.
    keep = [i for i, n in enumerate(numbers) if at is None or places[n] != at][: args.k]
    score, found = score[keep], places[numbers[keep]]
    everywhere = similarity(embeddings, wanted)
    if isinstance(embeddings, EmbeddingMap):
        embeddings.write(args.output, {'similarity': everywhere})
    else:
        embeddings.write(args.output, {'similarity': score}, found)
    origin = None if at is None else embeddings.positions(np.array([at]))[0].tolist()
    save(found_places(embeddings, everywhere, found, origin), picture)
    print(f'{args.output}, {picture}')
    print(json.dumps([
        {'place': int(n), 'similarity': round(float(s), 4), 'lon': round(float(x), 6),
         'lat': round(float(y), 6)}
        for n, s, (x, y) in zip(found, score, embeddings.positions(found), strict=True)
    ]))  # fmt: skip


def embed_image(weights: str, path: str, like: 'Embeddings') -> 'NDArray[np.float32]':
    """The mean embedding of the chips of an example, or of the cells of its map: of one kind."""
    import tempfile

    from ..errors import InputError
    from ..evaluation.embeddings import open_embeddings, require_same_weights
    from ..evaluation.search import load
    from ..inference.embed import embed
    from ..models.hub import from_pretrained

    encoder = from_pretrained(weights)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f'example{like.path.suffix}'
        place = placed(path, encoder, Path(folder))
        try:
            embed(encoder, [place], output, say=lambda text: None)
        except InputError as error:
            copy, own = (p.rpartition('=')[2] for p in (place, path))
            raise InputError(str(error).replace(copy, own)) from error
        example = open_embeddings(output)
        require_same_weights(replace(example, path=Path(path)), like)
        try:
            mean: NDArray[np.float32] = load(example)[0].mean(axis=0)
        except InputError as error:
            raise InputError(f'{path} holds no data to search with; take another.') from error
        return mean


def placed(path: str, encoder: 'BaseEncoder', folder: Path) -> str:
    """An example as it is; of one without a place on the ground, a copy that has a made-up one.

    An embedding needs no place; what reads rasters asks for one.

    Args:
        path: Of the example, perhaps as ``NAME=PATH``.
        encoder: That should embed it.
        folder: For the copy, which is called as the file and its folder are.

    Raises:
        InputError: If it has no place, and does not say which of several modalities it is.
    """
    import shutil
    import warnings

    import rasterio
    import rasterio.shutil
    from affine import Affine
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    from ..data.sidecars import sidecars
    from ..errors import InputError

    known = encoder.modalities
    name, _, rest = path.partition('=')
    file = Path(rest if name in known else path)
    copy = folder / file.parent.resolve().name / f'{file.stem}.tif'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        try:
            with rasterio.open(file) as source:
                # One that holds several rasters has no bands itself.
                if not source.count or (source.crs and not source.transform.is_identity):
                    return path
                if name not in known and len(known) > 1:
                    raise InputError(
                        f'{path} has no place on the ground that would tell what it is; give it '
                        f'as NAME=PATH, by one of {", ".join(known)}.'
                    )
                copy.parent.mkdir(exist_ok=True)
                rasterio.shutil.copy(source, copy, driver='GTiff')
        except RasterioError:  # whoever embeds it says what is wrong
            return path
        modality = known.get(name, next(iter(known.values())))
        with rasterio.open(copy, 'r+') as target:
            target.crs = 'EPSG:32631'
            target.transform = Affine(modality.gsd, 0, 500_000, 0, -modality.gsd, 5_000_000)
    for beside in sidecars(file.parent):
        shutil.copy(beside, copy.parent)
    return f'{modality.name}={copy}'
