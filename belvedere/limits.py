"""What is refused as too large, in one place for whatever opens pictures."""

MAX_PIXELS = 64_000_000
"""Of a picture; below the 89 million at which Pillow itself begins to warn."""
