from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust.contracts import ContractError
from lightning_robust.steering import HeadHook, LogitSteering, Steer, class_logits, find_head

BATCHES, SIZE, CLASSES, N = 6, 8, 3, 20


class Net(nn.Module):
    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.body = nn.Linear(5, 16)
        self.head = nn.Linear(16, outputs)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=g)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def data() -> tuple[Tensor, Tensor, list[Tensor]]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(N, 5, generator=g)
    y = torch.randint(CLASSES, (N,), generator=g)
    return x, y, [torch.randperm(N, generator=g)[:SIZE] for _ in range(BATCHES)]


def tables() -> tuple[Tensor, Tensor, Tensor]:
    """Shift (N, C), scale (N,), weight (N,)."""
    g = torch.Generator().manual_seed(2)
    shift = torch.randn(N, CLASSES, generator=g)
    return shift, 0.5 + torch.rand(N, generator=g), 3 * torch.rand(N, generator=g)


def train(net, loss_of, *, steering=None, autocast=False, accumulate=1, compiled=None):
    """A plain loop; ``loss_of(logits, targets, indices)`` is all it knows of the task."""
    x, y, batches = data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = net if compiled is None else compiled
    for step, indices in enumerate(batches):
        if steering is not None:
            steering.begin_batch(indices)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(run(x[indices]), y[indices], indices) / accumulate
        loss.backward()
        if steering is not None:
            steering.end_batch()
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def plain(logits: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def by_hand(logits: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
    shift, scale, weight = tables()
    logits = logits * scale[indices].unsqueeze(1) + shift[indices]
    return (weight[indices] * F.cross_entropy(logits, targets, reduction="none")).mean()


def wish(indices: Tensor, logits: Tensor) -> Steer:
    shift, scale, weight = tables()
    return Steer(shift=shift[indices], scale=scale[indices], weight=weight[indices])


def steering_of(net: nn.Module, *sources) -> LogitSteering:
    steering = LogitSteering(net.head)
    steering.sources.extend(sources)
    steering.attach(net)
    return steering


# --- the same as a loss written by hand -----------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_equals_the_loss_with_shift_scale_and_weight_written_into_it(accumulate):
    expected = train(Net(), by_hand, accumulate=accumulate)
    net = Net()
    found = train(net, plain, steering=steering_of(net, wish), accumulate=accumulate)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert (found - train(Net(), plain, accumulate=accumulate)).abs().max() > 1e-2


@pytest.mark.parametrize("parts", [("shift", "scale", "weight"), ("shift",), ("weight",)])
def test_equals_it_exactly_in_bfloat16(parts):
    def some(indices: Tensor, logits: Tensor) -> Steer:
        return Steer(**{part: getattr(wish(indices, logits), part) for part in parts})

    def by_hand_some(logits: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        shift, scale, weight = tables()
        logits = logits * scale[indices].unsqueeze(1) if "scale" in parts else logits
        logits = logits + shift[indices] if "shift" in parts else logits
        losses = F.cross_entropy(logits, targets, reduction="none")
        return (weight[indices] * losses if "weight" in parts else losses).mean()

    expected = train(Net(), by_hand_some, autocast=True)
    net = Net()
    assert torch.equal(train(net, plain, steering=steering_of(net, some), autocast=True), expected)


def test_every_part_alone_equals_its_formula():
    net, (x, _, batches) = Net(), data()
    indices = batches[0]
    logits = net(x[indices])
    shift, scale, weight = tables()
    matrix = torch.rand(SIZE, CLASSES)
    for steer, expected in [
        (Steer(shift=shift[indices]), logits + shift[indices]),
        (Steer(scale=scale[indices]), logits * scale[indices].unsqueeze(1)),
        (Steer(scale=matrix), logits * matrix),
        (Steer(weight=weight[indices]), logits),
        (Steer(), logits),
    ]:
        steering = steering_of(net, lambda *_, steer=steer: steer)
        steering.begin_batch(indices)
        assert torch.equal(net(x[indices]), expected)
        steering.end_batch()
        steering.detach()


@pytest.mark.parametrize("loss", ["sum", "mean", "squares", "margin"])
def test_the_weight_is_that_of_the_example_for_any_loss_that_sums_over_examples(loss):
    losses = {
        "sum": lambda z, y: F.cross_entropy(z, y, reduction="none"),
        "mean": lambda z, y: F.cross_entropy(z, y, reduction="none", label_smoothing=0.1) / SIZE,
        "squares": lambda z, y: (z - F.one_hot(y, CLASSES)).square().sum(1),
        "margin": lambda z, y: F.multi_margin_loss(z, y, reduction="none"),
    }
    _, _, weight = tables()
    expected = train(Net(), lambda z, y, i: (weight[i] * losses[loss](z, y)).sum() / 50)
    net = Net()
    steering = steering_of(net, lambda indices, _: Steer(weight=weight[indices]))
    found = train(net, lambda z, y, _: losses[loss](z, y).sum() / 50, steering=steering)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["(B, 1)", "(B,)"])
def test_a_binary_head_with_one_output_is_steered_like_one_with_two(form):
    """It stands for the classes (0, z): a shift of both classes moves z by their difference."""
    g = torch.Generator().manual_seed(3)
    shift, weight = torch.randn(N, 2, generator=g), torch.rand(N, generator=g)
    scale = 0.5 + torch.rand(N, generator=g)

    class OneOutput(Net):
        def __init__(self) -> None:
            super().__init__(1)
            if form == "(B,)":
                self.head = nn.Sequential(self.head, nn.Flatten(0))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flatten()

    def bce(z: Tensor, y: Tensor, indices: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, (y > 0).float())

    def two_classes_by_hand(z: Tensor, y: Tensor, indices: Tensor) -> Tensor:
        both = torch.stack([torch.zeros_like(z), z], 1) * scale[indices].unsqueeze(1)
        losses = F.cross_entropy(both + shift[indices], (y > 0).long(), reduction="none")
        return (weight[indices] * losses).mean()

    seen = []

    def source(indices: Tensor, logits: Tensor) -> Steer:
        seen.append(logits)
        return Steer(shift=shift[indices], scale=scale[indices], weight=weight[indices])

    expected = train(OneOutput(), two_classes_by_hand)
    net = OneOutput()
    assert torch.allclose(
        train(net, bce, steering=steering_of(net, source)), expected, rtol=1e-5, atol=1e-6
    )
    assert all(logits.shape == (SIZE, 2) and (logits[:, 0] == 0).all() for logits in seen)


def test_class_logits_have_the_same_probabilities():
    z = torch.linspace(-4, 4, 9)
    expected = torch.stack([1 - z.sigmoid(), z.sigmoid()], 1)
    for form in (z, z.unsqueeze(1)):
        assert torch.allclose(class_logits(form).softmax(1), expected)
    two = torch.randn(3, 2)
    assert class_logits(two) is two


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own
@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_steers_a_compiled_network(backend, when, how):
    torch.compiler.reset()
    expected = train(Net(), by_hand)
    net = Net()
    compiled = net

    def compile_it() -> None:
        nonlocal compiled
        if how == "torch.compile":
            compiled = torch.compile(net, backend=backend)
        else:
            net.compile(backend=backend)
        # It has already run when the hook comes, with and without gradient.
        compiled(data()[0][:SIZE]).sum().backward()
        net.zero_grad()
        with torch.no_grad():
            compiled(data()[0][:SIZE])

    if when == "before":
        compile_it()
    steering = LogitSteering(net.head)
    steering.sources.append(wish)
    steering.attach(nn.ModuleDict({"net": compiled}))
    if when == "after":
        compile_it()
    found = train(net, plain, steering=steering, compiled=compiled)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_sources_combine_in_any_order():
    shift, scale, weight = tables()
    x, _, batches = data()
    sources = [
        lambda i, _: Steer(shift=shift[i], weight=weight[i]),
        lambda i, _: Steer(scale=scale[i]),
        lambda i, _: None,
        lambda i, _: Steer(shift=2 * shift[i], scale=scale[i], weight=scale[i]),
    ]
    results = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        net = Net()
        steering = steering_of(net, *[sources[i] for i in order])
        steering.begin_batch(batches[0])
        logits = net(x[batches[0]])
        logits.sum().backward()
        results.append((logits.detach(), net.head.weight.grad))
    i = batches[0]
    expected = Net()(x[i]) * scale[i].unsqueeze(1) ** 2 + 3 * shift[i]
    for logits, gradient in results:
        assert torch.allclose(logits, expected, atol=1e-5)
        assert torch.allclose(gradient, results[0][1], atol=1e-5)


def test_every_source_sees_the_unsteered_logits_without_gradient():
    net, (x, _, batches) = Net(), data()
    seen = []

    def source(indices: Tensor, logits: Tensor) -> Steer:
        seen.append((indices, logits))
        return wish(indices, logits)

    steering = steering_of(net, source, source)
    steering.begin_batch(batches[0])
    net(x[batches[0]])
    expected = Net()(x[batches[0]])
    for indices, logits in seen:
        assert torch.equal(indices, batches[0])
        assert torch.equal(logits, expected)
        assert not logits.requires_grad


# --- doing nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sources", [(), (lambda *_: None,), (lambda *_: Steer(),)], ids=["none", "abstains", "empty"]
)
@pytest.mark.parametrize("autocast", [False, True])
def test_idle_steering_is_bit_for_bit_the_plain_run(sources, autocast):
    expected = train(Net(), plain, autocast=autocast)
    net = Net()
    found = train(net, plain, steering=steering_of(net, *sources), autocast=autocast)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_neutral_wish_is_bit_for_bit_the_plain_run(autocast):
    def neutral(indices: Tensor, logits: Tensor) -> Steer:
        ones = torch.ones(len(indices))
        return Steer(shift=torch.zeros(len(indices), CLASSES), scale=ones, weight=ones)

    expected = train(Net(), plain, autocast=autocast)
    net = Net()
    found = train(net, plain, steering=steering_of(net, neutral), autocast=autocast)
    assert torch.equal(found, expected)


def test_steers_only_between_begin_and_end_and_only_in_training():
    net, (x, _, batches) = Net(), data()
    steering = steering_of(net, wish)
    expected = Net()(x[batches[0]])

    def is_plain() -> bool:
        return torch.equal(net(x[batches[0]]), expected)

    assert is_plain()
    steering.begin_batch(batches[0])
    net.eval()
    assert is_plain()
    assert torch.equal(net(x), Net()(x))  # also with another number of rows
    net.train()
    assert not is_plain()
    steering.end_batch()
    assert is_plain()
    steering.begin_batch(batches[0])
    steering.detach()
    assert is_plain()
    assert not net.head._forward_hooks


def test_attaching_twice_steers_once():
    net, (x, _, batches) = Net(), data()
    steering = steering_of(net, wish)
    steering.attach(net)
    assert len(net.head._forward_hooks) == 1
    steering.begin_batch(batches[0])
    shift, scale, _ = tables()
    i = batches[0]
    assert torch.allclose(net(x[i]), Net()(x[i]) * scale[i].unsqueeze(1) + shift[i])
    steering.detach()
    steering.detach()


# --- penalties ------------------------------------------------------------------------------------


def of_features(features: Tensor) -> Tensor:
    return 0.3 * (features[:4] - features[4:]).square().sum(1).sqrt().mean()


def of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    probs = logits.softmax(1)
    return 0.5 * (probs[:4].mean(0) - probs[4:].mean(0)).square().sum() + 0.1 * targets[0]


def penalised_by_hand(net: nn.Module, accumulate: int) -> Tensor:
    """Steered cross-entropy, plus two penalties of what is not steered, written into the loss."""
    x, y, batches = data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step, indices in enumerate(batches):
        features = net.body(x[indices]).relu()
        logits = net.head(features)
        loss = by_hand(logits, y[indices], indices) / accumulate
        penalty = of_features(features) + of_logits(logits, y[indices])
        (loss + penalty / accumulate).backward()
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def penalised(net: nn.Module) -> LogitSteering:
    targets, steering = data()[1], steering_of(net, wish)
    steering.penalties += [
        lambda indices, features, logits: of_features(features),
        lambda indices, features, logits: None,
        lambda indices, features, logits: of_logits(logits, targets[indices]),
    ]
    return steering


@pytest.mark.parametrize("accumulate", [1, 3])
def test_penalties_equal_those_written_into_the_loss(accumulate):
    expected = penalised_by_hand(Net(), accumulate)
    steering = penalised(net := Net())
    steering.unit = lambda: 1 / accumulate
    found = train(net, plain, steering=steering, accumulate=accumulate)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert (found - train(Net(), by_hand, accumulate=accumulate)).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own
def test_penalties_reach_a_compiled_network():
    torch.compiler.reset()
    steering = penalised(net := Net())
    steering.attach(compiled := torch.compile(net, backend="aot_eager"))
    found = train(net, plain, steering=steering, compiled=compiled)
    assert torch.allclose(found, penalised_by_hand(Net(), 1), rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_penalties_leave_values_and_evaluation_alone():
    net, (x, _, batches) = Net(), data()
    steering = LogitSteering(net.head)
    steering.penalties.append(lambda indices, features, logits: features.sum())
    steering.attach(net)
    steering.begin_batch(batches[0])
    with torch.no_grad():
        assert torch.equal(net(x[batches[0]]), Net()(x[batches[0]]))
    logits = net(x[batches[0]])
    assert torch.equal(logits, Net()(x[batches[0]]))
    steering.end_batch()
    steering.begin_batch(batches[0])
    with pytest.raises(ContractError, match="head="):  # a penalty alone makes the head needed, too
        steering.end_batch()
    net.requires_grad_(False)
    steering.begin_batch(batches[0])
    assert not net(x[batches[0]]).requires_grad
    steering.end_batch()


def test_a_penalty_sees_two_classes_of_a_head_with_one_output():
    net, (x, _, batches) = Net(1), data()
    steering, seen = LogitSteering(net.head), []
    steering.penalties.append(lambda indices, features, logits: seen.append(logits))
    steering.attach(net)
    steering.begin_batch(batches[0])
    net(x[batches[0]])
    [logits] = seen
    assert logits.shape == (SIZE, 2)
    assert logits.requires_grad
    steering.end_batch()


# --- readers --------------------------------------------------------------------------------------


def test_a_reader_that_comes_first_sees_what_the_head_returned():
    net, (x, _, batches) = Net(), data()
    steering = steering_of(net, wish)
    seen = []
    reader = HeadHook(net.head, first=True)
    reader.readers.append(lambda features, logits: seen.append((features, logits)))
    reader.attach(net)
    steering.begin_batch(batches[0])
    steered = net(x[batches[0]])
    (features, logits) = seen[0]
    assert torch.equal(logits, Net()(x[batches[0]]))
    assert not torch.equal(logits, steered)
    assert torch.equal(features, net.body(x[batches[0]]).relu())
    assert not features.requires_grad
    assert not logits.requires_grad


def test_a_hook_can_be_copied_with_its_network():
    """Weight averaging makes a deep copy of the module in the middle of a fit."""
    net = Net()
    steering_of(net, wish)
    x = data()[0]
    assert torch.equal(copy.deepcopy(net)(x), net(x))


# --- refusing -------------------------------------------------------------------------------------


def test_refuses_another_number_of_rows():
    net = Net()
    steering = steering_of(net, wish)
    steering.begin_batch(torch.arange(4))
    with pytest.raises(ContractError, match="8 rows for a batch of 4 examples"):
        net(data()[0][:8])


def test_refuses_a_batch_in_which_the_head_did_not_run():
    steering = steering_of(Net(), wish)
    steering.begin_batch(torch.arange(4))
    with pytest.raises(ContractError, match="head=") as refusal:
        steering.end_batch()
    assert "Linear" in str(refusal.value)
    steering.end_batch()  # it is over


@pytest.mark.parametrize(
    ("output", "word"),
    [(lambda x: (x, x), "tuple"), (lambda x: x[:, :, None, None], r"\(8, 3, 1, 1\)")],
)
def test_refuses_a_head_that_returns_no_logits(output, word):
    class Odd(nn.Linear):
        def forward(self, x: Tensor):
            return output(super().forward(x))

    head = Odd(5, 3)
    steering = LogitSteering(head)
    steering.sources.append(wish)
    steering.attach()
    steering.begin_batch(torch.arange(8))
    with pytest.raises(ContractError, match=word):
        head(data()[0][:8])


# --- finding the head -----------------------------------------------------------------------------


def test_the_one_linear_with_an_output_a_class_is_the_head():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 5))
    assert find_head(net, 5) == ("3", net[3])


