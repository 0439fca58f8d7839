"""A tiny random pipeline of every family that diffusers ships and twinflow drives, built without a download."""

from families.family import Family
from families.image import IMAGE_FAMILIES
from families.video import VIDEO_FAMILIES

FAMILIES: dict[str, Family] = {family.name: family for family in (*IMAGE_FAMILIES, *VIDEO_FAMILIES)}
NAMES = list(FAMILIES)

__all__ = ["FAMILIES", "NAMES", "Family"]
