"""Lightly's fine-tuning benchmark: its classifier on its data set, as after pre-training."""

from lightly.data import LightlyDataset
from lightly.utils.benchmarking import FinetuneClassifier
from pytorch_lightning import Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

seed_everything(0)
transform = v2.Compose([v2.PILToTensor(), v2.RandomHorizontalFlip(), v2.Lambda(lambda x: x / 255)])
train = LightlyDataset("images/train", transform=transform)
val = LightlyDataset("images/val", transform=transform)
backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
module = FinetuneClassifier(backbone, 16, feature_dim=8, num_classes=3, topk=(1, 2))
trainer = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(module, DataLoader(train, 16, shuffle=True), DataLoader(val, 16))
