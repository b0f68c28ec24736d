"""Spurious-aware fine-tuning of a tiny pair of encoders, alone, in a Trainer and on two ranks."""

from __future__ import annotations

import sys
import zlib
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from lightning_robust import GroupMetrics
from lightning_robust.contracts import ContractError
from lightning_robust.functional.contrastive import class_loss, clip_loss, spurious_loss
from lightning_robust.metrics import WorstGroupAccuracy
from lightning_robust.models import clip
from lightning_robust.models.clip import Encoders, SpuriousAwareCLIP
from lightning_robust.randomness import generator, isolated

pytestmark = pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")

TEMPLATES = ["a photo of {label}", "{label} in a drawing", "one {label}"]
GROUP_TEMPLATES = ["a photo of {label} on {attribute}", "{attribute} with {label}"]
CLASSES, ATTRIBUTES = ["landbird", "waterbird", "boat"], ["land", "water"]


def bag_of_words(texts):
    """Features (m, 6): a word's are random, and those of a text the mean of its words'."""
    words = [
        torch.stack(
            [
                torch.randn(6, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
                for word in text.split()
            ]
        ).mean(0)
        for text in texts
    ]
    return torch.stack(words)


def tiny_encoders():
    with isolated(0):
        return Encoders(
            image_encoder=nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 7)),
            text_encoder=bag_of_words,
            image_projection=nn.Linear(7, 5, bias=False),
            text_projection=nn.Linear(6, 5, bias=False),
            temperature=0.2,
        )


def tiny_model(losses=("clip", "vc", "lc", "vs", "ls"), **options):
    settings = {
        "templates": TEMPLATES,
        "attribute_names": ATTRIBUTES,
        "group_templates": GROUP_TEMPLATES,
        "learning_rate": 0.05,
        **options,
    }
    return SpuriousAwareCLIP(tiny_encoders(), CLASSES, losses=losses, **settings)


class Birds(Dataset):
    """Random images with a class and an attribute."""

    group_names = tuple(f"{label} on {name}" for label in CLASSES for name in ATTRIBUTES)

    def __init__(self, n=24):
        draw = torch.Generator().manual_seed(3)
        self.images = torch.randn(n, 3, 2, 2, generator=draw)
        self.targets = torch.arange(n) % 3
        self.attributes = torch.randint(0, 2, (n,), generator=draw)
        self.groups = 2 * self.targets + self.attributes
        self.images[:, 0] += self.targets.view(-1, 1, 1)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index], self.targets[index], self.attributes[index]

    def batch(self):
        return self.images, self.targets, self.attributes


def trainer(tmp_path, **options):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )


def test_the_terms_are_those_of_the_texts_spelt_out():
    model, (images, targets, attributes) = tiny_model(), Birds().batch()
    found = model._terms((images, targets, attributes))

    def embedded(texts):
        return functional.normalize(model.text_projection(bag_of_words(texts)), dim=1)

    pictures = functional.normalize(
        model.image_projection(model.image_encoder.eval()(images)), dim=1
    )
    drawn = torch.randint(3, (24,), generator=generator(0, "clip: captions", 0))
    captions = [TEMPLATES[t].format(label=CLASSES[y]) for t, y in zip(drawn, targets, strict=True)]
    of_classes = [(t, y) for t in range(3) for y in range(3)]
    of_groups = [(t, y, a) for y in range(3) for a in range(2) for t in range(2)]
    texts = [TEMPLATES[t].format(label=CLASSES[y]) for t, y in of_classes]
    more = [
        GROUP_TEMPLATES[t].format(label=CLASSES[y], attribute=ATTRIBUTES[a])
        for t, y, a in of_groups
    ]
    t, y = torch.tensor(of_classes).T
    gt, gy, ga = torch.tensor(of_groups).T
    expected = {
        "clip": clip_loss(pictures, embedded(captions), temperature=0.2),
        "vc": class_loss(pictures, targets, temperature=0.2),
        "lc": class_loss(embedded(texts), y, templates=t, temperature=0.2),
        "vs": spurious_loss(pictures, targets, attributes, temperature=0.2),
        "ls": spurious_loss(embedded(more), gy, ga, templates=gt, temperature=0.2),
    }
    torch.testing.assert_close(found, expected)


def test_zero_shot_logits_are_cosines_with_the_mean_text_of_each_class():
    model = tiny_model().eval()
    images = Birds().images
    with torch.no_grad():
        model.text_projection.weight.mul_(torch.arange(1.0, 6.0).unsqueeze(1))  # after the head
        classes = []
        for label in CLASSES:
            texts = bag_of_words([text.format(label=label) for text in TEMPLATES])
            texts = functional.normalize(model.text_projection(texts), dim=1)
            classes.append(functional.normalize(texts.mean(0), dim=0))
        pictures = model.image_projection(model.image_encoder.eval()(images))
        expected = functional.cosine_similarity(
            pictures.unsqueeze(1), torch.stack(classes).unsqueeze(0), dim=2
        )
        torch.testing.assert_close(model(images), expected / 0.2)


