"""Colour profiles as cameras, screens and printers have them, made of the sRGB profile of ImageCms, or anew."""

import struct

import numpy as np
from PIL import Image, ImageCms

HEADER, ENTRY = 128, 12  # bytes of a profile's header, and of each entry of its table of tags
# Red, green and blue of Display P3, adapted to D50, as XYZ; its curve is that of sRGB.
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def primaries(profile: bytes) -> np.ndarray:
    """(3, 3): XYZ of red, green and blue."""
    places = [_place(profile, f"{colour}XYZ") + 8 for colour in "rgb"]
    numbers = [struct.unpack_from(">3i", profile, place) for place in places]
    return np.array(numbers) / 65536


def with_primaries(xyz: tuple[tuple[float, ...], ...]) -> bytes:
    """The sRGB profile with other colours for red, green and blue."""
    profile = bytearray(srgb())
    for colour, numbers in zip("rgb", xyz, strict=True):
        fixed = [round(number * 65536) for number in numbers]
        struct.pack_into(">3i", profile, _place(bytes(profile), f"{colour}XYZ") + 8, *fixed)
    return bytes(profile)


def printer(inks: dict[tuple[int, int, int, int], tuple[int, int, int]]) -> bytes:
    """A CMYK profile in which each mixture of full inks is the sRGB colour that ``inks`` says; others are black."""
    mixtures = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    colours = Image.new("RGB", (16, 1))
    colours.putdata([inks.get(mixture, (0, 0, 0)) for mixture in mixtures])
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    # PIL keeps a and b as signed bytes, lut8 with 128 added.
    lab = np.asarray(to_lab.apply(colours)).reshape(16, 3).astype(int)
    lab[:, 1:] = (lab[:, 1:] + 128) % 256
    straight = bytes(range(256))
    unit = struct.pack(">9i", *(65536 * int(i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + straight * 4
    table += lab.astype(np.uint8).tobytes() + straight * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = {"A2B0": table, "wtpt": white}
    place = HEADER + 4 + ENTRY * len(tags)
    entries, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        entries += name.encode() + struct.pack(">2I", place + len(data), len(content))
        data += content
    header = bytearray(HEADER)
    struct.pack_into(
        ">I4sI4s4s4s", header, 0, place + len(data), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab "
    )
    header[36:40] = b"acsp"
    struct.pack_into(">3i", header, 68, 63190, 65536, 54061)  # D50
    return bytes(header) + entries + data


def _place(profile: bytes, tag: str) -> int:
    (count,) = struct.unpack_from(">I", profile, HEADER)
    for entry in range(HEADER + 4, HEADER + 4 + ENTRY * count, ENTRY):
        name, place = struct.unpack_from(">4sI", profile, entry)
        if name == tag.encode():
            return place
    raise KeyError(tag)
