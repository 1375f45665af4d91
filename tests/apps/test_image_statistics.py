import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from belvedere.apps import image_statistics
from belvedere.apps.evaluate import frechet_distance, gaussian_distance
from belvedere.apps.image_statistics import InceptionScore, Moments, kernel_distance, precision_recall


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_moments_of_blocks_are_those_of_all_far_from_zero() -> None:
    """A sum of squares would lose every digit of a spread of 1 around 1e8."""
    rows = normal(103, 5) + 1e8
    moments = Moments(5)
    for block in rows.split([1, 40, 2, 60]):
        moments.add(block)
    mean, covariance = moments.gaussian()
    torch.testing.assert_close(mean, rows.mean(0), rtol=1e-15, atol=0)
    torch.testing.assert_close(covariance, torch.cov(rows.T), rtol=1e-7, atol=1e-7)


def test_frechet_distance_against_scipy() -> None:
    a, b = normal(300, 12) @ normal(12, 12, seed=1), normal(200, 12, seed=2) @ normal(12, 12, seed=3) + 0.5
    first, second = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("first", "second"), [(20, 20), (20, 400), (400, 20)])
def test_frechet_distance_of_fewer_pictures_than_features_is_exact(first: int, second: int) -> None:
    """tr((A B)^(1/2)) is the sum of the singular values of X Y', where A = X'X and B = Y'Y: a small matrix."""
    scale = torch.logspace(0.5, -3, 200, dtype=torch.float64)
    a, b = normal(first, 200) * scale, normal(second, 200, seed=1) * scale
    x, y = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (a, b))
    traces = (x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()).item()
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + traces
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-11)
    assert abs(frechet_distance(a, a)) < 1e-11


def test_frechet_distance_of_pictures_that_are_all_alike() -> None:
    a, b = torch.ones(20, 5), torch.randn(30, 5)
    assert frechet_distance(a, a + 2) == pytest.approx(20)
    expected = (b.double().mean(0) - 1).square().sum() + torch.cov(b.double().T).trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item())


@pytest.mark.slow
def test_frechet_distance_of_the_size_of_fid() -> None:
    """Equal up to a factor: tr(A) (1 - f)^2 for B = f^2 A, with rank 300 of 2048."""
    x = normal(300, 2048)
    covariance, mean = x.T @ x / 300, torch.zeros(2048, dtype=torch.float64)
    found = gaussian_distance(mean, covariance, mean, covariance * 1.5**2)
    assert found == pytest.approx(covariance.trace().item() * 0.25, rel=1e-9)


def test_inception_score_by_hand() -> None:
    """Certain and in two classes by halves: KL is log 2 and the score 2. Always the same, or unsure: 1."""
    certain = 1000 * torch.eye(2).repeat(20, 1)
    for logits, expected in ((certain, 2), (1000 * torch.eye(2)[:1].repeat(40, 1), 1), (torch.zeros(40, 2), 1)):
        score = InceptionScore(40, 2)
        for block in logits.split(7):
            score.add(block)
        assert score.score() == pytest.approx((expected, 0), abs=1e-12)


def test_inception_score_of_parts_against_their_definition() -> None:
    """43 pictures: part k holds those with i * 10 // 43 == k."""
    logits = normal(43, 6) * 2
    score = InceptionScore(43, 6)
    for block in logits.split(5):
        score.add(block)
    scores = []
    for k in range(10):
        p = logits[[i for i in range(43) if i * 10 // 43 == k]].softmax(1)
        scores.append((p * (p / p.mean(0)).log()).sum(1).mean().exp().item())
    assert score.score() == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_inception_score_of_pictures_one_class_after_another() -> None:
    """In their order each part would be of one class, whose score is 1."""
    logits = 1000 * torch.eye(4).repeat_interleave(200, 0)
    score = InceptionScore(800, 4, by_class=True)
    for block in logits.split(7):
        score.add(block)
    assert score.score()[0] == pytest.approx(4, rel=0.05)


def test_precision_and_recall_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_statistics, "BLOCK", 16)
    made, real = normal(50, 3).float(), (normal(70, 3, seed=1) * 2 + 100 - 99.5).float()

    def share(rows: Tensor, centres: Tensor) -> float:
        radii = torch.cdist(centres, centres).sort(1).values[:, 3]  # the nearest is itself
        return (torch.cdist(rows, centres) <= radii).any(1).double().mean().item()

    found = precision_recall(made, real)
    assert (found.precision, found.recall) == pytest.approx((share(made, real), share(real, made)), abs=1e-9)
    assert 0.1 < found.recall < found.precision < 1.0


def test_precision_and_recall_of_extremes() -> None:
    """Made pictures in one of two clusters: all look real, half of the real ones are covered."""
    cluster = normal(40, 4).float()
    real = torch.cat((cluster, normal(40, 4, seed=1).float() + 1000))
    found = precision_recall(cluster, real)
    assert (found.precision, found.recall) == (1.0, 0.5)
    apart = precision_recall(cluster - 1000, real)
    assert (apart.precision, apart.recall) == (0.0, 0.0)


def test_kernel_distance_by_hand() -> None:
    """Of ones and zeros in one dimension: (1 + 1)^3 + 1 - 2 * 1 = 7, in every part."""
    assert kernel_distance(torch.ones(45, 1), torch.zeros(37, 1)) == pytest.approx((7, 0))


def test_kernel_distance_of_normal_numbers() -> None:
    """In one dimension it is 3 (m1 - m1')^2 + 3 (m2 - m2')^2 + (m3 - m3')^2 of the raw moments: 3 + 3 + 16."""
    a, b = normal(30_000, 1), normal(25_000, 1, seed=1) + 1
    found = kernel_distance(a, b)
    assert abs(found.value - 22) < 4 * found.error < 4


def test_the_error_of_the_kernel_distance_is_one() -> None:
    """Of equal distributions the value lies about 0, within errors: half of 40 tries within 0.674 of them."""
    tries = [kernel_distance(normal(400, 3, seed=i), normal(400, 3, seed=1000 + i)) for i in range(40)]
    ratios = torch.tensor([found.value / found.error for found in tries])
    assert 10 <= int((ratios.abs() < 0.674).sum()) <= 30 and abs(ratios.mean()) < 0.6


def test_no_small_count_is_a_fault() -> None:
    a, b = normal(20, 300).float(), normal(20, 300, seed=1).float()
    found = kernel_distance(a, b), precision_recall(a, b)
    assert np.isfinite([*found[0], found[1].precision, found[1].recall]).all()
