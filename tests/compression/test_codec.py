"""Pictures through the whole codec: what comes back, tiles, parts, rates, wanted sizes, hostile files."""

import copy
import pickle
import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.compression import bitstream, exact_tables
from belvedere.compression.bitstream import MAX_METADATA, Tile
from belvedere.compression.codec import Codec, decode, encode, workers
from belvedere.compression.entropy import FIRST_STATE
from belvedere.compression.exact import ExactPath
from belvedere.compression.exact_tables import ExactTables
from belvedere.compression.rate_control import encode_to_bpp, encode_to_psnr
from belvedere.compression.rate_distortion import psnr
from belvedere.compression.segpic_config import usual_quality
from belvedere.compression.tile_codec import TileCodec
from belvedere.compression.tiling import Layout
from belvedere.errors import BitstreamError, DamagedError, InputError, TruncatedError, WrongModelError
from belvedere.kernels.layout import place
from tests.compression.test_segpic import small

SMALL_TILES = Layout(256, 32)


@cache
def codec(rates: int = 4) -> Codec:
    model = small(rates=rates)
    return Codec(model, ExactTables.of(exact_tables.make(model), model.config), "0123456789abcdef" * 4)


def photograph(width: int = 100, height: int = 70, mode: str = "RGB") -> Image.Image:
    """A picture with smooth parts and noise."""
    y, x = np.mgrid[0:height, 0:width] / 64
    waves = np.stack([np.sin(3 * x + y), np.cos(2 * y), np.sin(x * y)], 2)
    noise = np.random.default_rng(0).normal(0, 0.1, waves.shape)
    return Image.fromarray(((waves + noise).clip(-1, 1) * 127 + 128).astype(np.uint8)).convert(mode)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.array(image))


@pytest.mark.parametrize("size", [(1, 1), (63, 65), (64, 64), (100, 70), (130, 10)])
@pytest.mark.parametrize("rates", [0, 4])
def test_a_picture_comes_back_as_the_encoder_had_it(size: tuple[int, int], rates: int) -> None:
    image, coder = photograph(*size), codec(rates)
    data = encode(image, coder, quality=2.5 if rates else 1.0)
    decoded = decode(data, coder)
    assert decoded.size == size and decoded.mode == "RGB"
    analysis = coder.tiles.analyse(np.array(image), coder.model.config.grid)
    rate = coder.rate(bitstream.read(data)[0].quality)
    tile = coder.tiles.write(analysis, rate)
    latent, codes = coder.tiles.read(tile, size[::-1], coder.model.config.grid)
    assert (codes == analysis.codes).all()
    assert (np.array(decoded) == coder.tiles.synthesise(latent, codes, rate, size[::-1])).all()


def test_the_reconstruction_is_that_of_the_float_network() -> None:
    coder, image = codec(), photograph(128, 64)
    x = pixels(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        wanted = coder.model(x, quality=torch.tensor([1.5])).reconstruction.clamp(0, 1)[0].permute(1, 2, 0) * 255
    found = pixels(decode(encode(image, coder, quality=2.5), coder)).float()
    assert (found - wanted).abs().mean() < 1


def test_files_are_read_whatever_the_layout_of_weights_was() -> None:
    stored, image = codec(), photograph()
    tables = ExactTables.of(exact_tables.make(stored.model), stored.model.config)
    placed = Codec(place(copy.deepcopy(stored.model), torch.device("cpu")), tables, stored.digest.hex())
    for one, other in ((stored, placed), (placed, stored)):
        data = encode(image, one)
        apart = pixels(decode(data, one)).int() - pixels(decode(data, other)).int()
        assert apart.abs().max() <= 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda coder: pickle.loads(pickle.dumps(coder))])  # noqa: S301
def test_a_copy_makes_the_same_file(copied: Callable[[Codec], Codec]) -> None:
    image, coder = photograph(), codec()
    again = copied(coder)
    assert encode(image, again) == encode(image, coder)
    assert torch.equal(pixels(decode(encode(image, coder), again)), pixels(decode(encode(image, coder), coder)))


def test_grey_and_metadata_come_back() -> None:
    image = photograph(mode="L")
    decoded = decode(encode(image, codec(), quality=4, profile=b"icc", exif=b"exif"), codec())
    assert decoded.mode == "L" and decoded.info["icc_profile"] == b"icc" and decoded.info["exif"] == b"exif"
    assert "icc_profile" not in decode(encode(image, codec()), codec()).info


