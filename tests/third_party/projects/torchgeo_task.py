"""TorchGeo: its classification task on its data set, whose items are dictionaries."""

from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader
from torchgeo.datasets import NonGeoClassificationDataset
from torchgeo.trainers import ClassificationTask

seed_everything(0)
train = NonGeoClassificationDataset("images/train")
val = NonGeoClassificationDataset("images/val")
module = ClassificationTask(model="test_resnet", num_classes=3, lr=1e-3, patience=2)
trainer = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(module, DataLoader(train, 16, shuffle=True), DataLoader(val, 16))
