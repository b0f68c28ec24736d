"""torch-uncertainty: its routine, its model, its recipe and its Trainer, as in its tutorials."""

from torch import nn
from torch.utils.data import DataLoader
from torch_uncertainty import TUTrainer
from torch_uncertainty.models.classification import lenet
from torch_uncertainty.optim_recipes import optim_cifar10_resnet18
from torch_uncertainty.routines import ClassificationRoutine
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

train = MNIST("mnist", train=True, transform=ToTensor())
val = MNIST("mnist", train=False, transform=ToTensor())
model = lenet(in_channels=1, num_classes=10)
module = ClassificationRoutine(
    model=model,
    num_classes=10,
    loss=nn.CrossEntropyLoss(),
    optim_recipe=optim_cifar10_resnet18(model),
)
trainer = TUTrainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(module, DataLoader(train, 16, shuffle=True), DataLoader(val, 16))