def test_higher_quality_takes_more_bytes() -> None:
    sizes = [len(encode(photograph(), codec(), quality=quality)) for quality in (1, 2.5, 4)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_tiles_make_the_picture_and_a_part_of_it() -> None:
    image = photograph(500, 300)
    seen: list[tuple[float, int]] = []
    data = encode(image, codec(), layout=SMALL_TILES, progress=lambda *now: seen.append(now))
    assert seen == [(i, 6) for i in range(1, 7)]
    whole = np.array(decode(data, codec()))
    part = decode(data, codec(), region=(230, 100, 40, 150))
    assert (np.array(part) == whole[100:250, 230:270]).all()
    assert (np.array(decode(data, codec(), jobs=2)) == whole).all()
    assert encode(image, codec(), layout=SMALL_TILES, jobs=2) == data


def test_a_part_does_not_need_the_other_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photograph(500, 300), codec(), layout=SMALL_TILES)
    sizes: list[int] = []
    plain = TileCodec.read
    monkeypatch.setattr(TileCodec, "read", lambda self, tile, *rest: sizes.append(1) or plain(self, tile, *rest))
    decode(data, codec(), region=(0, 0, 10, 10))
    assert len(sizes) == 1


def test_progress_of_a_part_is_of_the_tiles_it_meets() -> None:
    data = encode(photograph(500, 300), codec(), layout=SMALL_TILES)
    seen: list[tuple[float, int]] = []
    decode(data, codec(), region=(230, 100, 40, 150), progress=lambda *now: seen.append(now))
    assert seen == [(1, 2), (2, 2)]


def test_no_more_jobs_than_tiles_share_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(jobs: int) -> AbstractContextManager:
        asked.append(jobs)
        return workers(jobs)

    for module in ("codec", "rate_control"):
        monkeypatch.setattr(f"belvedere.compression.{module}.workers", noted)
    decode(encode(photograph(), codec(), jobs=4), codec(), jobs=4)
    encode_to_bpp(photograph(), codec(), 60, jobs=4)
    assert set(asked) == {1}
    asked.clear()
    data = encode(photograph(500, 300), codec(), layout=SMALL_TILES, jobs=9)  # 2 rows of 3
    for region in (None, (0, 0, 10, 10)):
        decode(data, codec(), region=region, jobs=9)
    assert asked == [6, 3, 1]


@pytest.mark.parametrize(("rates", "usual"), [(0, 1), (2, 2), (4, 4)])
def test_the_usual_quality_is_one_that_was_learned(rates: int, usual: int) -> None:
    assert encode(photograph(), codec(rates)) == encode(photograph(), codec(rates), quality=usual)
    assert list(codec(rates).learned) == list(range(1, max(1, rates) + 1)) and usual_quality(8) == 4


def test_a_stream_of_nothing_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    header, _ = bitstream.read(encode(photograph(), codec(), quality=4))
    monkeypatch.setattr(ExactPath, "hyper", lambda *_: pytest.fail("the maps were made"))
    for stream in (b"", struct.pack("<I", 1), struct.pack("<I", FIRST_STATE)):
        with pytest.raises(TruncatedError, match="ends before its last number"):
            decode(bitstream.write(header, [Tile(stream, 0)]), codec())


@pytest.mark.parametrize(("kind", "rest"), [("profile", "none"), ("exif", "colour")])
def test_metadata_that_no_file_may_have_are_refused_at_once(kind: str, rest: str) -> None:
    data = encode(photograph(), codec(), **{kind: bytes(MAX_METADATA)})
    assert len(bitstream.read(data)[0].profile or bitstream.read(data)[0].exif) == MAX_METADATA
    with pytest.raises(InputError, match=rf"of 4194305 bytes: at most 4194304 are kept; .* \(--metadata {rest}\)"):
        encode(photograph(), codec(), **{kind: bytes(MAX_METADATA + 1)})


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, 0, 0, 5), (96, 0, 5, 5), (0, 66, 5, 5)])
def test_a_part_outside_is_refused(region: tuple[int, int, int, int]) -> None:
    data = encode(photograph(), codec())
    with pytest.raises(InputError, match="not inside the picture of 100 x 70"):
        decode(data, codec(), region=region)


def test_what_does_not_matter_costs_less() -> None:
    image = photograph(256, 128)
    importance = np.zeros((128, 256), np.float32)
    importance[:, :128] = 1
    sizes = [len(encode(image, codec(), quality=4, importance=map_)) for map_ in (None, importance, 0 * importance)]
    assert sizes[0] > sizes[1] > sizes[2]
    everywhere = encode(image, codec(), quality=4, importance=np.ones_like(importance))
    assert everywhere == encode(image, codec(), quality=4)
    with pytest.raises(InputError, match="must fit"):
        encode(image, codec(), importance=importance.T)
    with pytest.raises(InputError, match="importance has NaN"):
        encode(image, codec(), importance=importance * np.float32("nan"))
    with pytest.raises(InputError, match="one rate"):
        encode(image, codec(0), quality=1, importance=importance)


