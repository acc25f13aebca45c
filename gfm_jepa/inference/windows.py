"""Single windows of scenes, to look at: the middle, some side by side, some at random."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data.open_files import OpenFiles
from ..errors import InputError
from ..models import BaseEncoder
from .scenes import Scene


class Windows:
    """Windows of scenes as batches: rasters (B, C, H, W) by modality, raw units, and ``gsd``.

    Args:
        encoder: Which embeds them.
        scenes: One at least; what is looked at closely is of the first.
        most: Windows that are drawn.
        seed: Of the places.
    """

    def __init__(
        self, encoder: BaseEncoder, scenes: Sequence[Scene], most: int = 200, seed: int = 0
    ) -> None:
        self.encoder, self.scenes, self.most = encoder, scenes, most
        self.generator = torch.Generator().manual_seed(seed)
        self.files = OpenFiles()

    @cached_property
    def middle(self) -> dict[str, Any]:
        """The middle of the first scene, B = 1."""
        first = self.scenes[0]
        row, col = (max(n - first.window, 0) // 2 // first.unit * first.unit
                    for n in (first.grid.height, first.grid.width))  # fmt: skip
        return self._read(first, row, col)

    @cached_property
    def beside(self) -> dict[str, Any]:
        """Windows of the first scene, half a window apart at least, where all modalities are there.

        At most 48 of them, drawn at random.

        Raises:
            InputError: If there are fewer than two.
        """
        first = self.scenes[0]
        step = max(first.window // 2 // first.unit, 1) * first.unit
        rows, cols = (range(0, max(n - first.window, 0) + 1, step)
                      for n in (first.grid.height, first.grid.width))  # fmt: skip
        corners = [(r, c) for r in rows for c in cols]
        found = []
        for i in torch.randperm(len(corners), generator=self.generator).tolist():
            batch = self._read(first, *corners[i])
            if all(float(batch[n].isfinite().float().mean()) > 0.5 for n in first.gsd):
                found.append(batch)
            if len(found) == min(self.most, 48):
                break
        if len(found) < 2:
            raise InputError(
                f'{first.name} gave {len(found)} windows of {first.window} pixels with data of '
                f'all modalities, where two are needed; take a smaller --window, or more --windows.'
            )
        return {**{n: torch.cat([b[n] for b in found]) for n in first.gsd}, 'gsd': first.gsd}

    @cached_property
    def embedded(self) -> tuple[Tensor, list[str]]:
        """Embeddings (N, D) of windows anywhere in all scenes, and the scene of each."""
        embeddings, names = [torch.empty(0, self.encoder.num_features)], []
        for i in range(self.most):
            scene = self.scenes[i % len(self.scenes)]
            steps = [max(n - scene.window, 0) // scene.unit + 1
                     for n in (scene.grid.height, scene.grid.width)]  # fmt: skip
            row, col = (int(torch.randint(n, (), generator=self.generator)) * scene.unit
                        for n in steps)  # fmt: skip
            with torch.inference_mode():
                one = self.encoder(self._read(scene, row, col))
            if bool(one.isfinite().all()):
                embeddings.append(one)
                names.append(scene.name)
        return torch.cat(embeddings), names

    def close(self) -> None:
        """Close the files."""
        self.files.close()

    def _read(self, scene: Scene, row: int, col: int) -> dict[str, Any]:
        values = scene.read(self.files, row, col)
        return {**{n: torch.from_numpy(v)[None] for n, v in values.items()}, 'gsd': scene.gsd}
