"""What is written can be read: contrast as WCAG 2 counts it, in the light and in the dark."""

import pytest

from belvedere.apps.web.theme import make_theme

THEME = make_theme()
AA = 4.5


def colour(name: str) -> str:
    """Return a colour of the theme as #rrggbb."""
    value = str(getattr(THEME, name))
    return colour(value[1:]) if value.startswith("*") else {"white": "#ffffff"}.get(value, value)


def luminance(value: str) -> float:
    parts = [int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", ["", "_dark"])
@pytest.mark.parametrize("text", ["body_text_color_subdued", "block_info_text_color", "input_placeholder_color"])
def test_quiet_text_can_be_read(text: str, dark: str) -> None:
    for ground in ("body_background_fill", "block_background_fill", "input_background_fill"):
        assert contrast(colour(text + dark), colour(ground + dark)) > AA, ground


@pytest.mark.parametrize("dark", ["", "_dark"])
@pytest.mark.parametrize(
    "ground",
    [
        "button_primary_background_fill",
        "button_primary_background_fill_hover",
        "checkbox_label_background_fill_selected",
    ],
)
def test_white_on_the_accent_can_be_read(ground: str, dark: str) -> None:
    assert contrast("#ffffff", colour(ground + dark)) > AA