def test_unnormalised_logits_are_the_logits_times_the_length_of_the_embedding():
    model, images = tiny_model().eval(), Birds().images
    with torch.no_grad():
        model.text_projection.weight.mul_(torch.arange(1.0, 6.0).unsqueeze(1))  # after the head
        inner = model.unnormalised()(images)
        lengths = model.image_projection(model.image_encoder(images)).norm(dim=1, keepdim=True)
        torch.testing.assert_close(inner, model(images) * lengths)


def test_group_metrics_measure_it(tmp_path):
    data, model = Birds(), tiny_model()
    loader = DataLoader(data, batch_size=7)
    run = trainer(tmp_path, max_epochs=2, callbacks=[GroupMetrics(stages=("val", "test"))])
    run.fit(model, DataLoader(data, batch_size=8), loader)
    logged = {"train/loss", *(f"train/loss_{name}" for name in clip.LOSSES), "val/loss"}
    assert logged <= set(run.callback_metrics)
    expected = WorstGroupAccuracy(6)
    expected.update(model.eval()(data.images), data.targets, data.groups)
    assert run.callback_metrics["val/worst_group_acc"] == expected.compute()
    (logged,) = run.test(model, loader, verbose=False)
    assert logged["test/worst_group_acc"] == expected.compute()
    predictions = torch.cat(run.predict(model, loader))
    torch.testing.assert_close(predictions, model(data.images))


def test_only_the_projections_learn(tmp_path):
    pair = tiny_encoders()
    before = {name: value.clone() for name, value in pair.image_encoder.state_dict().items()}
    projections = [pair.image_projection.weight.clone(), pair.text_projection.weight.clone()]
    model = SpuriousAwareCLIP(pair, CLASSES, TEMPLATES, learning_rate=0.1)
    trainer(tmp_path, max_epochs=2).fit(model, DataLoader(Birds(), batch_size=8))
    torch.testing.assert_close(model.image_encoder.state_dict(), before, rtol=0, atol=0)
    for name, own, start in zip(
        ("image_projection", "text_projection"),
        (pair.image_projection, pair.text_projection),
        projections,
        strict=True,
    ):
        assert not torch.equal(getattr(model, name).weight, start), name
        assert torch.equal(own.weight, start), "the pre-trained pair is left for the next run"
    optimised = {
        id(p) for group in model.configure_optimizers().param_groups for p in group["params"]
    }
    assert optimised == {id(model.image_projection.weight), id(model.text_projection.weight)}


@pytest.mark.parametrize("name", clip.LOSSES)
def test_what_learns_is_what_the_loss_reaches(name):
    """Or DDP would wait for a gradient that never comes."""
    model = tiny_model((name,))
    model._terms(Birds().batch())[name].backward()
    for parameter in model.parameters():
        assert parameter.requires_grad == (parameter.grad is not None)


def test_a_fit_lowers_what_it_minimises(tmp_path):
    model, batch = tiny_model(), Birds().batch()
    before = sum(model._terms(batch).values())
    trainer(tmp_path, max_epochs=30).fit(model, DataLoader(Birds(), batch_size=24))
    assert sum(model._terms(batch).values()) < 0.9 * before


def test_a_checkpoint_holds_the_tuned_model(tmp_path):
    model = tiny_model()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, DataLoader(Birds(), batch_size=8))
    run.save_checkpoint(tmp_path / "tuned.ckpt")
    loaded = SpuriousAwareCLIP.load_from_checkpoint(
        tmp_path / "tuned.ckpt", encoders=tiny_encoders(), class_names=CLASSES, templates=TEMPLATES
    ).eval()
    images = Birds().images
    torch.testing.assert_close(loaded(images), model.eval()(images), rtol=0, atol=0)


def test_inference_mode_and_two_forwards_do_no_harm():
    model, images = tiny_model().eval(), Birds().images.requires_grad_()
    with torch.inference_mode():
        model(images)
    first = model(images).sum()
    model(images)
    first.backward()
    assert images.grad.abs().sum() > 0
    model.to(torch.float64)


def test_texts_are_encoded_without_dropout():
    class Dropping(nn.Dropout):
        def forward(self, texts):
            return super().forward(bag_of_words(texts))

    encoder = Dropping().train()
    pair = replace(tiny_encoders(), text_encoder=encoder)
    model = SpuriousAwareCLIP(pair, CLASSES, ["one {label}"])
    torch.testing.assert_close(model.class_texts, bag_of_words([f"one {c}" for c in CLASSES]))
    assert encoder.training


