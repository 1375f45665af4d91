"""The exact path: the same integers whatever threads, layout and batch; near the floats; hostile symbols; streams."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.compression.entropy import MAX_VALUE, CodingTables, Reader, Writer
from belvedere.compression.exact import ExactPath, floats, mean_of_map, quantise, spread
from belvedere.compression.exact_tables import FRACTION, LIMIT, ExactTables, make
from belvedere.compression.official_tables import SCALES
from belvedere.compression.regions import Grid
from belvedere.compression.segpic import SegPIC
from belvedere.errors import InputError
from tests.compression.test_segpic import small

Maps = list[Tensor]


def lively(**changes: int) -> SegPIC:
    """A small model whose numbers are about as large as a trained one's."""
    model = small(**changes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 4:
                p.mul_(1.7)
            if name.startswith("channel_context.scales") and name.endswith("8.bias"):
                p.add_(1.0)
    return model


MODEL = lively()
TABLES = ExactTables.of(make(MODEL), MODEL.config)
PATH = ExactPath(MODEL, TABLES)
CODING = {name: CodingTables(table) for name, table in TABLES.numbers.items()}


def drawn(most: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed))


def symbols(batch: int = 1, most: int = 9, height: int = 2, width: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return symbols of prototypes2, z and y."""
    sizes = ((4, 2, 2), (6, height, width), (12, 4 * height, 4 * width))
    z, y, x = (drawn(most, batch, *size, seed=seed) for seed, size in enumerate(sizes))
    return z, y, x


def everything(path: ExactPath, codes: Tensor, z: Tensor, y: Tensor) -> Maps:
    """Return all integers of the path of some symbols."""
    seen: Maps = []
    parts = y.chunk(3, 1)

    def code(i: int, mean: Tensor, index: Tensor) -> Tensor:
        seen.extend((mean, index))
        return parts[i]

    prototypes = path.prototypes(codes)
    maps = path.hyper(z, prototypes)
    return [prototypes, *maps, path.latent(*maps, code), *seen]


def same(ours: Maps, theirs: Maps) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_one_and_two_threads() -> None:
    drawn_symbols = symbols(height=4, width=4)
    with threads(1):
        one = everything(PATH, *drawn_symbols)
    with threads(2):
        assert same(one, everything(PATH, *drawn_symbols))


def test_a_batch_is_its_pictures_one_by_one() -> None:
    together = symbols(4)
    alone = [everything(PATH, *(tensor[i : i + 1] for tensor in together)) for i in range(4)]
    assert same(everything(PATH, *together), [torch.cat(parts) for parts in zip(*alone, strict=True)])


def test_channels_last() -> None:
    usual = symbols(2)
    last = [tensor.contiguous(memory_format=torch.channels_last) for tensor in usual]
    assert same(everything(PATH, *usual), everything(PATH, *last))


def test_the_order_of_sums_does_not_matter() -> None:
    """Channels between two layers in another order: floats would differ."""
    model = lively()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for transform in (model.means_rat, model.scales_rat):
            for name, permuted in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
                parameter = transform.get_parameter(f"features.{name}")
                parameter.copy_(parameter.index_select(permuted, order))
    assert same(everything(PATH, *symbols()), everything(ExactPath(model, TABLES), *symbols()))


def test_weights_of_half_precision_are_the_same_in_float32() -> None:
    half = lively().half()
    wide = lively().half().float()
    assert same(everything(ExactPath(half, TABLES), *symbols()), everything(ExactPath(wide, TABLES), *symbols()))


@pytest.mark.parametrize("most", [9, 10**5, MAX_VALUE])
def test_whatever_the_symbols_all_are_integers_in_bounds(most: int) -> None:
    maps = everything(PATH, *symbols(2, most))
    for map_ in maps:
        assert torch.equal(map_, map_.round()) and map_.abs().max() <= LIMIT
    assert all(index.min() >= 0 and index.max() < SCALES for index in maps[5::2])


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_symbols_of_all(sign: int) -> None:
    hostile = [torch.full_like(tensor, sign * MAX_VALUE) for tensor in symbols()]
    assert all(map_.abs().max() <= LIMIT for map_ in everything(PATH, *hostile))


def test_symbols_beyond_the_bounds_are_at_them() -> None:
    codes, z, _ = symbols(most=MAX_VALUE)
    most = LIMIT // 2**FRACTION
    prototypes = PATH.prototypes(codes)
    assert torch.equal(prototypes, PATH.prototypes(codes.clamp(-most, most)))
    assert same(list(PATH.hyper(z, prototypes)), list(PATH.hyper(z.clamp(-most, most), prototypes)))


def test_means_are_rounded_half_up() -> None:
    x = torch.tensor([[1, 2, 1, 2], [-1, -2, -1, -2], [0, 1, 0, 0], [-3, -3, -3, 0]]).double().view(1, 4, 2, 2)
    assert mean_of_map(x).flatten().tolist() == [2, -1, 0, -2]


def test_near_the_floats() -> None:
    codes, z, _ = symbols(most=3)
    y = 4 * torch.randn(1, 12, 8, 12, generator=torch.Generator().manual_seed(3))
    parts, place = y.chunk(3, 1), Grid(2, [1])
    with torch.no_grad():
        prototypes = MODEL.prototypes2.decoder(codes + MODEL.prototypes2.bottleneck.medians)
        means, scales = MODEL.hyper_synthesis(z + MODEL.bottleneck.medians, prototypes, place)
    exact_prototypes = PATH.prototypes(codes)
    exact_means, exact_scales = PATH.hyper(z, exact_prototypes)
    for ours, theirs in ((exact_prototypes, prototypes), (exact_means, means), (exact_scales, scales)):
        assert (floats(ours) - theirs).norm() < 5e-3 * theirs.norm()
    indices: dict[str, Maps] = {"exact": [], "float": []}
    values: Maps = []

    def rounded(i: int, mean: Tensor, scale: Tensor) -> Tensor:
        indices["float"].append(torch.searchsorted(TABLES.scales, scale * 2**FRACTION))
        values.append(torch.round(parts[i] - mean))
        return values[-1] + mean

    def forced(i: int, mean: Tensor, index: Tensor) -> Tensor:
        indices["exact"].append(index)
        return values[i].long()

    with torch.no_grad():
        latent = MODEL.channel_context(means, scales, rounded)
    assert torch.allclose(floats(PATH.latent(exact_means, exact_scales, forced)), latent, atol=0.02)
    ours, theirs = (torch.cat(maps) for maps in indices.values())
    assert (ours - theirs).abs().max() <= 1 and (ours != theirs).double().mean() < 0.02
    assert ours.unique().numel() > 3


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (4, 28), (20, 36), (64, 44)])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
def test_prototypes_are_spread_as_in_the_network(size: tuple[int, int], side: int) -> None:
    prototypes = drawn(99, 2, 3, side, side).double()
    assert torch.equal(spread(prototypes, *size), F.interpolate(prototypes, size, mode="nearest"))


def test_quantise() -> None:
    x = torch.tensor([0.4, -0.6, 1e9, -1e9, torch.inf])
    assert quantise(x).tolist() == [0, -1, MAX_VALUE, -MAX_VALUE, MAX_VALUE]
    assert floats(torch.tensor([2.0**FRACTION, -1.0])).tolist() == [1.0, -(2.0**-FRACTION)]


def encode(codes: Tensor, z: Tensor, y: Tensor, first: Tensor) -> tuple[bytes, Tensor]:
    """Return the stream of all four parts, and the latent."""
    writer, parts = Writer(), y.chunk(3, 1)

    def code(i: int, mean: Tensor, index: Tensor) -> Tensor:
        found = quantise(parts[i] - floats(mean))
        writer.write(found.flatten().numpy(), index.flatten().numpy(), CODING["y"])
        return found

    for name, tensor in (("prototypes1", first), ("prototypes2", codes), ("z", z)):
        writer.write(tensor.flatten().numpy(), channels(tensor).flatten().numpy(), CODING[name])
    latent = PATH.latent(*PATH.hyper(z, PATH.prototypes(codes)), code)
    return writer.finish(), latent


def decode(path: ExactPath, data: bytes, like: list[Tensor]) -> Maps:
    """Return first prototypes' codes, prototypes2, z and the latent; ``like``: tensors of the first three's shapes."""
    reader = Reader(data)
    names = ("prototypes1", "prototypes2", "z")
    found = [read(reader, channels(tensor), CODING[name]) for name, tensor in zip(names, like, strict=True)]
    maps = path.hyper(found[2], path.prototypes(found[1]))
    latent = path.latent(*maps, lambda i, mean, index: read(reader, index, CODING["y"]))
    reader.finish()
    return [*found, latent]


def channels(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])[:, None, None].expand(x.shape)


def read(reader: Reader, indices: Tensor, tables: CodingTables) -> Tensor:
    return torch.from_numpy(reader.read(indices.flatten().numpy(), tables)).view(indices.shape)


@pytest.mark.parametrize("scale", [1.0, 40.0, 1e5])
def test_a_stream_says_what_the_encoder_had(scale: float) -> None:
    codes, z, _ = symbols(most=30)
    first = drawn(12, 1, 4, 2, 2, seed=7)
    y = scale * torch.randn(1, 12, 8, 12, generator=torch.Generator().manual_seed(3))
    data, latent = encode(codes, z, y, first)
    again = decode(ExactPath(lively(), TABLES), data, [first, codes, z])
    assert same(again, [first, codes, z, latent])
    inside = y.abs() < LIMIT / 2**FRACTION - 1
    assert ((floats(latent) - y)[inside].abs() < 1.01).all()  # half by rounding, half by the residual prediction


def crafted(change: Callable[[SegPIC], Tensor]) -> SegPIC:
    model = small()
    with torch.no_grad():
        change(model)
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.channel_context.residuals[2][4].weight[0, 0, 1, 1].fill_(1e6),
        lambda model: model.scales_rat.taps.bias[3].fill_(2.0**40),
        lambda model: model.hyper_means[0].bias[1].fill_(torch.nan),
        lambda model: model.prototypes2.decoder[1].gamma.fill_(1e3),
    ],
)
def test_models_whose_sums_are_not_exact_are_refused(change: Callable[[SegPIC], Tensor]) -> None:
    with pytest.raises(InputError, match="exact"):
        ExactPath(crafted(change), TABLES)
