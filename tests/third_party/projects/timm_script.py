"""A timm training script in Lightning: timm's model, transforms, loss, optimizer and scheduler."""

import timm
from lightning.pytorch import LightningModule, Trainer, seed_everything
from timm.data import create_transform
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


class ImageModel(LightningModule):
    def __init__(self, name, num_classes):
        super().__init__()
        self.model = timm.create_model(name, num_classes=num_classes, drop_rate=0.1)
        self.criterion = LabelSmoothingCrossEntropy(smoothing=0.1)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return self.criterion(self.model(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val/top1", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = create_optimizer_v2(self, opt="adamw", lr=1e-3, weight_decay=0.05)
        scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=3)
        return [optimizer], [{"scheduler": scheduler, "interval": "epoch"}]

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(epoch=self.current_epoch)


seed_everything(0)
train = ImageFolder("images/train", create_transform(32, is_training=True))
val = ImageFolder("images/val", create_transform(32))
module = ImageModel("test_resnet", num_classes=3)
trainer = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(module, DataLoader(train, 16, shuffle=True), DataLoader(val, 16))
