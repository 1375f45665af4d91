import io
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from belvedere.apps.peers import PEERS, Peer, find_peers, versions
from belvedere.compression.rate_distortion import psnr
from belvedere.data.images import to_tensor
from belvedere.errors import InputError

MAGIC = {
    "jpeg": (0, b"\xff\xd8\xff"),
    "webp": (8, b"WEBPVP8 "),  # lossy; lossless is VP8L
    "avif": (4, b"ftypavif"),
    "jpeg2000": (4, b"jP  \r\n\x87\n"),
    "jxl": (0, b"\xff\x0a"),
}


def picture(width: int = 192, height: int = 176, seed: int = 0) -> Image.Image:
    """Coloured waves with edges and some noise: something to compress."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9 + seed), np.cos(y / 7), np.sign(np.sin((x + 2 * y) / 23))], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 8, waves.shape)
    return Image.fromarray((128 + 80 * waves + noise).clip(0, 255).astype(np.uint8))


def peer(name: str) -> Peer:
    found, missing = find_peers([name])
    if missing:
        pytest.skip(missing[name])
    return found[0]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_spends_more_bytes_on_more_quality(name: str) -> None:
    coder, image = peer(name), picture()
    files = [coder.encode(image, quality) for quality in (coder.qualities[0], coder.qualities[3], coder.qualities[-1])]
    start, magic = MAGIC[name]
    assert all(content[start:].startswith(magic) for content in files)
    decoded = [coder.decode(content) for content in files]
    assert all((found.mode, found.size) == ("RGB", image.size) for found in decoded)
    found = [psnr(to_tensor(image), to_tensor(each)) for each in decoded]
    assert all(a < b for a, b in pairwise(map(len, files))) and all(a < b for a, b in pairwise(found))
    assert found[-1] > 25 and coder.encode(image, coder.qualities[0]) == files[0]


@pytest.mark.parametrize("name", PEERS)
def test_qualities_rise(name: str) -> None:
    qualities = PEERS[name].qualities
    assert len(qualities) >= 4 and all(a < b for a, b in pairwise(qualities))


def test_jpeg_halves_colour_and_has_tables_of_its_own() -> None:
    coder = peer("jpeg")
    content = coder.encode(picture(), 50)
    with Image.open(io.BytesIO(content)) as image:
        assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
    plain = io.BytesIO()
    picture().save(plain, "JPEG", quality=50, subsampling="4:2:0")
    assert len(content) < len(plain.getvalue())


def test_avif_keeps_whole_colour() -> None:
    content = peer("avif").encode(picture(), 30)
    assert content[content.index(b"av1C") + 6] & 0b1100 == 0  # chroma_subsampling_x, _y


def test_jpeg_2000_keeps_to_the_rate() -> None:
    content = peer("jpeg2000").encode(picture(), 1.1)
    assert 8 * len(content) / (192 * 176) == pytest.approx(1.1, rel=0.03)


def test_a_peer_reads_its_own_format_only() -> None:
    with pytest.raises(UnidentifiedImageError):
        peer("webp").decode(peer("jpeg").encode(picture(), 50))


def test_a_missing_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    found, missing = find_peers(["jxl", "jpeg", "jpeg"])
    assert found == [PEERS["jpeg"]]
    assert missing == {"jxl": "pillow-jxl-plugin is not installed: pip install 'belvedere[evaluate]'"}


def test_a_build_of_pillow_without_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "JPEG2000")
    found, missing = find_peers(["webp", "jpeg2000"])
    assert found == [PEERS["webp"]]
    assert missing["jpeg2000"].startswith("this build of Pillow cannot write JPEG2000 (KeyError")


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(InputError, match="no format 'bpg' to compare with: there are jpeg, webp, avif, jpeg2000, jxl"):
        find_peers(["jpeg", "bpg"])


def test_versions_of_what_is_there() -> None:
    assert {"pillow", "libjpeg_turbo"} <= versions().keys() and all(versions().values())
