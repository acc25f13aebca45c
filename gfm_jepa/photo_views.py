"""Views of RGB photographs as SimSiam makes them: crops, mirror images, colours, blur.

Draws come from the passed generator, so that a resumed run makes the same views; kornia's
augmentation classes draw from the global state, which a resumed run does not have. What is done to
the pixels is kornia's: its functions take one number a sample.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from kornia.filters import gaussian_blur2d
from torch import Tensor

from .errors import InputError
from .modalities import Modality
from .views import Crops, cut, pick_dates, stated_gsd, view_size

_COLOURS = (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
    adjust_hue,
)


@dataclass(frozen=True)
class PhotoViews(Crops):
    """How views of photographs are made: large (global) ones first, then small (local) ones.

    Views are square. Up stays up and only left and right change places; on images from above,
    whose colours are measurements, take `gfm_jepa.views.Views`.

    Args:
        num_global: Global views G.
        num_local: Local views.
        global_scale: Share of the image's area that a global view shows.
        global_fraction: Side of a global view over the image's shorter one, in pixels.
        local_scale: Share of the image's area that a local view shows.
        local_fraction: Side of a local view over the image's shorter one, in pixels.
        aspect_ratio: Lowest and highest width to height, in pixels, of what a view shows.
        mirror: Probability that left and right change places.
        jitter: Largest relative change of brightness, contrast and saturation, and of the hue as a
            share of the circle.
        jitter_probability: That a view's colours change.
        grayscale: Probability that a view loses its colours.
        blur: Probability that a view is blurred.
        blur_sigma: Lowest and highest standard deviation of the blur, pixels; the source's are
            for views of 224 pixels.

    Raises:
        InputError: If there is no global view, or a number is none of its kind.

    Source: Chen & He, "Exploring Simple Siamese Representation Learning" (2021), section 3, which
        takes them from MoCo v2.
    Differs from the source: crops that would leave the image are cut at its border, and not drawn
        again; the order of the four colour changes is drawn for a batch, not an image.
    """

    global_scale: tuple[float, float] = (0.2, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.2)
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        """Refuse views that are none."""
        super().__post_init__()
        self.require_rising('aspect_ratio', 'blur_sigma')
        self.require_probabilities('mirror', 'jitter_probability', 'grayscale', 'blur')
        if len(self.jitter) != 4 or not all(0 <= change <= 1 for change in self.jitter):
            raise InputError(
                f'views.jitter is {list(self.jitter)}; give four changes of 0 to 1: of brightness, '
                f'contrast, saturation and hue.'
            )

    def make(
        self,
        batch: Mapping[str, Any],
        modalities: Mapping[str, Modality],
        patch_sizes: Mapping[str, int],
        generator: torch.Generator,
    ) -> list[dict[str, Any]]:
        """Make the views of a batch, those of one kind joined along the batch axis.

        Args:
            batch: (B, 3, H, W), or (B, T, 3, H, W) with dates, of the one modality.
            modalities: By name: one, of three bands, with a valid range.
            patch_sizes: What the sides of a view are a multiple of, pixels.
            generator: Source of randomness, on the CPU.

        Returns:
            As `Views.make`. A gap of the image is a gap of the view. There is no ``gsd``, unless
            the batch states one.

        Raises:
            InputError: If these are not RGB images.
        """
        name = _require_rgb(modalities)
        low, high = modalities[name].valid_range or (0.0, 1.0)
        gsd = stated_gsd(batch, name)
        joined: list[dict[str, Any]] = []
        for count, scale, fraction in self.kinds():
            dates = pick_dates({name: batch[name]}, count, generator)
            x = torch.cat([d[name] for d in dates])
            size = view_size(x, fraction, patch_sizes[name])
            shape = (x.shape[-2], x.shape[-1])
            windows = photo_windows(len(x), shape, scale, self.aspect_ratio, self.mirror, generator)
            crops = cut({name: x}, windows, {name: size})[name]
            changed = self._change((crops - low) / (high - low), generator)
            view: dict[str, Any] = {name: changed * (high - low) + low}
            if gsd is not None:
                view['gsd'] = {name: gsd * min(shape) * fraction / size[0]}
            joined.append(view)
        return joined

    def _change(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Change colours and sharpness of (B, 3, H, W) in 0..1; NaN stays where it was."""
        gaps = ~x.isfinite()
        # Colours mix bands and blur mixes pixels: neither may meet a NaN.
        x = x.where(~gaps, x.nanmean(dim=(2, 3), keepdim=True).nan_to_num(0.0)).clamp(0.0, 1.0)
        x = jitter_colours(x, self.jitter, self.jitter_probability, generator)
        gray = torch.rand(len(x), generator=generator) < self.grayscale
        x = _where(gray, x, rgb_to_grayscale(x[gray.to(x.device)]).expand(-1, 3, -1, -1))
        blurred = torch.rand(len(x), generator=generator) < self.blur
        low, high = self.blur_sigma
        sigma = low + (high - low) * torch.rand(len(x), generator=generator)
        if blurred.any():
            # Three standard deviations to either side, and less than the reflected border.
            reach = min(math.ceil(3 * high), min(x.shape[-2:]) - 1)
            chosen = blurred.to(x.device)
            width = sigma[blurred, None].expand(-1, 2).to(x)
            some = _blurred(x[chosen], ~gaps[chosen], 2 * reach + 1, width)
            x = _where(blurred, x, some)
        return x.masked_fill(gaps, torch.nan)


