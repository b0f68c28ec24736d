"""Measures of representations against closed forms and double loops over the paper's equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_robust.contracts import ContractError
from lightning_robust.functional.representation import (
    SHARES,
    attribution_entropy,
    background_attribution,
    class_separation,
    compressibility,
    conflicting_loss_ratio,
    logit_norm,
    prunability,
    pruned,
    selectivity,
    sparsity,
    weight_norm,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 2, 2, 0, 3, 2, 3, 0, 2])  # nobody has label 1


# --- compressibility ------------------------------------------------------------------------------


def test_sparsity_counts_exact_zeros():
    assert sparsity(torch.tensor([0.0, -0.0, 1e-30, 2.0])) == 0.5


def test_compressibility_in_closed_form():
    one_hot, constant = torch.eye(100)[7], 3 * torch.ones(100)
    assert compressibility(one_hot) == 1
    assert compressibility(constant).item() == pytest.approx(1 - math.sqrt(0.9), abs=1e-6)
    assert compressibility(constant).item() == pytest.approx(0.0513, abs=5e-5)
    assert compressibility(constant, q=1, kappa=0.25).item() == pytest.approx(0.25)
    assert compressibility(constant, kappa=1) == 1
    assert compressibility(constant, kappa=0) == 0
    assert compressibility(torch.zeros(10)) == 1


@pytest.mark.parametrize("q", [0.5, 1, 2, 3])
@pytest.mark.parametrize("kappa", [0.1, 0.33, 0.5])
def test_compressibility_is_the_infimum_of_its_definition(q, kappa):
    """Over every choice of ceil(kappa d) entries; the kept ones are best approximated exactly."""
    for vector in random(4, 7):
        kept = math.ceil(kappa * 7)
        errors = []
        for left_out in torch.combinations(torch.arange(7), 7 - kept):
            errors.append(float((vector[left_out].abs() ** q).sum() ** (1 / q)))
        expected = 1 - min(errors) / float((vector.abs() ** q).sum() ** (1 / q))
        assert compressibility(vector, q, kappa).item() == pytest.approx(expected)


def test_compressibility_keeps_exactly_a_tenth_and_knows_no_scale():
    vector = torch.cat([torch.ones(3), torch.zeros(27)])  # .1 * 30 is more than 3 in floating point
    assert compressibility(vector) == 1
    rows = random(5, 30)
    torch.testing.assert_close(compressibility(1e-200 * rows), compressibility(rows))


# --- pruning --------------------------------------------------------------------------------------


def a_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3)
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_units_with_the_smallest_norm_go_and_the_head_stays(share):
    network = a_network()
    before = [value.clone() for value in network.state_dict().values()]
    smaller = pruned(network, share)
    assert smaller.state_dict().keys() == network.state_dict().keys()
    for value, found in zip(network.state_dict().values(), before, strict=True):
        assert torch.equal(value, found)
    for place in (0, 3):
        norms = network[place].weight.detach().flatten(1).abs().sum(1)
        gone = set(norms.argsort()[: round(share * len(norms))].tolist())
        for unit in range(len(norms)):
            for name in ("weight", "bias"):
                there = getattr(network[place], name)[unit]
                expected = torch.zeros_like(there) if unit in gone else there
                assert torch.equal(getattr(smaller[place], name)[unit], expected)
    assert torch.equal(smaller[5].weight, network[5].weight)


def test_a_pruned_unit_is_silent_also_in_a_transposed_convolution():
    torch.manual_seed(1)
    network = nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.Flatten(2), nn.Linear(25, 2))
    maps = pruned(network, 0.5)[0](torch.randn(1, 2, 3, 3))
    assert int((maps == 0).flatten(2).all(2).sum()) == 2


def test_prunability_is_the_accuracy_kept():
    """A head that votes by the largest input: pruning takes classes away one by one."""
    network = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    with torch.no_grad():
        network[0].weight.copy_(torch.diag(torch.arange(1.0, 11.0)))
        network[2].weight.copy_(torch.eye(10))
        network[0].bias.zero_()
        network[2].bias.copy_(torch.linspace(0.0, 0.01, 10))

    def accuracy(net):
        return float((net(torch.eye(10)).argmax(1) == torch.arange(10)).float().mean())

    kept = prunability(network, accuracy)
    # With nothing left of a class, the bias says class 9.
    torch.testing.assert_close(kept, 1 - torch.tensor(SHARES, dtype=torch.float64))
    assert kept.sum().item() == pytest.approx(4.5)


def test_pruning_refuses_what_it_cannot_prune():
    with pytest.raises(ContractError, match=r"share.*1\.5"):
        pruned(a_network(), 1.5)
    with pytest.raises(ContractError, match=r"head='tail'.*0, 3, 5"):
        pruned(a_network(), 0.5, head="tail")
    with pytest.raises(ContractError, match="Sequential has none to prune"):
        pruned(nn.Sequential(nn.Linear(2, 2)), 0.5)
    assert torch.equal(pruned(a_network(), 1.0, head="3")[5].weight, torch.zeros(3, 20))


# --- what neurons separate ------------------------------------------------------------------------


def test_class_separation_in_closed_form():
    """Identical within, orthogonal between: no distance within."""
    assert class_separation(torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2])) == 1
    same = class_separation(torch.ones(4, 5), torch.tensor([0, 0, 1, 1]))
    assert same.isnan()
    mixed = class_separation(torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 0, 1, 1]))
    assert mixed.item() == pytest.approx(0)
    assert class_separation(torch.zeros(0, 2), LABELS[:0]).isnan()


def test_class_separation_is_the_double_sum_of_the_paper():
    features = random(9, 5)
    classes = LABELS.unique().tolist()
    number = len(classes)
    within = total = 0.0
    for m in range(9):
        for n in range(9):
            j, k = int(LABELS[m]), int(LABELS[n])
            distance = 1 - float(F.cosine_similarity(features[m], features[n], dim=0))
            sizes = int((j == LABELS).sum()) * int((k == LABELS).sum())
            total += distance / (number**2 * sizes)
            within += distance / (number * sizes) if j == k else 0.0
    assert class_separation(features, LABELS).item() == pytest.approx(1 - within / total)


def test_selectivity_in_closed_form():
    fires_for_one_class = torch.tensor([[2.0], [3.0], [0.0], [0.0]])
    labels = torch.tensor([1, 1, 0, 2])
    assert selectivity(fires_for_one_class, labels).item() == pytest.approx(1, abs=1e-6)
    assert selectivity(torch.ones(4, 1), labels) == 0
    assert selectivity(torch.zeros(4, 1), labels) == 0
    assert selectivity(torch.ones(2, 1), torch.tensor([1, 1])).isnan()
    assert selectivity(torch.ones(0, 1), labels[:0]).isnan()


def test_selectivity_is_the_papers_index_neuron_by_neuron():
    features = random(9, 6).clamp(min=0)
    found = selectivity(features, LABELS, epsilon=1e-3)
    for neuron in range(6):
        means, coverage = {}, {}
        for label in LABELS.unique().tolist():
            fired = [float(features[i, neuron]) for i in range(9) if LABELS[i] == label]
            means[label] = sum(fired) / len(fired)
            coverage[label] = sum(value > 0 for value in fired) / len(fired)
        best = max(means, key=means.get)
        rest = sum(mean for label, mean in means.items() if label != best) / (len(means) - 1)
        expected = coverage[best] * (means[best] - rest) / (means[best] + rest + 1e-3)
        assert found[neuron].item() == pytest.approx(expected)


def test_half_precision_is_summed_in_single_precision():
    features = random(3000, 2).abs().half() + 1
    labels = torch.arange(3000) % 2
    for measure in (class_separation, selectivity):
        exact = measure(features.double(), labels)
        torch.testing.assert_close(measure(features, labels).double(), exact, atol=1e-4, rtol=1e-3)


def test_rows_that_do_not_fit_are_refused():
    for measure in (class_separation, selectivity):
        with pytest.raises(ContractError, match=r"\(3, 2, 2\) and \(3,\)"):
            measure(torch.zeros(3, 2, 2), torch.zeros(3, dtype=torch.long))


# --- attributions and losses ----------------------------------------------------------------------


def test_entropy_of_a_uniform_map_is_the_logarithm_of_its_size():
    maps = torch.stack([torch.full((3, 4, 5), -0.2), torch.eye(60)[2].view(3, 4, 5)])
    assert attribution_entropy(maps).tolist() == pytest.approx([math.log(60), 0])
    assert attribution_entropy(torch.zeros(1, 4)).isnan().all()


def test_entropy_is_that_of_the_absolute_values():
    for values, found in zip(random(3, 8), attribution_entropy(random(3, 8)), strict=True):
        shares = [abs(float(value)) / float(values.abs().sum()) for value in values]
        assert found.item() == pytest.approx(-sum(p * math.log(p) for p in shares))


def test_background_share_pixel_by_pixel():
    maps, background = random(3, 2, 4, 5), random(3, 4, 5, seed=1) > 0
    for one, mask, found in zip(
        maps, background, background_attribution(maps, background), strict=True
    ):
        inside = whole = 0.0
        for c in range(2):
            for y in range(4):
                for x in range(5):
                    value = abs(float(one[c, y, x]))
                    whole += value
                    inside += value if mask[y, x] else 0.0
        assert found.item() == pytest.approx(inside / whole)
    torch.testing.assert_close(
        background_attribution(maps[:, 0], background),
        background_attribution(maps[:, :1], background),
    )
    for wrong in (background[:, :2], background.double()):
        with pytest.raises(ContractError, match="background"):
            background_attribution(maps, wrong)


def test_loss_ratio_of_the_conflicting():
    losses, conflicting = torch.tensor([0.5, 1.5, 6.0]), torch.tensor([False, False, True])
    assert conflicting_loss_ratio(losses, conflicting) == 0.75
    assert conflicting_loss_ratio(losses, conflicting, "aligned") == 3
    with pytest.raises(ContractError, match="of must be"):
        conflicting_loss_ratio(losses, conflicting, "everything")
    with pytest.raises(ContractError, match=r"bool of shape \(3,\)"):
        conflicting_loss_ratio(losses, conflicting.long())


def test_norms():
    network, logits = a_network(), random(4, 3)
    squares = sum(float((value.detach() ** 2).sum()) for value in network.parameters())
    assert weight_norm(network).item() == pytest.approx(math.sqrt(squares))
    expected = [math.sqrt(sum(float(z) ** 2 for z in row)) for row in logits]
    assert logit_norm(logits).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("argument", "value"), [("q", 0), ("kappa", 1.1)])
def test_bad_arguments_of_compressibility_are_refused(argument, value):
    with pytest.raises(ContractError, match=argument):
        compressibility(torch.ones(3), **{argument: value})
