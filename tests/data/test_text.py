"""The text data sets, from small files in their real layouts."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

pytest.importorskip("transformers")

import imitation_texts
from lightning.pytorch import Trainer

from lightning_robust import ContractError, GroupMetrics
from lightning_robust.contracts import groups_of, names_in_keys, targets_of
from lightning_robust.data import (
    SNLI,
    CivilComments,
    CivilCommentsDataModule,
    InstructionsDataModule,
    MultiNLI,
    MultiNLIDataModule,
    SNLIDataModule,
)
from lightning_robust.models import Classifier, text_network

TAGS = imitation_texts.TAGS


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
    return imitation_texts.tokenizer(tmp_path_factory.mktemp("tokenizer"))


# --- CivilComments --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["WILDS", "SubpopBench"])
@pytest.mark.parametrize("groups", [512, 16, 4])
def test_civil_comments_groups_are_those_of_the_table(tmp_path, words, layout, groups):
    rows = imitation_texts.civil_comments(tmp_path, layout)
    dataset = CivilComments(tmp_path, "train", groups=groups, tokenizer=words)
    expected = []
    for row in (row for row in rows if row["split"] == "train"):
        kind = "toxic" if row["toxicity"] >= 0.5 else "nontoxic"
        tags = [tag for tag in TAGS if row[tag] >= 0.5]
        if groups == 512:
            names = [", ".join(tags) or "no tag"]
        elif groups == 16:
            names = tags
        else:
            names = ["any tag" if tags else "no tag"]
        expected += [(row["comment_text"], f"{kind}: {name}") for name in names]
    assert len(dataset.group_names) == groups
    found = [dataset.group_names[group] for group in dataset.groups]
    assert Counter(zip(dataset.texts, found, strict=True)) == Counter(expected)
    kinds = ["toxic" if target else "nontoxic" for target in targets_of(dataset)]
    assert [name.split(":")[0] for name in found] == kinds
    assert groups_of(dataset).num_groups == groups


def test_civil_comments_are_tokenized_and_padded(tmp_path, words):
    rows = imitation_texts.civil_comments(tmp_path)
    datamodule = CivilCommentsDataModule(
        tmp_path, groups=4, tokenizer=words, batch_size=36, max_length=9
    )
    datamodule.setup("fit")
    texts = [row["comment_text"] for row in rows if row["split"] == "train"]
    assert datamodule.train.texts == texts
    [batch] = list(datamodule.train_dataloader())
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    lengths = batch["attention_mask"].sum(1)
    assert batch["input_ids"].shape == (36, int(lengths.max())) == (36, 9)
    assert ((batch["input_ids"] == 0) == (batch["attention_mask"] == 0)).all()
    rude = (batch["input_ids"] == imitation_texts.WORDS.index("rude")).any(1)
    assert torch.equal(rude, batch["labels"].bool())
    names = next(iter(datamodule.val_dataloader()))["labels"]
    assert len(names) == len(datamodule.val)
    assert datamodule.val.group_names[0] == "nontoxic: male"


def test_a_training_set_of_512_groups_goes_with_an_evaluation_of_16(tmp_path, words):
    transformers = pytest.importorskip("transformers")
    imitation_texts.civil_comments(tmp_path)
    transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    ).save_pretrained(tmp_path / "bert")
    datamodule = CivilCommentsDataModule(tmp_path, tokenizer=words, batch_size=18)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[GroupMetrics()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    network = text_network(str(tmp_path / "bert"), 2, pretrained=False)
    module = Classifier(network, optimizer="adamw", learning_rate=1e-3)
    trainer.fit(module, datamodule)
    logged = {key for key in trainer.callback_metrics if key.startswith("val/group_acc/")}
    assert logged == {f"val/group_acc/{name}" for name in names_in_keys(datamodule.val.group_names)}
    assert 0 <= trainer.callback_metrics["val/worst_group_acc"] <= 1


# --- MultiNLI -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["group_DRO", "SubpopBench"])
def test_multi_nli_reads_the_published_files(tmp_path, layout):
    written = imitation_texts.multi_nli(tmp_path, layout)
    for number, split in enumerate(("train", "val", "test")):
        dataset = MultiNLI(tmp_path, split)
        here = [(y, a) for y, a, part in written if part == number]
        assert dataset.targets.tolist() == [y for y, _ in here]
        assert dataset.groups.tolist() == [2 * y + a for y, a in here]
        assert [int(dataset[i]["input_ids"][1]) - 4 for i in range(len(dataset))] == [
            y for y, _ in here
        ]
    assert dataset.group_names[3] == "entailment, negation"
    batch = MultiNLI.collate_fn([dataset[0], dataset[1]])
    lengths = [4 + i % 5 for i, (_, _, part) in enumerate(written) if part == 2][:2]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["token_type_ids"].sum(1).tolist() == [length - 2 for length in lengths]
    assert batch["labels"].dtype == torch.int64


def test_multi_nli_refuses_files_that_do_not_belong_together(tmp_path):
    imitation_texts.multi_nli(tmp_path)
    table = tmp_path / "data" / "metadata_random.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[2:]]))
    with pytest.raises(ContractError, match="59 rows and 60 pairs"):
        MultiNLI(tmp_path)
    (tmp_path / "glue_data" / "MNLI" / "cached_train_bert-base-uncased_128_mnli").unlink()
    with pytest.raises(ContractError, match="multinli_bert_features"):
        MultiNLI(tmp_path)


def test_multi_nli_reads_no_other_objects(tmp_path):
    imitation_texts.multi_nli(tmp_path)
    torch.save([print], tmp_path / "glue_data/MNLI/cached_train_bert-base-uncased_128_mnli")
    with pytest.raises(ContractError, match="cannot be read"):
        MultiNLI(tmp_path)


# --- SNLI and instructions ------------------------------------------------------------------------


def test_snli_leaves_out_what_has_no_label(tmp_path, words):
    imitation_texts.snli(tmp_path)
    dataset = SNLI(tmp_path, tokenizer=words)
    assert torch.bincount(dataset.targets).tolist() == [10, 10, 10]
    item = dataset[1]  # [CLS] a man is rude [SEP] a man [SEP]
    assert (item["input_ids"], item["labels"]) == ([2, 4, 7, 8, 5, 3, 4, 7, 3], 1)
    assert item["token_type_ids"] == [0] * 6 + [1] * 3


@pytest.mark.parametrize("file", ["MathInstruct.json", "other.jsonl"])
def test_instructions_label_the_answers_only(tmp_path, words, file):
    rows = imitation_texts.math_instruct(tmp_path, file)
    datamodule = InstructionsDataModule(
        tmp_path, file=file, tokenizer=words, prompt="is {instruction} ?", num_held_out=5
    )
    datamodule.setup("fit")
    parts = (datamodule.train, datamodule.val, datamodule.test)
    assert [len(part) for part in parts] == [30, 5, 5]
    everything = [row for part in parts for row in part.rows]
    assert sorted(map(json.dumps, everything)) == sorted(map(json.dumps, rows))
    train = datamodule.train
    assert train.group_names == ("data/CoT/a.json", "data/CoT/b.json")
    assert [train.group_names[g] for g in train.groups] == [row["source"] for row in train.rows]
    batch = next(iter(datamodule.train_dataloader()))
    answer = [imitation_texts.WORDS.index(word) for word in ("two", "+", "two", "[SEP]")]
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        length = int(mask.sum())
        assert ids[length - 4 : length].tolist() == answer == labels[labels != -100].tolist()
        assert (labels[: length - 4] == -100).all()
        assert (labels[length:] == -100).all()
    assert "?" not in imitation_texts.WORDS  # the prompt is in front of the answer
    assert (batch["input_ids"] == 1).any(1).all()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (CivilCommentsDataModule, "all_data_with_identities.csv"),
        (MultiNLIDataModule, "metadata_random.csv"),
        (SNLIDataModule, "snli_1.0"),
        (InstructionsDataModule, "MathInstruct.json"),
    ],
)
def test_missing_files_are_named_with_where_to_get_them(tmp_path, kind, named):
    with pytest.raises(ContractError, match=r"does not hold .*https://") as error:
        kind(tmp_path).setup("fit")
    assert named in str(error.value)


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    imitation_texts.snli(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContractError, match="tokenizer="):
        SNLI(tmp_path, tokenizer=str(tmp_path / "empty"))