def test_a_text_encoder_that_gives_no_row_a_text_is_refused():
    pair = replace(tiny_encoders(), text_encoder=lambda texts: torch.zeros(6))
    with pytest.raises(ContractError, match=r"text_encoder must map a list of 3 texts"):
        SpuriousAwareCLIP(pair, CLASSES, ["one {label}"])


def test_an_unknown_class_is_no_caption_of_another_template():
    images, targets, attributes = Birds().batch()
    with pytest.raises(IndexError):
        tiny_model(("clip",))._terms((images, targets + 1, attributes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": ("clip", "sv")}, "losses must be one of 'clip'"),
        ({"losses": ()}, "losses must name"),
        ({"losses": ("vc", "vc")}, "losses must name"),
        ({"losses": ("ls",), "attribute_names": ()}, "needs attribute_names"),
        ({"templates": ["a photo"]}, r"templates must be texts with \{label\}"),
        ({"group_templates": ["a {label}"]}, "group_templates must be texts"),
        ({"same": "class"}, "same must be"),
        ({"learning_rate": 0}, "learning_rate must be"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ContractError, match=message):
        tiny_model(**options)


def test_the_image_loss_asks_for_attributes():
    images, targets, _ = Birds().batch()
    with pytest.raises(ContractError, match=r"losses name \"vs\""):
        tiny_model(("vs",))._terms((images, targets))


# --- two processes --------------------------------------------------------------------------------


def step(rows):
    """The loss of these rows, and the gradients of the projections."""
    model = tiny_model().double()
    images, targets, attributes = (part[rows] for part in Birds().batch())
    loss = sum(model._terms((images.double(), targets, attributes)).values())
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def _rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    loss, gradients = step(slice(12 * rank, 12 * rank + 12))
    for gradient in gradients:  # as DDP does
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    torch.distributed.destroy_process_group()
    torch.save((loss, gradients), f"{folder}/rank{rank}.pt")


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12 on
def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    expected = step(slice(None))
    assert len(expected[1]) == 2
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"rank{rank}.pt"), expected)


# --- open_clip ------------------------------------------------------------------------------------


def test_a_missing_open_clip_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-robust\[clip\]"):
        clip.open_clip_encoders()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "ViT-S-32"])
def test_encoders_and_projections_of_open_clip_make_the_whole(name):
    open_clip = pytest.importorskip("open_clip")
    with isolated(0):
        encoders, preprocess = clip.open_clip_encoders(name, pretrained=None)
    with isolated(0):
        whole, _, _ = open_clip.create_model_and_transforms(name, pretrained=None)
    whole.eval()
    size = preprocess.transforms[0].size
    side = size if isinstance(size, int) else size[0]
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    texts = ["a waterbird", "a landbird on water"]
    with torch.no_grad():
        torch.testing.assert_close(
            encoders.image_projection(encoders.image_encoder(images)),
            whole.encode_image(images),
            rtol=1e-3,
            atol=1e-4,
        )
        torch.testing.assert_close(
            encoders.text_projection(encoders.text_encoder(texts)),
            whole.encode_text(open_clip.get_tokenizer(name)(texts)),
            rtol=1e-3,
            atol=1e-4,
        )


# --- transformers ---------------------------------------------------------------------------------


def tiny_hugging_face_clip():
    transformers = pytest.importorskip("transformers")
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": 99, "hidden_size": 16, "max_position_embeddings": 8, "eos_token_id": 98}
    with isolated(0):
        return transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={**tower, **text},
                vision_config={**tower, "hidden_size": 24, "image_size": 16, "patch_size": 4},
                projection_dim=8,
            )
        ).eval()


def tokens_of(texts, **_):
    """A word's number is made of its letters; the end is 98, and so is what is filled up."""
    ids = torch.full((len(texts), 8), 98)
    for row, text in enumerate(texts):
        numbers = [zlib.crc32(word.encode()) % 98 for word in text.split()]
        ids[row, : len(numbers)] = torch.tensor(numbers)
    ends = torch.tensor([len(text.split()) for text in texts])
    return {"input_ids": ids, "attention_mask": (torch.arange(8) <= ends[:, None]).long()}


def test_encoders_and_projections_of_transformers_make_the_whole():
    whole = tiny_hugging_face_clip()
    encoders = clip.transformers_encoders(whole, tokens_of)
    model = SpuriousAwareCLIP(encoders, ["landbird", "waterbird"], ["a {label}"]).eval()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = tokens_of(["a landbird", "a waterbird"])
        expected = whole(pixel_values=images, **tokens).logits_per_image
        torch.testing.assert_close(model(images), expected)


def test_a_model_of_transformers_without_projections_is_refused():
    with pytest.raises(ContractError, match="no CLIPModel"):
        clip.transformers_encoders(tiny_hugging_face_clip().vision_model, tokens_of)