def test_one_output_is_enough_for_two_classes_and_only_for_two():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    assert find_head(net, 2) == ("1", net[1])
    with pytest.raises(ContractError, match="3 outputs"):
        find_head(net, 3)


def test_the_last_to_run_of_several_is_the_head_and_none_is_a_refusal_that_lists_them():
    net = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 3), "c": nn.Linear(4, 8)})
    asked = []

    def last_to_run(candidates: dict[str, nn.Module]) -> str:
        asked.append(candidates)
        return "b"

    assert find_head(net, 3, last_to_run=last_to_run) == ("b", net["b"])
    assert asked == [{"a": net["a"], "b": net["b"]}]
    for tell in (None, lambda candidates: None):
        with pytest.raises(ContractError, match=r"ambiguous: a, b .* head="):
            find_head(net, 3, last_to_run=tell)


def test_timm_and_hugging_face_tell_their_head():
    timm = pytest.importorskip("timm")
    net = nn.ModuleDict(
        {
            "backbone": timm.create_model("mobilenetv3_small_050", num_classes=7),
            "projection": nn.Linear(7, 7),
        }
    )
    assert find_head(net, 7) == ("backbone.classifier", net["backbone"].classifier)

    class HuggingFace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(num_labels=3)
            self.encoder = nn.Linear(3, 3)
            self.score = nn.Linear(3, 3)

    net = nn.ModuleDict({"model": HuggingFace()})
    assert find_head(net, 3) == ("model.score", net["model"].score)