def test_a_wanted_size_is_met_from_below() -> None:
    image = photograph()
    least, most = (len(encode(image, codec(), quality=quality)) * 8 / 7000 for quality in (1, 4))
    wanted = (least + most) / 2
    data = encode_to_bpp(image, codec(), wanted)
    assert least * 7000 / 8 <= len(data) <= wanted * 7000 / 8
    assert len(encode_to_bpp(image, codec(), 60)) == round(most * 7000 / 8)
    with pytest.raises(InputError, match="too few: this picture needs"):
        encode_to_bpp(image, codec(), least * 0.9)


def test_a_wanted_likeness_is_met_from_above() -> None:
    image = photograph()
    reached = [psnr(pixels(decode(encode(image, codec(), quality=q), codec())), pixels(image)) for q in (1, 2, 3, 4)]
    best = reached.index(max(reached))
    assert best < 3  # with these weights, as of flat pictures with any, quality 4 is not the best
    for wanted in (reached[3], reached[best]):
        data = encode_to_psnr(image, codec(), wanted)
        assert psnr(pixels(decode(data, codec())), pixels(image)) >= wanted
    with pytest.raises(InputError, match=f"more than this model reaches: {reached[best]:.2f} with quality {best + 1}"):
        encode_to_psnr(image, codec(), 90)


class Enough(Exception):
    """Raised by who looks on."""


@pytest.mark.parametrize("kind", ["size", "likeness"])
def test_a_search_tells_how_far_it_is_and_can_be_stopped(kind: str) -> None:
    image = photograph(300, 200)
    files = [encode(image, codec(), quality=quality, layout=SMALL_TILES) for quality in (1, 4)]
    if kind == "size":
        search = partial(encode_to_bpp, bpp=sum(map(len, files)) * 4 / 60_000)
    else:
        search = partial(encode_to_psnr, wanted=psnr(pixels(decode(files[1], codec())), pixels(image)))
    seen: list[tuple[float, int]] = []
    data = search(image, codec(), layout=SMALL_TILES, progress=lambda *now: seen.append(now))
    done = [now[0] for now in seen]
    assert done == list(range(1, len(seen) + 1)) and len({now[1] for now in seen}) == 1
    assert len(seen) <= seen[-1][1] and (kind == "likeness" or len(seen) > seen[-1][1] / 2)
    assert search(image, codec(), layout=SMALL_TILES, jobs=2) == data

    def stop(done: float, _: int) -> None:
        if done > 5:
            raise Enough

    for jobs in (1, 2):
        with pytest.raises(Enough):
            search(image, codec(), layout=SMALL_TILES, jobs=jobs, progress=stop)


@pytest.mark.parametrize("quality", [0.9, 4.1, float("nan")])
def test_a_quality_the_model_does_not_have_is_refused(quality: float) -> None:
    with pytest.raises(InputError, match="this model has 1 to 4"):
        encode(photograph(), codec(), quality=quality)


def test_pictures_of_other_modes_are_refused() -> None:
    with pytest.raises(InputError, match="mode RGBA"):
        encode(photograph().convert("RGBA"), codec())


def test_another_model_is_refused() -> None:
    data = encode(photograph(), codec())
    other = Codec(codec().model, ExactTables.of(exact_tables.make(codec().model), codec().model.config), "ff" * 32)
    with pytest.raises(
        WrongModelError, match=r"give the model it was made with \(--model NAME, or the FOLDER where it was kept\)"
    ):
        decode(data, other)


def test_a_quality_beyond_the_model_is_refused() -> None:
    header, tiles = bitstream.read(encode(photograph(), codec(), quality=4))
    with pytest.raises(WrongModelError):
        decode(bitstream.write(replace(header, quality=header.quality + 1), tiles), codec())


def test_what_passes_every_checksum_but_says_something_else_is_refused() -> None:
    header, (tile,) = bitstream.read(encode(photograph(), codec(), quality=4))
    with pytest.raises(DamagedError):
        decode(bitstream.write(header, [replace(tile, latents=tile.latents ^ 1)]), codec())
    random = np.random.default_rng(0)
    for _ in range(20):
        altered = bytearray(tile.payload)
        altered[random.integers(len(altered))] ^= int(random.integers(1, 256))
        with pytest.raises(BitstreamError):
            decode(bitstream.write(header, [Tile(bytes(altered), tile.latents)]), codec())
    for payload in (b"", b"\xff" * 8, random.bytes(len(tile.payload) // 4 * 4), tile.payload * 2):
        with pytest.raises(BitstreamError):
            decode(bitstream.write(header, [Tile(payload, zlib.crc32(payload))]), codec())


def test_a_wider_grid_or_another_size_than_the_encoder_had_is_noticed() -> None:
    header, tiles = bitstream.read(encode(photograph(), codec(), quality=4))
    for changed in (replace(header, grid=1), replace(header, width=129), replace(header, height=1000)):
        with pytest.raises(BitstreamError):
            decode(bitstream.write(changed, tiles * len(changed.layout.boxes(changed.width, changed.height))), codec())
