import pytest
import torch

from semhitok.errors import DataError
from semhitok.evaluate import probes
from semhitok.evaluate.probes import knn_accuracy, linear_probe, pooled


def clusters(noise, train=400, val=400, classes=5, width=12):
    """Points about class means, in features of very different scale, with labels 10, 11, ..."""
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (train + val,), generator=generator)
    points = means[labels] + noise * torch.randn(train + val, width, generator=generator)
    points, labels = points * torch.logspace(-2, 2, width), labels + 10
    return points[:train], labels[:train], points[train:], labels[train:]


@pytest.mark.parametrize("probe", [linear_probe, knn_accuracy])
def test_separable_classes_are_found(probe):
    assert probe(*clusters(noise=0.01)) == 1.0


@pytest.mark.parametrize("probe", [linear_probe, knn_accuracy])
def test_shuffled_labels_leave_chance(probe):
    train_x, train_y, val_x, val_y = clusters(noise=0.01)
    shuffled = train_y[torch.randperm(len(train_y), generator=torch.Generator().manual_seed(0))]
    assert probe(train_x, shuffled, val_x, val_y) < 0.5


def test_fit_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    train_x, train_y, val_x, _ = clusters(noise=1.0)
    mean, deviation = train_x.mean(dim=0), train_x.std(dim=0)
    train, val = (train_x - mean) / deviation, (val_x - mean) / deviation
    penalty = 1e-2
    weights = probes._fit(train, train_y - 10, penalty, torch.zeros(5, 13))
    other = LogisticRegression(C=1 / (penalty * len(train)), tol=1e-8, max_iter=1000)
    other.fit(train.numpy(), train_y.numpy())
    expected = torch.from_numpy(other.predict_proba(val.numpy())).float()
    assert torch.allclose(probes._scores(val, weights).softmax(dim=1), expected, atol=2e-3)


def test_linear_probe_is_as_good_as_the_best_penalty_and_repeatable():
    from sklearn.linear_model import LogisticRegression

    data = clusters(noise=1.0)
    train_x, train_y, val_x, val_y = (t.numpy() for t in data)
    mean, deviation = train_x.mean(axis=0), train_x.std(axis=0)
    train, val = (train_x - mean) / deviation, (val_x - mean) / deviation
    best = max(
        LogisticRegression(C=1 / (p * len(train)), max_iter=1000)
        .fit(train, train_y)
        .score(val, val_y)
        for p in probes.PENALTIES
    )
    accuracy = linear_probe(*data)
    assert 0.5 < best < 0.99
    assert accuracy == pytest.approx(best, abs=0.02)
    assert linear_probe(*data) == accuracy


def test_a_constant_feature_changes_nothing():
    train_x, train_y, val_x, val_y = clusters(noise=1.0)
    with_constant = torch.cat([train_x, torch.full((len(train_x), 1), 0.1)], dim=1)
    val_drifted = torch.cat([val_x, torch.full((len(val_x), 1), 9.0)], dim=1)
    expected = linear_probe(train_x, train_y, val_x, val_y)
    assert linear_probe(with_constant, train_y, val_drifted, val_y) == expected


def test_neighbours_go_by_angle():
    train_x = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 9.0]] * 6)
    train_y = torch.tensor([0] * 6 + [1] * 6)
    near_in_space_but_not_in_angle = torch.tensor([[0.1, 0.5]])
    assert knn_accuracy(train_x, train_y, near_in_space_but_not_in_angle, torch.tensor([1]), 5) == 1


def test_a_class_that_train_lacks_is_missed():
    train_x, train_y, val_x, val_y = clusters(noise=0.01)
    absent = val_y.clone()
    absent[: len(absent) // 2] = 99
    assert linear_probe(train_x, train_y, val_x, absent) == 0.5
    assert knn_accuracy(train_x, train_y, val_x, absent) == 0.5


def test_too_little_data():
    x, y = torch.rand(12, 3), torch.zeros(12, dtype=torch.int64)
    with pytest.raises(DataError, match="12 training pictures of 1 classes; at least 10 of 2"):
        linear_probe(x, y, x, y)
    with pytest.raises(DataError, match="no val pictures"):
        knn_accuracy(x, torch.arange(12), x[:0], y[:0])


def test_pooling_averages_the_grid():
    grid = torch.arange(8.0).view(1, 2, 2, 2)
    assert pooled(grid).tolist() == [[3.0, 4.0]]