def photo_windows(
    batch_size: int,
    shape: tuple[int, int],
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    mirror: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw an upright window of each image, perhaps mirrored.

    Args:
        batch_size: B.
        shape: Height and width of the images, pixels.
        scale: Lowest and highest share of the image's area.
        aspect_ratio: Lowest and highest width to height, in pixels.
        mirror: Probability that left and right change places.
        generator: Source of randomness, on the CPU.

    Returns:
        (B, 2, 3) affine maps for `gfm_jepa.views.cut`.
    """
    u = torch.rand(5, batch_size, generator=generator)
    area = scale[0] + u[0] * (scale[1] - scale[0])
    low, high = (math.log(r * shape[0] / shape[1]) for r in aspect_ratio)
    ratio = (low + u[1] * (high - low)).exp()  # width to height, each as a share of the image's
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    right, down = (2 * u[2] - 1) * (1 - width), (2 * u[3] - 1) * (1 - height)
    zero = torch.zeros(batch_size)
    first = torch.stack([width.where(u[4] >= mirror, -width), zero, right], dim=1)
    return torch.stack([first, torch.stack([zero, height, down], dim=1)], dim=1)


def jitter_colours(
    x: Tensor,
    strength: tuple[float, float, float, float],
    probability: float,
    generator: torch.Generator,
) -> Tensor:
    """Change brightness, contrast, saturation and hue of some images, in a drawn order.

    Args:
        x: (B, 3, H, W) in 0..1.
        strength: Largest relative change of the first three, and of the hue as a share of the
            circle.
        probability: That an image changes.
        generator: Source of randomness, on the CPU.
    """
    some = torch.rand(len(x), generator=generator) < probability
    u = 2 * torch.rand(4, len(x), generator=generator) - 1
    order = torch.randperm(4, generator=generator).tolist()
    if not some.any():
        return x
    changed = x[some.to(x.device)]
    for i in order:
        if strength[i]:
            change = u[i, some].to(x) * strength[i]
            changed = _COLOURS[i](changed, change * 2 * math.pi if i == 3 else 1 + change)
    return _where(some, x, changed)


def _blurred(x: Tensor, there: Tensor, size: int, sigma: Tensor) -> Tensor:
    """Blur (B, 3, H, W) by what is there alone: nothing of a gap reaches the pixels beside it."""
    known = there.to(x)
    blurred: Tensor = gaussian_blur2d(x * known, size, sigma)
    if not there.all():  # 0 / 0 only in a gap, which stays one
        blurred = blurred / gaussian_blur2d(known, size, sigma)
    return blurred


def _where(some: Tensor, x: Tensor, changed: Tensor) -> Tensor:
    """Put changed images in the place of some (B,)."""
    result = x.clone()
    result[some.to(x.device)] = changed
    return result


def _require_rgb(modalities: Mapping[str, Modality]) -> str:
    """The name of the one modality, if it is RGB."""
    name, modality = next(iter(modalities.items()))
    if len(modalities) > 1 or len(modality.bands) != 3 or modality.valid_range is None:
        raise InputError(
            f'PhotoViews are of RGB images, one modality of three bands with a valid_range; got '
            f'{", ".join(modalities)}: take gfm_jepa.views.Views.'
        )
    return name
