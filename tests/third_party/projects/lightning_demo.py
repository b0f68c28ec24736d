"""Lightning's own MNIST data module, from ``lightning.pytorch.demos``, and a plain module."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.demos.mnist_datamodule import MNISTDataModule
from torch import nn


class LitClassifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.l1 = nn.Linear(28 * 28, 32)
        self.l2 = nn.Linear(32, 10)

    def forward(self, x):
        return self.l2(torch.relu(self.l1(x.flatten(1))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


seed_everything(0)
module = LitClassifier()
datamodule = MNISTDataModule("mnist", val_split=20, num_workers=0, seed=0, batch_size=16)
trainer = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(module, datamodule=datamodule)
