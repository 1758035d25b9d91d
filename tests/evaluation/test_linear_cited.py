"""SimSiam's linear evaluation, against its published settings, by hand and as a plain loop of torch's SGD."""

import pytest
import torch
from torch.nn import functional as F

from hf_essl.evaluation.linear_cited import rate_of_epoch, train_cited


def blobs(count=300, dimensions=8, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = 3 * torch.randn(classes, dimensions, generator=generator)
    return means[labels] + torch.randn(count, dimensions, generator=generator), labels


def test_the_rate_of_each_epoch_by_hand():
    rates = [rate_of_epoch(epoch, 90) for epoch in range(90)]
    assert rates[0] == 0.8
    assert (rates[30], rates[45], rates[60]) == pytest.approx((0.6, 0.4, 0.2))
    assert rates[89] == pytest.approx(0.000244, abs=1e-6)
    assert sum(rates) == pytest.approx(0.8 * 45.5)  # the cosines of 1 to 89 cancel


@pytest.mark.parametrize(("images", "batches"), [(2_048, [2_048]), (5_000, [2_048, 2_048, 904])])
def test_90_epochs_of_all_images_in_batches_of_2048(images, batches, monkeypatch):
    """Steps are 90 times the images / 2,048, rounded up: 56,340 for ImageNet's 626 batches."""
    sizes, calls = [], []
    original = F.cross_entropy
    monkeypatch.setattr(
        F, "cross_entropy", lambda scores, labels: sizes.append(len(labels)) or original(scores, labels)
    )

    def augmented():
        calls.append(len(sizes))
        return blobs(images)

    train_cited(augmented)
    assert sizes == 90 * batches
    assert calls == [epoch * len(batches) for epoch in range(90)]  # new crops before each epoch


def by_hand(epochs, start, rows, labels, orders, batch_size, rate):
    """The protocol in torch's own SGD: each gradient is scaled by 0.001 |w| / |g| first, except where w is zero."""
    weight, bias = start.clone().requires_grad_(), torch.zeros(len(start), requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=rate, momentum=0.9, weight_decay=0)
    for epoch, order in zip(range(epochs), orders, strict=True):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * epoch / epochs)).item())
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            optimizer.zero_grad()
            F.cross_entropy(rows[batch] @ weight.T + bias, labels[batch]).backward()
            for parameter in (weight, bias):
                length = parameter.detach().norm()
                if length > 0:
                    parameter.grad *= 0.001 * length / (parameter.grad.norm() + 1e-8)
            optimizer.step()
    return weight.detach(), bias.detach()


def test_equals_a_plain_loop_with_layer_wise_rates():
    rows, labels = blobs()
    epochs, seed = 7, 3
    generator = torch.Generator().manual_seed(seed)
    start = torch.empty(4, 8).normal_(std=0.01, generator=generator)
    orders = [torch.randperm(300, generator=generator) for _ in range(epochs)]
    expected = by_hand(epochs, start, rows, labels, orders, batch_size=128, rate=20.0)
    found = train_cited(lambda: (rows, labels), epochs=epochs, batch_size=128, learning_rate=20.0, seed=seed)
    torch.testing.assert_close(found.linear.weight, expected[0])
    torch.testing.assert_close(found.linear.bias, expected[1])
    assert (expected[0] - start).norm() > 0.1 * start.norm()


def test_features_are_used_as_they_are():
    rows, labels = blobs()
    found = train_cited(lambda: (rows, labels), epochs=2)
    assert not found.mean.any() and (found.std == 1).all()
    scores = rows @ found.linear.weight.T + found.linear.bias
    assert torch.equal(found.predict(rows), scores.argmax(dim=1))


def test_first_weights_are_small_normal_numbers_and_nothing_else_is_random():
    rows, labels = torch.randn(16, 4096, generator=torch.Generator().manual_seed(0)), torch.arange(16)
    state = torch.get_rng_state()
    first = train_cited(lambda: (rows, labels), epochs=1, learning_rate=1e-9, seed=5)
    assert first.linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert first.linear.weight.mean().item() == pytest.approx(0, abs=1e-4)
    assert torch.equal(torch.get_rng_state(), state)
    again = train_cited(lambda: (rows, labels), epochs=1, learning_rate=1e-9, seed=5)
    other = train_cited(lambda: (rows, labels), epochs=1, learning_rate=1e-9, seed=6)
    assert torch.equal(again.linear.weight, first.linear.weight)
    assert not torch.equal(other.linear.weight, first.linear.weight)


def test_it_learns_with_enough_steps_and_reports_each_epoch():
    rows, labels = blobs()
    lines = []
    found = train_cited(lambda: (rows, labels), epochs=60, batch_size=16, report=lines.append)
    assert (found.predict(rows) == labels).float().mean() > 0.95
    assert len(lines) == 60 and lines[-1].startswith("epoch 60/60  loss ")
    assert float(lines[-1].split()[-1]) < 0.3 * float(lines[0].split()[-1])


def test_refusals():
    rows, labels = blobs()
    with pytest.raises(ValueError, match="epochs and batch_size are 0 and 2048"):
        train_cited(lambda: (rows, labels), epochs=0)
    with pytest.raises(ValueError, match="train features are not finite"):
        train_cited(lambda: (rows * torch.nan, labels))
    with pytest.raises(ValueError, match=r"train labels have shape \(299,\) for 300 features"):
        train_cited(lambda: (rows, labels[1:]))
