"""Fine-tuning of vision-language models against spurious correlations: thesis, chapter 7.

Both encoders stay as they are and only their projections into the joint space learn, by the losses
of :mod:`lightning_robust.functional.contrastive`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from lightning_robust.contracts import (
    ContractError,
    check_at_least,
    check_choice,
    check_positive,
)
from lightning_robust.functional.contrastive import Same, class_loss, clip_loss, spurious_loss
from lightning_robust.randomness import generator, resolve_seed

LOSSES = ("clip", "vc", "lc", "vs", "ls")  #: Names of Eq. 7.1 to 7.5.

_TEXTS_AT_A_TIME = 256


@dataclass(frozen=True)
class Encoders:
    """A pair of encoders, each with its projection into the joint space.

    Args:
        image_encoder: Maps images to features (n, d_i), before the projection.
        text_encoder: Maps a list of m texts to features (m, d_t), before the projection. It
            tokenises too.
        image_projection: Maps (n, d_i) to (n, d).
        text_projection: Maps (m, d_t) to (m, d).
        temperature: tau that the pair was trained with; 1/100 for OpenAI's models.
    """

    image_encoder: nn.Module
    text_encoder: Callable[[list[str]], Tensor]
    image_projection: nn.Module
    text_projection: nn.Module
    temperature: float = 0.01


class SpuriousAwareCLIP(LightningModule):
    """Tunes the projections of a vision-language model so that it stops relying on an attribute.

    Batches are (images, targets), or (images, targets, attributes) for the loss ``"vs"``, with
    attributes (n,) integers or bool. The losses of language are over all the texts that templates
    make, not over those of the batch, and as the encoders are frozen, these are encoded once, when
    the module is made. With several processes the losses are those of the whole batch.

    :meth:`forward` returns zero-shot logits (n, C), through the ``Linear`` layer ``head`` whose
    rows are the embeddings of the classes, so that :class:`~lightning_robust.GroupMetrics` works,
    with ``stages=("val", "test")``: training does not run the head. Methods that weight or shift
    the logits of training batches therefore do not apply, and refuse.

    Logs ``train/loss``, each loss as ``train/loss_<name>``, and ``val/loss`` and ``test/loss``, the
    cross-entropy of the zero-shot logits.

    Args:
        encoders: The pair. Its image encoder is frozen; its projections are copied.
        class_names: What the classes are called, in the order of the targets.
        templates: Texts with ``{label}``, for the captions of ``"clip"``, which are drawn anew
            for every image, for ``"lc"`` and for the zero-shot head, which averages over them.
        losses: Which of ``"clip"`` (Eq. 7.1), ``"vc"``, ``"lc"``, ``"vs"`` and ``"ls"`` (7.2 to
            7.5) to sum. The thesis recommends the first three and one of the last two.
        attribute_names: What the values of the spurious attribute are called, for ``"ls"``.
        group_templates: Texts with ``{label}`` and ``{attribute}``, for ``"ls"``, two or more.
        same: What positives of ``"vs"`` and ``"ls"`` share, see
            :func:`~lightning_robust.functional.contrastive.spurious_loss`.
        learning_rate: Step size of SGD, in the thesis 1e-5.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD, in the thesis 1e-4.
        seed: Of the captions; ``None`` is Lightning's ``seed_everything``, else 0.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> encoders = Encoders(
        ...     image_encoder=nn.Flatten(),
        ...     text_encoder=lambda texts: torch.tensor([[len(text), 1.0] for text in texts]),
        ...     image_projection=nn.Linear(12, 4, bias=False),
        ...     text_projection=nn.Linear(2, 4, bias=False),
        ... )
        >>> model = SpuriousAwareCLIP(
        ...     encoders,
        ...     class_names=["cat", "horse", "elephant"],
        ...     templates=["a photo of a {label}", "a drawing of a {label}"],
        ... )
        >>> model(torch.zeros(2, 3, 2, 2)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        encoders: Encoders,
        class_names: Sequence[str],
        templates: Sequence[str] = ("a photo of a {label}.", "a picture of a {label}."),
        *,
        losses: Sequence[str] = ("clip", "vc", "lc"),
        attribute_names: Sequence[str] = (),
        group_templates: Sequence[str] = (
            "a photo of a {label} with {attribute}.",
            "a picture of a {label} and {attribute}.",
        ),
        same: Same = "group",
        learning_rate: float = 1e-5,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if len(class_names) < 2:
            raise ContractError(f"class_names must name two classes or more, got {class_names!r}")
        if not losses or len(set(losses)) < len(losses):
            raise ContractError(f"losses must name each loss once, and one or more, got {losses!r}")
        for name in losses:
            check_choice("losses", name, LOSSES)
        if "ls" in losses and len(attribute_names) < 2:
            raise ContractError(
                'losses name "ls", which needs attribute_names: what the values of the spurious '
                f"attribute are called, absence being one, got {attribute_names!r}"
            )
        for argument, texts, fields in (
            ("templates", templates, ("{label}",)),
            ("group_templates", group_templates, ("{label}", "{attribute}")),
        ):
            if not texts or not all(field in text for text in texts for field in fields):
                raise ContractError(
                    f"{argument} must be texts with {' and '.join(fields)}, got {texts!r}"
                )
        check_choice("same", same, ("group", "attribute"))
        check_positive("temperature", encoders.temperature)
        check_positive("learning_rate", learning_rate)
        check_at_least("momentum", momentum, 0)
        check_at_least("weight_decay", weight_decay, 0)
        self.losses = tuple(losses)
        self.same: Same = same
        self.temperature = encoders.temperature
        self.num_classes, self.num_templates = len(class_names), len(templates)
        self.learning_rate, self.momentum = learning_rate, momentum
        self.weight_decay = weight_decay
        self.seed = resolve_seed(seed)

        self.image_encoder = encoders.image_encoder.requires_grad_(False)
        # What no loss touches does not learn: DDP waits for the gradient of all that does.
        self.image_projection = copy.deepcopy(encoders.image_projection).requires_grad_(
            not {"clip", "vc", "vs"}.isdisjoint(losses)
        )
        self.text_projection = copy.deepcopy(encoders.text_projection).requires_grad_(
            not {"clip", "lc", "ls"}.isdisjoint(losses)
        )
        labels = [(label, "") for label in class_names]
        groups = [(label, name) for label in class_names for name in attribute_names]
        self.class_texts: Tensor
        self.group_texts: Tensor
        for argument, texts, pairs in (
            ("class_texts", templates, labels),
            ("group_texts", group_templates, groups if "ls" in losses else []),
        ):
            said = [
                text.format(label=label, attribute=attribute)
                for text in texts
                for label, attribute in pairs
            ]
            features = _encoded(encoders.text_encoder, said)
            self.register_buffer(argument, features, persistent=False)
        self.num_attributes = len(attribute_names)
        with torch.no_grad():
            weight = self._class_embeddings()
        self.head = nn.Linear(weight.shape[1], self.num_classes, bias=False)
        self._refresh_head()

    def forward(self, images: Tensor) -> Tensor:
        """Zero-shot logits (n, C) of images, by the present projections."""
        self._refresh_head()
        logits: Tensor = self.head(self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (n, d) of images, of length 1."""
        return functional.normalize(self.image_projection(self._features(images)), dim=1)

    def unnormalised(self) -> nn.Sequential:
        """Encoder, projection and head in one: inner products with the classes' texts (n, C).

        They predict the same classes as the logits, which divide them by the length of the image's
        embedding, and are what to explain. A cosine does not change with that length: where only
        pooling and projection follow a layer, what speaks for a class and what speaks against it
        cancel in every image, and so some place always speaks for every class.
        """
        self._refresh_head()
        return nn.Sequential(self.image_encoder, self.image_projection, self.head)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The sum of the chosen losses."""
        terms = self._terms(batch)
        loss = torch.stack(list(terms.values())).sum()
        logged = {f"train/loss_{name}": term for name, term in terms.items()}
        self.log_dict(
            {"train/loss": loss, **logged},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch[0]),
        )
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Log the cross-entropy of a validation batch; returns the logits (n, C)."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Log the cross-entropy of a test batch; returns the logits (n, C)."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logits (n, C) of images, or of a batch whose first part are images."""
        logits: Tensor = self(batch if isinstance(batch, Tensor) else batch[0])
        return logits

    def configure_optimizers(self) -> Optimizer:
        """SGD over the projections."""
        return SGD(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def _features(self, images: Tensor) -> Tensor:
        # Lightning puts all in training mode, in which normalisation would drift.
        mode = self.image_encoder.training
        features: Tensor = self.image_encoder.eval()(images)
        self.image_encoder.train(mode)
        return features

    def _terms(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Each of the losses, by name, of the batches of all processes together."""
        images, targets = batch[0], batch[1]
        with torch.no_grad():
            features = self._features(images)
        embeddings = gathered(functional.normalize(self.image_projection(features), dim=1))
        texts = self._embedded(self.class_texts)
        targets = gathered(targets)
        tau = self.temperature
        terms = {}
        for name in self.losses:
            if name == "clip":
                of_templates = texts.view(self.num_templates, self.num_classes, -1)
                captions = of_templates[self._drawn(len(targets)), targets]
                term = clip_loss(embeddings, captions, temperature=tau)
            elif name == "vc":
                term = class_loss(embeddings, targets, temperature=tau)
            elif name == "vs":
                attributes = gathered(self._attributes(batch))
                term = spurious_loss(
                    embeddings, targets, attributes, same=self.same, temperature=tau
                )
            elif name == "lc":
                rows = torch.arange(len(texts), device=texts.device)
                term = class_loss(
                    texts,
                    rows % self.num_classes,
                    templates=rows // self.num_classes,
                    temperature=tau,
                )
            else:
                texts_of_groups = self._embedded(self.group_texts)
                rows = torch.arange(len(texts_of_groups), device=texts.device)
                groups = rows % (self.num_classes * self.num_attributes)
                term = spurious_loss(
                    texts_of_groups,
                    groups // self.num_attributes,
                    groups % self.num_attributes,
                    templates=rows // (self.num_classes * self.num_attributes),
                    same=self.same,
                    temperature=tau,
                )
            terms[name] = term
        return terms

    def _attributes(self, batch: Sequence[Tensor]) -> Tensor:
        if len(batch) < 3:
            raise ContractError(
                'losses name "vs", which needs the spurious attribute of every image: batches '
                f'(images, targets, attributes), got {len(batch)} parts; or use "ls", which '
                "needs none"
            )
        return batch[2]

    def _drawn(self, number: int) -> Tensor:
        """A template for each image (n,), alike on every process, a function of seed and step."""
        draw = generator(self.seed, "clip: captions", self.global_step)
        return torch.randint(self.num_templates, (number,), generator=draw).to(self.device)

    def _embedded(self, text_features: Tensor) -> Tensor:
        return functional.normalize(self.text_projection(text_features), dim=1)

    def _class_embeddings(self) -> Tensor:
        """The mean over templates of a class's texts (C, d), of length 1 again, as in CLIP."""
        texts = self._embedded(self.class_texts).view(self.num_templates, self.num_classes, -1)
        return functional.normalize(texts.mean(0), dim=1)

    def _refresh_head(self) -> None:
        # A new parameter, so that neither inference mode nor an earlier forward is tied to it.
        with torch.inference_mode(False), torch.no_grad():
            weight = self._class_embeddings() / self.temperature
            self.head.weight = nn.Parameter(weight, requires_grad=False)

    def _evaluate(self, batch: Sequence[Tensor], stage: str) -> Tensor:
        images, targets = batch[0], batch[1]
        logits: Tensor = self(images)
        loss = functional.cross_entropy(logits, targets)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return logits


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes under each other, in the order of ranks, with gradients.

    If every process computes the loss of all rows, the gradient of its own rows comes out as many
    times too large as there are processes, and the mean that DDP takes of the parameters'
    gradients is that of one process with all rows.

    Args:
        rows: (n, ...), n alike on all processes, as Lightning's distributed sampler sees to.

    Example:
        >>> gathered(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    return cast(Tensor, _Gather.apply(rows))


class _Gather(torch.autograd.Function):
    """``all_gather`` whose gradient is the sum of what all processes have for the rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total.chunk(distributed.get_world_size())[distributed.get_rank()]


def open_clip_encoders(
    name: str = "RN50", pretrained: str | None = "openai"
) -> tuple[Encoders, Callable[[Any], Tensor]]:
    """A pair of encoders from open_clip: OpenAI's CLIP, and many others.

    Args:
        name: Of the architecture, such as ``"RN50"`` or ``"ViT-L-14-336"``.
        pretrained: Of the weights, which open_clip downloads; ``None`` leaves them random.

    Returns:
        The encoders, and what turns a PIL image into their input.

    Raises:
        ModuleNotFoundError: open_clip is missing.
        ContractError: The model has no linear projections where CLIP has them.
    """
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "open_clip is not installed; install the extra 'clip': "
            "pip install 'lightning-robust[clip]'"
        ) from error
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
    tokenize = open_clip.get_tokenizer(name)
    model.eval().requires_grad_(False)
    language = getattr(model, "text", model)
    text_projection = _taken_out(language, "text_projection", name)
    pool: Any = getattr(model.visual, "attnpool", None)
    if isinstance(getattr(pool, "c_proj", None), nn.Linear):  # the projection of CLIP's ResNets
        image_projection = pool.c_proj
        pool.c_proj = _identity(image_projection.in_features)
    else:
        image_projection = _taken_out(model.visual, "proj", name)

    def encode(texts: list[str]) -> Tensor:
        device = next(model.parameters()).device
        features: Tensor = model.encode_text(tokenize(texts).to(device))
        return features

    temperature = math.exp(-model.logit_scale.item())
    return Encoders(
        model.visual, encode, image_projection, text_projection, temperature
    ), preprocess


def transformers_encoders(model: nn.Module, tokenizer: Callable[..., Any]) -> Encoders:
    """A pair of encoders from a ``CLIPModel`` of Hugging Face transformers.

    Args:
        model: With ``vision_model``, ``text_model``, ``visual_projection``, ``text_projection`` and
            ``logit_scale``. Images are its ``pixel_values``, as its processor makes them.
        tokenizer: Of the same model.

    Raises:
        ContractError: The model has not these parts, as SigLIP has not.
    """
    parts = ("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale")
    missing = [name for name in parts if not hasattr(model, name)]
    if missing:
        raise ContractError(
            f"model ({type(model).__name__}) has no {', '.join(missing)}, so it is no CLIPModel; "
            "build Encoders of its parts yourself"
        )
    clip: Any = model
    return Encoders(
        _PooledImages(clip.vision_model),
        _PooledTexts(clip.text_model, tokenizer),
        clip.visual_projection,
        clip.text_projection,
        math.exp(-clip.logit_scale.item()),
    )


class _PooledImages(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.tower(pixel_values=images).pooler_output
        return features


class _PooledTexts(nn.Module):
    def __init__(self, tower: nn.Module, tokenizer: Callable[..., Any]) -> None:
        super().__init__()
        self.tower, self.tokenizer = tower, tokenizer

    def forward(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        device = next(self.tower.parameters()).device
        tokens = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        features: Tensor = self.tower(**tokens).pooler_output
        return features


def _taken_out(tower: Any, attribute: str, name: str) -> nn.Linear:
    """The projection of a tower, a matrix (d_in, d) or a ``Linear``, which leaves it without."""
    projection = getattr(tower, attribute, None)
    setattr(tower, attribute, None)
    if isinstance(projection, nn.Linear):
        return projection
    if not isinstance(projection, Tensor):
        raise ContractError(
            f"name={name!r} is a model whose {type(tower).__name__} has no linear projection "
            f"{attribute!r}; build Encoders of its parts yourself"
        )
    width, size = projection.shape
    linear = nn.Linear(width, size, bias=False)
    linear.weight = nn.Parameter(projection.detach().T.contiguous())
    return linear


def _identity(size: int) -> nn.Linear:
    """A ``Linear`` that changes nothing, where the weights themselves are read."""
    linear = nn.Linear(size, size)
    linear.weight.data.copy_(torch.eye(size))
    linear.bias.data.zero_()
    return linear.requires_grad_(False)


@torch.no_grad()
def _encoded(text_encoder: Callable[[list[str]], Tensor], texts: list[str]) -> Tensor:
    """Features (m, d_t) of texts, on the CPU until Lightning moves the module."""
    mode = isinstance(text_encoder, nn.Module) and text_encoder.training
    if isinstance(text_encoder, nn.Module):
        text_encoder.eval()
    features = []
    for start in range(0, len(texts), _TEXTS_AT_A_TIME):
        part = texts[start : start + _TEXTS_AT_A_TIME]
        found = text_encoder(part)
        if found.ndim != 2 or len(found) != len(part):
            raise ContractError(
                f"text_encoder must map a list of {len(part)} texts to features "
                f"({len(part)}, d_t), got {tuple(found.shape)}"
            )
        features.append(found.detach().float().cpu())
    if isinstance(text_encoder, nn.Module):
        text_encoder.train(mode)
    return torch.cat(features) if features else torch.zeros(0)
