"""Pictures of all kinds are turned upright, brought to RGB and to the size asked for."""

import io

import numpy as np
import pytest
from PIL import Image

from twinflow.data.folder import FolderDataset
from twinflow.data.pictures import fit, open_picture
from twinflow.errors import TwinflowError

from .files import noise_image, write
from .profiles import DISPLAY_P3, primaries, printer, srgb, with_primaries


@pytest.mark.parametrize(("source", "size"), [((30, 10), 10), ((10, 30), (10, 10)), ((30, 20), (10, 15))])
def test_the_centre_covers_the_size(tmp_path, source, size):
    # Left and top thirds are black, the middle is white: a centre crop of the long side is white.
    width, height = source
    array = np.zeros((height, width, 3), np.uint8)
    if (width, height) == (30, 20):
        array[:] = 255  # the same shape: nothing is cropped
    elif width > height:
        array[:, 10:20] = 255
    else:
        array[10:20] = 255
    write(tmp_path / "a.png", Image.fromarray(array))
    pixels = FolderDataset(tmp_path, size=size)[0]["pixels"]
    assert pixels.shape[1:] == ((size, size) if isinstance(size, int) else size)
    assert pixels.min() == 1


def test_a_picture_of_the_right_size_is_not_resampled(tmp_path):
    image = noise_image(12, 12)
    write(tmp_path / "a.png", image)
    pixels = FolderDataset(tmp_path, size=12)[0]["pixels"]
    np.testing.assert_allclose((pixels.permute(1, 2, 0) + 1) * 127.5, np.asarray(image), atol=1e-4)


def test_modes(tmp_path):
    write(tmp_path / "grey.png", Image.new("L", (4, 4), 51))
    write(tmp_path / "grey16.png", Image.fromarray(np.full((4, 4), 51 * 257, np.uint16)))
    write(tmp_path / "half.png", Image.new("RGBA", (4, 4), (0, 0, 0, 51)))
    write(tmp_path / "clear.png", Image.new("LA", (4, 4), (0, 0)))
    write(tmp_path / "palette.png", Image.new("RGB", (4, 4), (0, 255, 0)).quantize(4))
    write(tmp_path / "print.jpg", Image.new("CMYK", (4, 4), (0, 0, 0, 0)))
    dataset = FolderDataset(tmp_path, size=4)
    colours = {
        file.path.name: ((item["pixels"][:, 0, 0] + 1) * 127.5).round().tolist()
        for file, item in zip(dataset.files, dataset, strict=True)
    }
    assert colours == {
        "grey.png": [51] * 3,
        "grey16.png": [51] * 3,
        "half.png": [204] * 3,
        "clear.png": [255] * 3,
        "palette.png": [0, 255, 0],
        "print.jpg": [255] * 3,
    }


def opened(image, **options):
    """As it is read from a file."""
    file = io.BytesIO()
    image.save(file, **{"format": "PNG"} | options)
    return np.asarray(open_picture(file.getvalue())).astype(int)


def test_colours_of_another_space_are_brought_to_srgb():
    image = noise_image(32, 32)
    encoded = np.asarray(image) / 255
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    profile = with_primaries(DISPLAY_P3)
    np.testing.assert_allclose(primaries(profile), DISPLAY_P3, atol=1e-4)
    light = (light @ np.array(DISPLAY_P3) @ np.linalg.inv(primaries(srgb()))).clip(0, 1)  # as rows
    expected = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    found = opened(image, icc_profile=profile)
    np.testing.assert_allclose(found, expected, atol=2)  # of 255: profiles' curves are tables
    assert np.abs(found - np.asarray(image)).max() > 40

    # With transparency, upright, and of a palette: of each the colours.
    pixels = np.asarray(image)
    clear = Image.fromarray(np.dstack([pixels, np.full((32, 32), 255, np.uint8)]))
    np.testing.assert_array_equal(opened(clear, icc_profile=profile), found)
    few = image.quantize(8)
    same = opened(few.convert("RGB"), icc_profile=profile)
    np.testing.assert_array_equal(opened(few, icc_profile=profile), same)
    turned = Image.Exif()
    turned[0x0112] = 3  # half a turn
    np.testing.assert_array_equal(opened(image, icc_profile=profile, exif=turned), found[::-1, ::-1])


def test_printers_colours_are_brought_to_srgb():
    inks = {(0, 0, 0, 0): (255, 255, 255), (1, 0, 0, 0): (40, 158, 204)}
    image = Image.new("CMYK", (8, 8))
    image.paste((255, 0, 0, 0), (0, 0, 4, 8))
    found = opened(image, format="TIFF", icc_profile=printer(inks))
    np.testing.assert_allclose(found[0, 0], inks[1, 0, 0, 0], atol=4)  # the table has whole steps of Lab
    np.testing.assert_allclose(found[0, 7], 255, atol=1)
    assert opened(image, format="TIFF")[0, 0].tolist() == [0, 255, 255]


def test_profiles_that_say_nothing_new_leave_pictures_as_they_are(caplog):
    """sRGB itself, to the bit; and those that can't be read, or are not of the picture's kind."""
    for image in (noise_image(32, 32), noise_image(32, 32).convert("L"), noise_image(32, 32).convert("LA")):
        plain = opened(image)
        for profile in (srgb(), b"no profile", printer({})):
            np.testing.assert_array_equal(opened(image, icc_profile=profile), plain)
    said = [record.message for record in caplog.records]
    assert len(said) == 1, said
    assert "no profile" not in said[0]
    assert "can't be read" in said[0]


def test_exif_turns_the_picture_upright(tmp_path):
    array = np.zeros((8, 8, 3), np.uint8)
    array[:, :4] = 255  # bright left half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: bright on top
    write(tmp_path / "a.png", Image.fromarray(array), exif=exif)
    pixels = FolderDataset(tmp_path, size=8)[0]["pixels"]
    assert pixels[:, :4].min() == 1
    assert pixels[:, 4:].max() == -1


def test_floating_point_pictures_are_refused(tmp_path):
    write(tmp_path / "a.tif", Image.fromarray(np.full((8, 8), 0.5, np.float32)))
    with pytest.raises(TwinflowError, match=r"a.tif: .*floating-point.*8 or 16 bits"):
        FolderDataset(tmp_path, size=8)


def test_what_is_cropped_is_the_centre_undistorted():
    """Numerically: red grows along the width and green along the height, so that each pixel says where it was."""
    rng = np.random.default_rng(0)
    for height, width in [(300, 90), (90, 300), (97, 101), *rng.integers(90, 300, (8, 2)).tolist()]:
        array = np.zeros((height, width, 3), np.float64)
        array[..., 0] = (np.arange(width) + 0.5)[None] / width * 255
        array[..., 1] = (np.arange(height) + 0.5)[:, None] / height * 255
        for sides in ((32, 32), (24, 48), (48, 24)):
            fitted = fit(Image.fromarray(array.round().astype(np.uint8)), sides)
            assert (fitted.height, fitted.width) == sides
            scale = max(sides[0] / height, sides[1] / width)  # one for both axes
            pixels = np.asarray(fitted, np.float64)[4:-4, 4:-4] / 255  # away from what the edges mirror
            for channel, side, length in ((0, sides[1], width), (1, sides[0], height)):
                place = (np.arange(side)[4:-4] + 0.5 - side / 2) / scale / length + 0.5
                means = pixels[..., channel].mean(axis=channel)
                np.testing.assert_allclose(means, place, atol=1.5 / 255)
