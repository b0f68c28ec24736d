"""The page is whole, needs nothing else, and can be read by anyone; the command makes it."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torchvision.utils import save_image

from lightning_robust import Groups, audit
from lightning_robust.auditing.sources import imported, model_from, value_of
from lightning_robust.cli import main
from lightning_robust.contracts import ContractError, resolve_groups
from lightning_robust.data import ColouredDigits, ColouredDigitsDataModule

VOID = {"meta", "img", "br", "rect", "circle", "path"}
NASTY = '<script>alert("&")</script>'


class Page(HTMLParser):
    """Checks that tags are closed, and notes what they hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def found(early):
    return audit(early, ColouredDigitsDataModule())


def read(found, tmp_path) -> Page:
    text = found.write(tmp_path).read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")
    page = Page(text)
    assert not page.open
    return page


def test_page_is_self_contained_and_accessible(found, tmp_path):
    page = read(found, tmp_path)
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert len(page.all("h1")) == 1
    assert not page.all("script") + page.all("link")
    assert len(page.all("img")) > 50
    for image in page.all("img"):
        assert image["alt"].startswith("Example ")
        assert image["src"].startswith("data:image/png;base64,")
    named = {tag["id"] for _, tag in page.tags if "id" in tag}
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= named
    assert len(page.all("table")) == len(page.all("caption"))
    for report in found.inferred_groups():
        assert report.name in page.text
    assert f"{100 * found.split.accuracy:.1f} %" in page.text


def test_names_are_escaped(found, tmp_path):
    names = (NASTY, *found.class_names[1:])
    page = read(replace(found, class_names=names, model_name=NASTY), tmp_path)
    assert not page.all("script")
    assert NASTY in page.text


def test_page_without_pictures_groups_or_many_examples(tmp_path):
    torch.manual_seed(0)
    dataset = torch.utils.data.TensorDataset(torch.randn(4, 6), torch.tensor([0, 0, 1, 1]))
    page = read(audit(torch.nn.Linear(6, 2), dataset), tmp_path)
    assert not page.all("img")
    assert "Given groups" not in page.text


def test_command_audits_a_checkpoint(early, tmp_path, capsys):
    torch.save(early.state_dict(), tmp_path / "weights.pt")
    command = [
        "audit",
        "--model=lightning_robust.models.SmallConvNet",
        "--model.num_classes=5",
        f"--checkpoint={tmp_path / 'weights.pt'}",
        "--data=coloured-digits",
        "--data.correlation=0.9",
        f"--output={tmp_path / 'out'}",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    dataset = ColouredDigits("train", correlation=0.9)
    with torch.no_grad():
        val = ColouredDigits("val")
        accuracy = float((early(val.images).argmax(1) == val.targets).double().mean())
    assert f"accuracy {accuracy:.1%}" in printed
    assert (tmp_path / "out" / "audit.html").is_file()
    groups = resolve_groups(tmp_path / "out" / "groups.csv", dataset, split="train")
    assert isinstance(groups, Groups)


@pytest.fixture
def folder(tmp_path):
    dataset = ColouredDigits("val")
    lines = ["split,index,group"]
    for split, step in (("train", 0), ("val", 1)):
        place = 0
        for label in range(3):
            (tmp_path / "images" / split / f"class {label}").mkdir(parents=True)
            for index in (dataset.targets == label).nonzero().flatten()[step:20:2].tolist():
                path = tmp_path / "images" / split / f"class {label}" / f"{index:04d}.png"
                save_image(dataset.images[index], path)
                lines.append(f"{split},{place},{index % 5}")
                place += 1
    (tmp_path / "groups.csv").write_text("\n".join(lines))
    return tmp_path


def test_command_audits_a_timm_model_on_a_folder(folder, capsys):
    command = ["audit", "--model=timm:test_resnet", f"--data={folder / 'images'}"]
    command += [f"--groups={folder / 'groups.csv'}", "--image-size=32", "--min-count=2"]
    assert main([*command, f"--output={folder / 'out'}"]) == 0
    assert "val split" in capsys.readouterr().out
    text = (folder / "out" / "audit.html").read_text(encoding="utf-8")
    assert "Given groups" in text
    assert "class 2" in text


def test_command_without_a_model_trains_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lightning_robust.auditing.command._DEMO_EPOCHS", 1)
    assert main(["audit", "--infer=errors", f"--output={tmp_path}"]) == 0
    assert "worst inferred groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data=/nowhere/at/all"], "--model"),
        (["--model=timm:resnet1000"], "timm has no model"),
        (["--model=Nothing"], "package.module.Class"),
        (["--model=lightning_robust.models.Nothing"], "cannot be imported"),
        (["--model=math.sqrt"], "LightningModule"),
        (["--model=torch.nn.Linear"], "--model.NAME=VALUE"),
        (["--model=torch.nn.Flatten", "--checkpoint=absent.ckpt"], "absent.ckpt"),
        (["--model=torch.nn.Flatten", "--data=absent"], "absent"),
        (["--model=torch.nn.Flatten", "--data=torch.nn.Linear"], "--data.NAME=VALUE"),
        (["--model=torch.nn.Flatten", "--data.colour=3"], "colour"),
        (["--model=torch.nn.Flatten", "--data.batch_size"], "NAME=VALUE"),
        (["--model=torch.nn.Flatten"], "no head found"),
        (["--model=torch.nn.Flatten", "--infer=magic"], "magic"),
        (["--model=torch.nn.Flatten", "--seed=-1"], "seed"),
        (["--model=torch.nn.Flatten", f"--output={__file__}"], "output"),
    ],
)
def test_command_refuses(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["audit", *arguments])
    assert end.value.code == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "audit").exists()


def test_an_empty_folder_and_a_checkpoint_of_another_model_are_refused(tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ContractError, match="does not fit SmallConvNet"):
        model_from("lightning_robust.models.SmallConvNet", tmp_path / "other.pt", {}, int)
    with pytest.raises(SystemExit):
        main(["audit", "--model=torch.nn.Flatten", f"--data={tmp_path}"])
    assert "a folder of images for each class" in capsys.readouterr().err


def test_values_of_options():
    assert value_of("1e-3") == 0.001
    assert value_of("None") is None
    assert value_of("lightning_robust.data.ColouredDigits") is imported(
        "lightning_robust.data.ColouredDigits"
    )
    assert value_of("some.thing") == "some.thing"