def test_a_classifier_that_is_no_linear_layer_is_not_taken_for_one():
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def get_classifier(self) -> nn.Module:
            return nn.Identity()  # timm with num_classes=0

    net = nn.Sequential(Dropped(), nn.Linear(3, 2))
    assert find_head(net, 2) == ("1", net[1])


def test_a_head_is_named_also_inside_a_compiled_network():
    net = Net()
    compiled = nn.ModuleDict({"net": torch.compile(net, backend="eager")})
    assert find_head(compiled, CLASSES, head="net.head") == ("net.head", net.head)
    assert find_head(compiled, CLASSES) == ("net.head", net.head)
    sequential = nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 9), nn.Softplus())})
    assert find_head(sequential, CLASSES, head="net")[1] is sequential["net"]  # any module


@pytest.mark.parametrize("name", ["nothing", "", "head.weight"])
def test_refuses_a_name_that_does_not_exist_and_lists_the_linear_layers(name):
    with pytest.raises(ContractError) as refusal:
        find_head(Net(), CLASSES, head=name)
    refusal.match(f"head={name!r}")
    refusal.match(r"body \(5 -> 16\), head \(16 -> 3\)")


def test_refuses_a_convolution():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ContractError, match=r"head='0' is a Conv2d.*pools"):
        find_head(net, 4, head="0")
    with pytest.raises(ContractError, match=r"no head found.*none"):
        find_head(net, 4)
