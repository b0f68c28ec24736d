"""PyTorch Geometric: graphs, its loader, whose batches are graphs too, and a GIN."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, MLP, global_add_pool


class GraphClassifier(LightningModule):
    def __init__(self, num_features, num_classes):
        super().__init__()
        self.gnn = GIN(num_features, 16, num_layers=2)
        self.classifier = MLP([16, 16, num_classes], norm="batch_norm", dropout=0.3)

    def forward(self, data):
        x = self.gnn(data.x, data.edge_index)
        x = global_add_pool(x, data.batch, size=data.num_graphs)
        return self.classifier(x)

    def training_step(self, data, batch_idx):
        return torch.nn.functional.cross_entropy(self(data), data.y)

    def validation_step(self, data, batch_idx):
        loss = torch.nn.functional.cross_entropy(self(data), data.y)
        self.log("val_loss", loss, batch_size=data.num_graphs)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


seed_everything(0)
graphs = FakeDataset(num_graphs=100, avg_num_nodes=10, num_channels=8, num_classes=3)
train, val = graphs[:80], graphs[80:]
module = GraphClassifier(graphs.num_features, graphs.num_classes)
trainer = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(module, DataLoader(train, 16, shuffle=True), DataLoader(val, 16))
