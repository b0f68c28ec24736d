"""GradCAM against its definition, of a CNN and of a ViT."""

from __future__ import annotations

import sys

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from lightning_robust.contracts import ContractError
from lightning_robust.models.attribution import grad_cam, integrated_gradients
from lightning_robust.models.clip import Encoders, SpuriousAwareCLIP
from lightning_robust.randomness import isolated

CLASSES = [2, 0]


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def cnn():
    with isolated(0):
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(294, 3)
        ).eval()


def vit():
    with isolated(0):
        return VisionTransformer(
            img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=3
        ).eval()


def by_definition(model, images, layer, as_picture):
    """The positive part of the activations, weighted by their mean gradients."""
    kept = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(images)
    handle.remove()
    maps = []
    for label in CLASSES:
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), kept[0], retain_graph=True)
        weights = as_picture(gradient).mean((2, 3), keepdim=True)
        coarse = (weights * as_picture(kept[0])).sum(1, keepdim=True).relu()
        fine = functional.interpolate(coarse, images.shape[-2:], mode="bilinear")[:, 0]
        maps.append(fine / fine.amax((1, 2), keepdim=True).clamp(min=1e-30))
    return torch.stack(maps, 1).detach()


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_of_a_cnn(images):
    pytest.importorskip("captum")
    model = cnn()
    maps = grad_cam(model, images, CLASSES, model[0])
    torch.testing.assert_close(maps, by_definition(model, images, model[0], lambda x: x))
    assert maps.shape == (3, 2, 16, 16)


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_of_a_vit(images):
    pytest.importorskip("captum")
    model = vit()
    layer = model.blocks[-1].norm1
    maps = grad_cam(model, images, CLASSES, layer, grid=(4, 4))
    expected = by_definition(
        model, images, layer, lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    )
    torch.testing.assert_close(maps, expected)
    assert maps.amax() == 1
    assert not layer._forward_hooks, "the model is left as found"


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_of_the_zero_shot_logits_of_a_frozen_pair(images):
    pytest.importorskip("captum")
    encoder = cnn()[:-1]
    encoders = Encoders(
        image_encoder=encoder,
        text_encoder=lambda texts: torch.tensor([[len(text), text.count("o")] for text in texts]),
        image_projection=nn.Linear(294, 4),
        text_projection=nn.Linear(2, 4),
    )
    model = SpuriousAwareCLIP(encoders, ["boat", "landbird", "car"]).eval()
    found = grad_cam(model, images, CLASSES, encoder[0])
    assert found.amax() == 1
    assert not images.requires_grad
    images.requires_grad_()  # or nothing of a frozen encoder has a gradient
    torch.testing.assert_close(found, by_definition(model, images, encoder[0], lambda x: x))


def test_tokens_need_a_grid_that_fits(images):
    pytest.importorskip("captum")
    model = vit()
    with pytest.raises(ContractError, match="grid="):
        grad_cam(model, images, CLASSES, model.blocks[-1].norm1, grid=(5, 5))
    assert not model.blocks[-1].norm1._forward_hooks


def test_a_missing_captum_is_named_with_its_extra(monkeypatch, images):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-robust\[attribution\]"):
        grad_cam(cnn(), images, CLASSES, nn.Identity())


def test_integrated_gradients_are_complete_and_those_of_a_fine_path(images):
    """They sum to the difference of the logits; and against a sum over 1,000 points by hand."""
    pytest.importorskip("captum")
    model = cnn().double()
    images = images.double()
    found = integrated_gradients(model, images, torch.tensor([2, 0, 1]), steps=300)
    total = model(images) - model(torch.zeros_like(images))
    expected = total[torch.arange(3), torch.tensor([2, 0, 1])]
    torch.testing.assert_close(found.sum((1, 2, 3)), expected.detach(), rtol=1e-2, atol=1e-3)
    path = ((torch.arange(1000) + 0.5) / 1000).double()[:, None, None, None]
    points = (path * images[0]).requires_grad_()
    [slopes] = torch.autograd.grad(model(points)[:, 2].sum(), points)
    torch.testing.assert_close(found[0], slopes.mean(0) * images[0], rtol=1e-2, atol=1e-3)
    predicted = model(images).argmax(1)
    torch.testing.assert_close(
        integrated_gradients(model, images), integrated_gradients(model, images, predicted)
    )
