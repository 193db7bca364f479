"""Colour: the planes that the device makes are those that PyAV's swscale makes, and the bytes are the pixels."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from echo_rtc.model.colour import rgb_bytes, yuv_planes


def pictures(height: int, width: int) -> torch.Tensor:
    """(3, 3, H, W) in -1..1: smooth colours, in whole levels."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    channels = [torch.stack((rows, columns, 1 - rows)), torch.stack((columns, rows * columns, 1 - columns))]
    channels.append(torch.full((3, height, width), 0.3))
    return (torch.stack(channels) * 255).round() / 127.5 - 1


@pytest.mark.parametrize("size", [(64, 48), (50, 66)])
def test_planes_are_what_swscale_makes(size: tuple[int, int]) -> None:
    images = pictures(*size)
    y, u, v = (plane.numpy().astype(int) for plane in yuv_planes(images))
    rgb = rgb_bytes(images).numpy()
    assert y.shape == (3, *size)
    assert u.shape == v.shape == (3, size[0] // 2, size[1] // 2)
    for index in range(3):
        frame = av.VideoFrame.from_ndarray(rgb[index], format="rgb24")
        theirs = frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        for plane, ours in zip(theirs.planes, (y[index], u[index], v[index]), strict=True):
            expected = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            assert np.abs(ours - expected).max() <= 2
            assert abs((ours - expected).mean()) < 0.6


@pytest.mark.parametrize(
    ("rgb", "yuv"),
    [
        ((0, 0, 0), (16, 128, 128)),
        ((255, 255, 255), (235, 128, 128)),
        ((255, 0, 0), (81, 90, 240)),
        ((0, 255, 0), (145, 54, 34)),
        ((0, 0, 255), (41, 240, 110)),
    ],
)
def test_known_colours_of_bt601(rgb: tuple[int, int, int], yuv: tuple[int, int, int]) -> None:
    image = (torch.tensor(rgb) / 127.5 - 1).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert tuple(int(plane.flatten()[0]) for plane in yuv_planes(image)) == yuv
    assert tuple(rgb_bytes(image)[0, 0, 0].tolist()) == rgb


def test_what_is_beyond_the_range_is_clamped() -> None:
    image = torch.tensor([-7.0, 7.0, -1.2]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert rgb_bytes(image)[0, 0, 0].tolist() == [0, 255, 0]
    inside = image.clamp(-1, 1)
    assert all(torch.equal(a, b) for a, b in zip(yuv_planes(image), yuv_planes(inside), strict=True))


def test_a_chroma_sample_is_the_mean_of_its_four_pixels() -> None:
    image = torch.full((1, 3, 2, 4), -1.0)
    image[0, 2, 0, 0] = 1.0  # one blue pixel of four: a quarter of the way from 128 to 240
    assert yuv_planes(image)[1][0].tolist() == [[156, 128]]
