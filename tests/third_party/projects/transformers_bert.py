"""A Hugging Face text classifier in Lightning: BERT, its tokenizer's batches, its own loss."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup
from transformers.data import default_data_collator


class Reviews(Dataset):
    def __init__(self, count, seed):
        source = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 3
        self.ids = torch.randint(10, 50, (count, 12), generator=source)
        self.ids[:, 3] = self.labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        mask = torch.ones(12, dtype=torch.long)
        return {
            "input_ids": self.ids[index],
            "attention_mask": mask,
            "labels": int(self.labels[index]),
        }


class TextClassifier(LightningModule):
    def __init__(self):
        super().__init__()
        config = BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=3,
        )
        self.model = BertForSequenceClassification(config)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        steps = self.trainer.estimated_stepping_batches
        schedule = get_linear_schedule_with_warmup(optimizer, 2, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


seed_everything(0)
module = TextClassifier()
train = DataLoader(Reviews(80, 0), 16, shuffle=True, collate_fn=default_data_collator)
val = DataLoader(Reviews(20, 1), 16, collate_fn=default_data_collator)
trainer = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(module, train, val)
