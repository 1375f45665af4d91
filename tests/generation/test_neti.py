"""NeTI's mapper: its encodings, truncation, norms and what a config may be. Golden outputs are in parity."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from belvedere.errors import InputError
from belvedere.generation.neti import BasicEncoding, FourierEncoding, NeTIMapper, nested_truncation
from belvedere.seeds import BatchRng

SMALL: dict[str, Any] = {"widths": [6], "layers": 4, "anchors": 5, "hidden": 16, "frequencies": 32}


def small(**config: Any) -> NeTIMapper:
    torch.manual_seed(0)
    return NeTIMapper(**{**SMALL, **config}).eval()


def test_the_published_sizes() -> None:
    assert sum(p.numel() for p in NeTIMapper().parameters()) == 563_616
    assert sum(p.numel() for p in NeTIMapper(bypass=False).parameters()) == 464_544


def test_fourier_codes_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    encoding = FourierEncoding(64, 0.03, 2.0)
    t, layer = torch.tensor([[0.0], [437.5], [999.0]]), torch.arange(16)
    angle = t.double().numpy()[..., None] * encoding.w[:, 0].double().numpy()
    angle = angle + layer.numpy()[:, None] * encoding.w[:, 1].double().numpy()
    want = np.concatenate((np.sin(angle), np.cos(angle)), -1)
    want /= np.linalg.norm(want, axis=-1, keepdims=True)
    got = encoding(t, layer)
    assert got.shape == (3, 16, 128)
    np.testing.assert_allclose(got.numpy(), want, atol=2e-6)


def test_frequencies_have_the_deviations_of_time_and_layer() -> None:
    torch.manual_seed(0)
    time, layer = FourierEncoding(8192, 0.03, 2.0).w.std(0).tolist()
    assert time == pytest.approx(0.03, rel=0.05) and layer == pytest.approx(2.0, rel=0.05)


def test_autocast_does_not_touch_the_encoding() -> None:
    encoding, t, layer = FourierEncoding(64, 0.03, 2.0), torch.tensor([999.0]), torch.tensor([15])
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoding(t, layer)
    assert torch.equal(inside, encoding(t, layer))


def test_basic_codes_span_minus_one_to_one() -> None:
    codes = BasicEncoding(16)(torch.tensor([0, 999])[:, None], torch.tensor([0, 15]))
    assert codes.tolist() == [[[-1, -1], [-1, 1]], [[1, -1], [1, 1]]]
    assert small(encoding="basic")(torch.tensor(5), torch.arange(4)).shape == (4, 12)


@pytest.mark.parametrize(("anchors", "step"), [(5, 200), (3, 333), (10, 100)])
def test_the_first_map_begins_at_the_anchors(anchors: int, step: int) -> None:
    mapper = small(anchors=anchors)
    for row in (0, 1, 4 * anchors - 1):
        code = mapper.encode(torch.tensor(row // 4 * step), torch.tensor(row % 4))
        assert torch.equal(mapper.project_in.weight[row], code)


def test_truncation_keeps_the_first_channels() -> None:
    mapper = small()
    t, layer = torch.tensor([[3.0], [700.0]]), torch.arange(4)
    hidden = mapper.mlp(mapper.project_in(mapper.encode(t, layer)))
    each = torch.tensor([[0, 1, 7, 16], [16, 15, 2, 0]])
    got = mapper(t, layer, each)
    for row in range(2):
        for column in range(4):
            kept = hidden[row, column].clone()
            kept[each[row, column] :] = 0
            torch.testing.assert_close(got[row, column], mapper.head(kept))
    assert torch.equal(mapper(t, layer, 16), mapper(t, layer))
    torch.testing.assert_close(mapper(t, layer, 0), mapper.head.bias.expand(2, 4, -1))
    assert torch.equal(small(nested_dropout=False)(t, layer, 3), small(nested_dropout=False)(t, layer))
    with pytest.raises(InputError, match="truncation 17: must be from 0 to 16"):
        mapper(t, layer, 17)


def test_norms_full_and_half() -> None:
    t, layer, config = torch.tensor([[3.0], [700.0]]), torch.arange(4), {"widths": [6, 10], "target_norms": [0.4, 0.7]}
    for form in ("full", "half"):
        mapper = small(norm_form=form, **config)
        vectors = mapper.vectors(mapper(t, layer))
        assert [(pair.word.shape, pair.bypass.shape) for pair in vectors] == [((2, 4, c),) * 2 for c in (6, 10)]
        for (word, bypass), norm in zip(vectors, (0.4, 0.7), strict=True):
            lengths = word.norm(dim=-1), bypass.norm(dim=-1)
            if form == "half":
                assert all(torch.allclose(length, torch.tensor(norm)) for length in lengths)
            else:
                assert torch.allclose(torch.hypot(*lengths), torch.tensor(norm)) and (lengths[0] < norm).all()


def test_without_a_norm_or_a_bypass() -> None:
    mapper = small(bypass=False)
    output = mapper(torch.tensor(5), torch.arange(4))
    ((word, bypass),) = mapper.vectors(output)
    assert torch.equal(word, output) and bypass is None
    scaled = small(bypass=False, target_norms=[2.0], norm_form="half")(torch.tensor(5), torch.arange(4))
    assert torch.allclose(scaled.norm(dim=-1), torch.tensor(2.0))


def test_starting_at_words() -> None:
    words = [torch.randn(64) * 0.05, torch.randn(96) * 0.1]
    mapper = small(widths=[64, 96])
    mapper.start_at(words)
    for (word, bypass), want in zip(mapper.vectors(mapper(torch.tensor(5), torch.arange(4))), words, strict=True):
        torch.testing.assert_close(word, want.expand(4, -1))
        assert 0.5 < (bypass.norm(dim=-1).mean() / want.norm()) < 2 and not torch.equal(bypass[0], bypass[1])


def test_nested_truncation_is_uniform_where_the_coin_says_so() -> None:
    coin, index = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0))
    drawn = nested_truncation(coin, index, 128, 0.5)
    short = drawn[coin < 0.5]
    assert (drawn[coin >= 0.5] == 128).all() and short.min() == 0 and short.max() == 127
    assert short.float().mean().item() == pytest.approx(63.5, abs=3)
    shared = nested_truncation(torch.tensor([[0.2, 0.7]]), torch.tensor([[0.0, 0.1], [0.999999, 0.3]]), 128, 0.5)
    assert shared.tolist() == [[0, 128], [127, 128]]


def test_truncations_of_a_sample_do_not_depend_on_its_batch_or_on_what_ran_before() -> None:
    mapper, before = small(), torch.get_rng_state()
    both = mapper.draw_truncation(BatchRng(1, 2, [5, 9]))
    alone = mapper.draw_truncation(BatchRng(1, 2, [9]))
    assert both is not None and alone is not None
    assert both.shape == (2, 4) and torch.equal(both[1:], alone)
    assert torch.equal(before, torch.get_rng_state())
    many = mapper.draw_truncation(BatchRng(1, 2, range(200)))
    assert 0.4 < (many < 16).float().mean() < 0.6
    assert len({tuple(row) for row in many.tolist()}) > 150
    assert small(nested_dropout=False).draw_truncation(BatchRng(1, 2, [5])) is None


def test_it_is_saved_with_its_frequencies(tmp_path: Any) -> None:
    mapper = small(target_norms=[0.4])
    mapper.save_pretrained(tmp_path)
    torch.manual_seed(99)
    again = NeTIMapper.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in mapper.state_dict().items())
    torch.testing.assert_close(again(torch.tensor(700), torch.tensor(3)), mapper(torch.tensor(700), torch.tensor(3)))


def test_training_it_moves_every_parameter() -> None:
    mapper = small(target_norms=[0.4])
    before = copy.deepcopy(mapper.state_dict())
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=1e-2)
    (mapper(torch.tensor([[3.0], [700.0]]), torch.arange(4)) - 1).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in mapper.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == before.keys() - {"encode.w"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widths": []}, "widths"),
        ({"widths": [0]}, "widths"),
        ({"widths": 768}, "widths"),
        ({"layers": 0}, "layers 0: must be an integer from 1"),
        ({"layers": True}, "layers True"),
        ({"anchors": 1001}, "anchors 1001"),
        ({"anchors": 1000, "layers": 1024, "frequencies": 8192}, "choose fewer"),
        ({"encoding": "none"}, "encoding 'none': choose from fourier, basic"),
        ({"norm_form": "word"}, "norm_form"),
        ({"sigma_time": 0}, "sigma_time"),
        ({"sigma_layer": "2"}, "sigma_layer"),
        ({"target_norms": [0.4, 0.4]}, "target_norms"),
        ({"target_norms": [float("nan")]}, "target_norms"),
        ({"bypass": 1}, "bypass 1: must be true or false"),
        ({"dropout_probability": 1.5}, "dropout_probability"),
    ],
)
def test_a_bad_config_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        NeTIMapper(**{**SMALL, **config})
