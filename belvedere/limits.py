"""What is refused as too large, in one place for whatever opens or writes pictures."""

MAX_PIXELS = 64_000_000
"""Of a picture; below the 89 million at which Pillow itself begins to warn."""
WEBP_SIDE = 16_383
"""Pixels of a side that WebP allows."""
