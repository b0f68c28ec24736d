"""The page of an audit: one HTML file with its pictures and plots inside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from importlib.metadata import PackageNotFoundError, version
from string import Template

import torch
from torch import Tensor

from lightning_robust.auditing.measuring import Audit, AuditedSplit, GroupReport
from lightning_robust.auditing.pictures import pixels_of, thumbnails

_CARDS = 6
_PICTURES = 8
_STRIP = 24
_ATTRIBUTES = 12
_CLASSES_IN_MATRIX = 20
_POINTS = 600
_HIGHLIGHTS = 3
_SMALL_PICTURE = 32
_NONE = "&ndash;"

_INFERRED = {
    "spare": "clusters of what the model says, within each class (SPARE)",
    "xrm": "what two newly trained twins get right or wrong (XRM)",
    "errors": "what the model itself gets right or wrong",
}


def page(audit: Audit) -> str:
    """The whole page, HTML with everything inside: no script, no link to anywhere.

    Args:
        audit: What was found.
    """
    sections = [
        _worst(audit),
        _given(audit),
        _relies_on(audit),
        _confusion(audit),
        _memorised(audit),
        _isolated(audit),
        _map(audit),
        _next(audit),
        _method(audit),
    ]
    shown = [section for section in sections if section is not None]
    return _PAGE.substitute(
        style=_STYLE.replace("$rendering", _rendering(audit)),
        title=escape(f"Audit: {audit.model_name} on {audit.data_name}"),
        model=escape(audit.model_name),
        data=escape(audit.data_name),
        verdict=_verdict(audit),
        facts=_facts(audit),
        tiles=_tiles(audit),
        notes="".join(f'<p class="note" role="note">{escape(note)}</p>' for note in audit.notes),
        links="".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in shown),
        sections="".join(
            f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{heading}</h2>'
            f"{body}</section>"
            for name, heading, body in shown
        ),
        version=escape(_version()),
        today=date.today().isoformat(),
    )


_Section = tuple[str, str, str]  # its anchor, its heading, its body


def _rendering(audit: Audit) -> str:
    """Very small pictures keep their pixels."""
    pixels = pixels_of(audit.split.dataset[0])
    return "pixelated" if pixels is not None and max(pixels.shape) <= _SMALL_PICTURE else "auto"


# --- the top --------------------------------------------------------------------------------------


def _verdict(audit: Audit) -> str:
    split, worst = audit.split, audit.inferred_groups()[0]
    held_out = "training" if audit.reported == "train" else "held-out"
    said = (
        f"Right on <strong>{_percent(split.accuracy)}</strong> of {len(split.targets):,} "
        f"{held_out} examples"
    )
    if audit.infer == "errors" and audit.given_groups():
        worst = audit.given_groups()[0]
    elif audit.infer == "errors":
        return said + "."
    said += (
        f", but on only <strong>{_percent(worst.accuracy)}</strong> of the {worst.count:,} in the "
        f"group <em>{escape(worst.name)}</em>"
        if worst.accuracy < split.accuracy
        else f", and in every group on at least {_percent(worst.accuracy)}"
    )
    if worst.mistaken_for and worst.accuracy < split.accuracy:
        said += f", which it mostly takes for <em>{escape(worst.mistaken_for)}</em>"
    return said + "."


def _facts(audit: Audit) -> str:
    sizes = ", ".join(f"{name} {len(split.targets):,}" for name, split in audit.splits.items())
    return (
        f"{len(audit.class_names)} classes · examples: {escape(sizes)} · groups are "
        f"{_INFERRED[audit.infer]}"
    )


def _tiles(audit: Audit) -> str:
    inferred, given = audit.inferred_groups(), audit.given_groups()
    trained = audit.splits[audit.trained_on]
    tiles = [(_percent(audit.split.accuracy), f"accuracy on {_split_name(audit.reported)}", "")]
    if audit.infer != "errors":
        tiles.append((_percent(inferred[0].accuracy), "worst inferred group", inferred[0].name))
    if given:
        tiles.append((_percent(given[0].accuracy), "worst given group", given[0].name))
    if audit.trained_on != audit.reported:
        tiles.append((_percent(trained.accuracy), "accuracy on training data", ""))
    if audit.memorisation == "held-out":
        count = int((trained.memorisation >= 0.5).sum())
        tiles.append((f"{count:,}", "memorised examples", _split_name(audit.trained_on)))
    if audit.attributes:
        top = audit.attributes[0]
        tiles.append((_points(top.discrepancy), "lost without", f"{top.attribute} ({top.label})"))
    return "".join(
        f'<div class="tile"><dt>{label}</dt><dd><b>{value}</b>'
        f"{f'<span>{escape(detail)}</span>' if detail else ''}</dd></div>"
        for value, label, detail in tiles
    )


# --- groups ---------------------------------------------------------------------------------------


def _worst(audit: Audit) -> _Section:
    reports, split = audit.inferred_groups(), audit.split
    below = [r for r in reports if r.count and r.accuracy < split.accuracy]
    cards = (below or [r for r in reports if r.count])[:_CARDS]
    chosen = {
        report.name: [
            index for index in report.members[:_PICTURES].tolist() if not split.correct[index]
        ]
        or report.members[:_PICTURES].tolist()
        for report in cards
    }
    pictures = thumbnails(split.dataset, [i for indices in chosen.values() for i in indices])
    by_construction = (
        " Groups of errors are wrong by construction: look at what they have in common."
        if audit.infer == "errors"
        else ""
    )
    body = (
        f"<p>Groups are {_INFERRED[audit.infer]}; nobody had to annotate them. These are the worst "
        f"on {_split_name(audit.reported)}, with the examples the model is most wrong about."
        f"{by_construction}</p>"
        f'<ul class="cards">'
        + "".join(_card(audit, report, chosen[report.name], pictures) for report in cards)
        + "</ul>"
        + _details(f"All {len(reports)} inferred groups", _group_table(audit, reports))
    )
    return "groups", "Worst inferred groups", body


def _card(
    audit: Audit, report: GroupReport, indices: Sequence[int], pictures: dict[int, str]
) -> str:
    facts = [f"{report.count:,} examples ({report.count / len(audit.split.targets):.1%})"]
    if report.mistaken_for:
        facts.append(f"mostly taken for <b>{escape(report.mistaken_for)}</b>")
    if report.overlap_share >= 0.5:
        facts.append(f"{report.overlap_share:.0%} are given group <b>{escape(report.overlap)}</b>")
    if report.train_count:
        facts.append(
            f"in training: {report.train_count:,} examples, {_percent(report.train_accuracy)} right"
        )
    low, high = report.interval
    return (
        f'<li class="card"><h3>{escape(report.name)}</h3>'
        f'<p class="big">{_percent(report.accuracy)} <small>right '
        f"(95 % interval {100 * low:.0f} to {100 * high:.0f})</small></p>"
        f"{_bar(report.accuracy, report.interval)}"
        f'<ul class="facts">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul>'
        f"{_pictures(audit, audit.split, indices, pictures)}</li>"
    )


def _given(audit: Audit) -> _Section | None:
    reports = audit.given_groups()
    if not reports:
        return None
    accuracies = [report.accuracy for report in reports if report.count]
    body = (
        f"<p>The groups that came with the data, the worst first: from "
        f"{_percent(min(accuracies))} to {_percent(max(accuracies))}.</p>"
        + _group_table(audit, reports)
    )
    return "given", "Given groups", body


def _group_table(audit: Audit, reports: Sequence[GroupReport]) -> str:
    header = ["group", "accuracy", "", "examples", "taken for"]
    trained = any(report.train_count for report in reports)
    overlaps = any(report.overlap for report in reports)
    header += ["in training"] if trained else []
    header += ["mostly given group"] if overlaps else []
    rows = []
    for report in reports:
        row = [
            f'<th scope="row">{escape(report.name)}</th>',
            f'<td class="number">{_percent(report.accuracy)}</td>',
            f'<td class="wide">{_bar(report.accuracy, report.interval)}</td>',
            f'<td class="number">{report.count:,}</td>',
            f"<td>{escape(report.mistaken_for) or _NONE}</td>",
        ]
        if trained:
            row.append(
                f'<td class="number">{report.train_count:,}, {_percent(report.train_accuracy)}</td>'
                if report.train_count
                else '<td class="number">0</td>'
            )
        if overlaps:
            share = f"{escape(report.overlap)} ({report.overlap_share:.0%})"
            row.append(f"<td>{share if report.overlap else _NONE}</td>")
        rows.append("".join(row))
    caption = f"Accuracy by group on {_split_name(audit.reported)}, with 95 % intervals"
    return _table(caption, header, rows)


# --- what it relies on, and what it confuses ------------------------------------------------------


def _relies_on(audit: Audit) -> _Section | None:
    ranking = audit.attributes[:_ATTRIBUTES]
    if not ranking:
        return None
    rows = [
        f'<th scope="row">{escape(one.label)}</th><td>{escape(one.attribute)}</td>'
        f'<td class="number">{_points(one.discrepancy)}</td>'
        f'<td class="wide">{_bar(one.discrepancy)}</td>'
        f'<td class="number">{one.with_attribute:,} / {one.without_attribute:,}</td>'
        f"<td>{escape(one.confused_with) or _NONE}</td>"
        for one in ranking
    ]
    header = ["class", "attribute", "points lost", "", "with / without", "then taken for"]
    body = (
        "<p>How much less accurate the model is on a class where an attribute is missing. Whether "
        "the attribute belongs to the class or merely comes along with it is for you to say. "
        "Among many attributes some differ by chance: mind the counts.</p>"
        + _table("Accuracy with an attribute minus accuracy without it", header, rows)
    )
    return "attributes", "What it relies on", body


def _confusion(audit: Audit) -> _Section:
    split, names = audit.split, audit.class_names
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    ones = torch.ones_like(split.targets)
    counts.index_put_((split.targets, split.predictions), ones, accumulate=True)
    if len(names) <= _CLASSES_IN_MATRIX:
        return "confusion", "What is taken for what", _matrix(counts, names)
    off = counts.masked_fill(torch.eye(len(names), dtype=torch.bool), 0)
    pairs = off.flatten().argsort(descending=True, stable=True)[:15].tolist()
    rows = [
        f'<th scope="row">{escape(names[pair // len(names)])}</th>'
        f"<td>{escape(names[pair % len(names)])}</td>"
        f'<td class="number">{int(off.flatten()[pair]):,}</td>'
        for pair in pairs
        if off.flatten()[pair] > 0
    ]
    table = _table("The most frequent confusions", ["class", "taken for", "examples"], rows)
    return "confusion", "What is taken for what", table


def _matrix(counts: Tensor, names: Sequence[str]) -> str:
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    rows = []
    for label, name in enumerate(names):
        cells = "".join(
            f'<td class="{"hit" if label == other else "miss"}" '
            f'style="--s:{float(shares[label, other]):.3f}"><span>{int(counts[label, other]):,}'
            "</span></td>"
            for other in range(len(names))
        )
        rows.append(f'<th scope="row">{escape(name)}</th>{cells}')
    return _table(
        "Rows are true classes, columns are predictions; numbers are examples",
        ["", *map(escape, names)],
        rows,
        "matrix",
    )


# --- examples -------------------------------------------------------------------------------------


def _memorised(audit: Audit) -> _Section:
    trained = audit.splits[audit.trained_on]
    values, chosen = trained.memorisation, audit.most_memorised(_STRIP).tolist()
    if audit.memorisation == "held-out":
        heading = "Memorised examples"
        what = (
            "The model's probability of the label minus that of a twin that was not trained on the "
            f"example. {int((values >= 0.5).sum()):,} of {len(values):,} training examples are at "
            ".5 or above: right because they were learned by heart. A wrong label, or a rare kind?"
        )
        unit = "probability with the example in training minus without"
    else:
        heading = "Most influential examples"
        what = (
            "The norm of each example's gradient in the last layer, its influence on itself: large "
            "where the model resists the label. Wrong labels, rare kinds and unreadable examples "
            "gather here."
        )
        unit = "gradient norm in the last layer"
    pictures = thumbnails(trained.dataset, chosen)
    body = (
        f"<p>{what}</p>{_histogram(values, unit)}"
        f"{_pictures(audit, trained, chosen, pictures, values)}"
    )
    return "memorised", heading, body


def _isolated(audit: Audit) -> _Section:
    trained = audit.splits[audit.trained_on]
    count = int(trained.isolated.sum())
    order = trained.isolated.nonzero().flatten()
    order = order[trained.memorisation[order].argsort(descending=True, stable=True)]
    chosen = order[:_STRIP].tolist()
    what = (
        f"{count:,} of {len(trained.targets):,} examples of "
        f"{_split_name(audit.trained_on)} pull the model where no other of their class does: each "
        "is a cluster of its own among the gradients of its class. Effective poisons look like "
        "this, and so do rare examples; EPIC drops them."
    )
    pictures = _pictures(audit, trained, chosen, thumbnails(trained.dataset, chosen))
    return "isolated", "Isolated examples", f"<p>{what}</p>{pictures if chosen else ''}"


def _pictures(
    audit: Audit,
    split: AuditedSplit,
    indices: Sequence[int],
    pictures: dict[int, str],
    values: Tensor | None = None,
) -> str:
    """Pictures with what they are taken for; a list of indices where there are none."""
    shown = []
    for index in indices:
        target = audit.class_names[int(split.targets[index])]
        prediction = audit.class_names[int(split.predictions[index])]
        right = target == prediction
        said = f"{target}" if right else f"{target} → {prediction}"
        score = f" · {float(values[index]):.2f}" if values is not None else ""
        alt = f"Example {index}: {target}, " + ("right" if right else f"taken for {prediction}")
        image = (
            f'<img src="{pictures[index]}" alt="{escape(alt, quote=True)}" loading="lazy">'
            if pictures
            else ""
        )
        shown.append(
            f'<li class="{"right" if right else "wrong"}"><figure>{image}<figcaption>'
            f"{escape(said)}<br><small>#{index}{score}</small></figcaption></figure></li>"
        )
    return f'<ul class="pictures">{"".join(shown)}</ul>' if shown else ""


# --- plots ----------------------------------------------------------------------------------------


def _histogram(values: Tensor, unit: str, bins: int = 40) -> str:
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values.double(), bins, low, high if high > low else low + 1)
    # Few are memorised among many that are not: the square root shows both.
    heights = (counts / counts.max()).sqrt().tolist()
    bars = "".join(
        f'<rect x="{15 * i + 1}" y="{120 - 118 * height:.1f}" width="13" '
        f'height="{118 * height:.1f}" rx="2"/>'
        for i, height in enumerate(heights)
        if height
    )
    label = escape(f"Histogram of {len(values):,} examples by {unit}", quote=True)
    return (
        f'<figure class="plot"><svg viewBox="0 0 {15 * bins} 120" preserveAspectRatio="none" '
        f'role="img" aria-label="{label}">{bars}</svg>'
        f'<div class="axis"><span>{low:.2g}</span><span>{high:.2g}</span></div>'
        f"<figcaption>{escape(unit[0].upper() + unit[1:])}; heights grow with the square root of "
        "the number of examples.</figcaption></figure>"
    )


def _map(audit: Audit) -> _Section | None:
    """The two main directions of the features, with the worst groups in colour."""
    split = audit.split
    if len(split.targets) < 3 or split.features.shape[1] < 2:
        return None
    step = max(1, math.ceil(len(split.targets) / _POINTS))
    shown = torch.arange(0, len(split.targets), step)
    centred = split.features.double() - split.features.double().mean(0)
    _, _, directions = torch.linalg.svd(centred[shown], full_matrices=False)
    points = centred[shown] @ directions[:2].T
    if points.shape[1] < 2:
        return None
    low, high = points.amin(0), points.amax(0)
    points = 12 + (points - low) / (high - low).clamp(min=1e-12) * torch.tensor([616.0, 376.0])
    worst = [report.name for report in audit.inferred_groups() if report.count][:_HIGHLIGHTS]
    worst_number = {split.inferred.names.index(name): i for i, name in enumerate(worst)}
    marks: list[list[str]] = [[] for _ in range(_HIGHLIGHTS + 1)]
    for (x, y), group in zip(points.tolist(), split.inferred.ids[shown].tolist(), strict=True):
        place = worst_number.get(group, _HIGHLIGHTS)
        marks[place].append(_mark(x, y, place))
    drawn = "".join(
        f'<g class="mark{place}">{"".join(marks[place])}</g>'
        for place in reversed(range(_HIGHLIGHTS + 1))
    )
    legend = "".join(
        f'<li><svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true"><g class="mark'
        f'{place}">{_mark(7, 7, place)}</g></svg>{escape(name)}</li>'
        for place, name in [*enumerate(worst), (_HIGHLIGHTS, "all other examples")]
    )
    alt = "Examples by the two main directions of the features; the worst groups are in colour"
    body = (
        "<p>The input of the last layer, seen along its two main directions. A group that lies "
        "among another class is seen like that class.</p>"
        f'<figure class="plot map"><svg viewBox="0 0 640 400" role="img" aria-label="{alt}">{drawn}'
        f'</svg><figcaption><ul class="legend">{legend}</ul></figcaption></figure>'
    )
    return "map", "A map of the examples", body


def _mark(x: float, y: float, place: int) -> str:
    """A form for each group, so that colour is not all that tells them apart."""
    if place == 0:
        return f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5"/>'
    if place == 1:
        return f'<rect x="{x - 4.5:.0f}" y="{y - 4.5:.0f}" width="9" height="9"/>'
    if place == 2:
        return f'<path d="M{x:.0f} {y - 6:.0f}l6 10h-12z"/>'
    return f'<circle cx="{x:.0f}" cy="{y:.0f}" r="2.5"/>'


# --- the end --------------------------------------------------------------------------------------


def _next(audit: Audit) -> _Section:
    stages = [name for name in ("val", "test") if name in audit.splits]
    measured = f'GroupMetrics(groups="groups.csv", stages={tuple(stages)!r})' if stages else ""
    code = (
        "from lightning.pytorch import Trainer\n"
        f"from lightning_robust import GroupDRO{', GroupMetrics' if stages else ''}\n\n"
        "trainer = Trainer(\n    callbacks=[\n"
        '        GroupDRO(groups="groups.csv", balanced_sampling=True),\n'
        + (f"        {measured},\n" if measured else "")
        + "    ]\n)\ntrainer.fit(your_module, your_datamodule)\n"
    )
    body = (
        "<p>Beside this page lies <code>groups.csv</code>, a row an example: split, index, "
        "inferred group, and the rest of what is shown here. <code>groups=</code> of every "
        "callback takes it, so the next training can serve these groups better:</p>"
        f"<pre><code>{escape(code)}</code></pre>"
    )
    return "next", "What to do about it", body


def _method(audit: Audit) -> _Section:
    says = {
        "spare": f"k-means on the softmax of the {escape(audit.reported)} split, class by class, "
        "the number of clusters by silhouette; examples of other splits belong to the nearest "
        "centre of their class.",
        "xrm": "two copies of the network, trained anew on half of the training split each; an "
        "example that either gets wrong is in the group “wrong” of its class.",
        "errors": "right and wrong predictions of each class.",
    }
    rows = [
        ("Inferred groups", says[audit.infer]),
        ("Intervals", "Wilson's, 95 %; groups are not corrected for being many."),
        (
            "Order",
            f"by accuracy; groups of fewer than {audit.min_count} examples come last, and "
            "attributes of fewer are left out.",
        ),
        (
            "Attributes",
            "given ones; of pictures, the hue of the mean colour in six sectors, and the outer "
            "tenths in brightness and contrast.",
        ),
        (
            "Isolation",
            "greedy medoids of softmax minus one-hot in each class; an example that stands for "
            "nothing but itself is isolated.",
        ),
        ("The model", "ran in evaluation mode, once over each split, and was left as found."),
    ]
    body = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    return "method", "How this was measured", f'<dl class="method">{body}</dl>'


# --- pieces ---------------------------------------------------------------------------------------


def _table(caption: str, header: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
    head = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in header)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    said = escape(caption, quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{said}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _bar(share: float, interval: tuple[float, float] | None = None) -> str:
    """A bar from 0 to 1 and its interval; decoration beside a number."""
    if math.isnan(share):
        return ""
    whisker = ""
    if interval is not None:
        low, high = interval
        whisker = f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    return (
        f'<span class="bar" aria-hidden="true"><b style="width:{100 * share:.1f}%"></b>{whisker}'
        "</span>"
    )


def _percent(share: float) -> str:
    return _NONE if math.isnan(share) else f"{100 * share:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:.0f} points"


def _split_name(split: str) -> str:
    return {"train": "training data", "val": "validation data", "test": "test data"}[split]


def _version() -> str:
    try:
        return version("lightning-robust")
    except PackageNotFoundError:
        return ""


_STYLE = """
:root{color-scheme:light dark;--ground:#f6f7f9;--paper:#fff;--ink:#17202e;--soft:#5a6576;
--line:#dfe3ea;--accent:#2563eb;--pale:#dbe6fd;--bad:#c2410c;--badpale:#fde4d3;--code:#f1f3f7;
--m0:#c2410c;--m1:#7c3aed;--m2:#0f766e;--rest:#aab3c2}
@media(prefers-color-scheme:dark){:root{--ground:#10141b;--paper:#191f29;--ink:#e8ecf3;
--soft:#a2adbd;--line:#2d3643;--accent:#7aa5ff;--pale:#253352;--bad:#fb923c;--badpale:#4a2b18;
--code:#11161e;--m0:#fb923c;--m1:#c4a2ff;--m2:#4fd1c0;--rest:#5b6779}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header.top,main,footer{max-width:68rem;margin:0 auto;padding:0 1.1rem}
header.top{padding-top:2.2rem}
.eyebrow{margin:0;color:var(--accent);font-weight:650;letter-spacing:.06em;
text-transform:uppercase;font-size:.78rem}
h1{font-size:clamp(1.5rem,4.5vw,2.3rem);line-height:1.15;margin:.2rem 0 .8rem;
overflow-wrap:anywhere;text-wrap:balance}
h1 span{color:var(--soft);font-weight:500}
h2{font-size:1.3rem;margin:0 0 .4rem}h3{font-size:1rem;margin:0;overflow-wrap:anywhere}
.verdict{font-size:clamp(1.05rem,2.6vw,1.3rem);line-height:1.45;margin:0 0 .5rem;max-width:48rem}
.verdict strong{color:var(--bad);white-space:nowrap}.verdict strong:first-child{color:var(--ink)}
.verdict em{font-style:normal;font-weight:650}
.soft,.facts,small,figcaption,caption{color:var(--soft)}.soft{font-size:.9rem;margin:.3rem 0 1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.2rem,1fr));gap:.7rem;
margin:1rem 0}
.tile{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:.75rem .9rem}
.tile dt{color:var(--soft);font-size:.82rem}.tile dd{margin:0}
.tile b{font-size:1.5rem;display:block;font-variant-numeric:tabular-nums;line-height:1.25;
overflow-wrap:anywhere}
.tile span{font-size:.82rem;color:var(--soft);overflow-wrap:anywhere}
.note{background:var(--badpale);border-left:4px solid var(--bad);border-radius:6px;
padding:.6rem .9rem;margin:.6rem 0}
nav ul{display:flex;flex-wrap:wrap;gap:.35rem .5rem;list-style:none;padding:0;margin:1rem 0 1.4rem}
nav a{display:block;padding:.3rem .75rem;border:1px solid var(--line);border-radius:999px;
background:var(--paper);color:var(--ink);text-decoration:none;font-size:.88rem}
nav a:hover,nav a:focus-visible{border-color:var(--accent);color:var(--accent)}
section{background:var(--paper);border:1px solid var(--line);border-radius:14px;
padding:1.2rem 1.2rem 1.3rem;margin:0 0 1.1rem;scroll-margin-top:1rem}
section>p{margin:.2rem 0 .9rem;max-width:46rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr));gap:.9rem;
list-style:none;padding:0;margin:0}
.card{border:1px solid var(--line);border-radius:12px;padding:.9rem}
.big{font-size:1.55rem;font-weight:700;margin:.1rem 0 .35rem;font-variant-numeric:tabular-nums}
.big small{font-size:.8rem;font-weight:400;display:block;line-height:1.3}
.facts{list-style:none;padding:0;margin:.5rem 0 .6rem;font-size:.9rem}.facts b{color:var(--ink)}
.bar{position:relative;display:block;height:.62rem;border-radius:999px;background:var(--pale);
min-width:7rem}
.bar b{display:block;height:100%;border-radius:999px;background:var(--accent);min-width:2px}
.bar i{position:absolute;top:50%;height:2px;margin-top:-1px;background:var(--ink);opacity:.75}
.bar i::before,.bar i::after{content:"";position:absolute;top:-3px;width:2px;height:8px;
background:var(--ink)}.bar i::after{right:0}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(4.1rem,1fr));gap:.5rem;
list-style:none;padding:0;margin:.3rem 0 0}
.pictures figure{margin:0}.pictures img{width:100%;aspect-ratio:1;object-fit:contain;
background:#000;border-radius:6px;border:2px solid transparent;image-rendering:$rendering}
.pictures .wrong img{border-color:var(--bad)}
.pictures figcaption{font-size:.74rem;line-height:1.25;overflow-wrap:anywhere;margin-top:.15rem}
.pictures .wrong figcaption{color:var(--ink)}
.scroll{overflow-x:auto;margin:.2rem 0}
table{border-collapse:collapse;width:100%;font-size:.92rem}
caption{text-align:left;max-width:78vw;font-size:.85rem;padding-bottom:.4rem}
th,td{text-align:left;padding:.38rem .6rem;border-top:1px solid var(--line);vertical-align:middle}
thead th,thead td{border-top:0;color:var(--soft);font-weight:600;font-size:.84rem;
white-space:nowrap}
tbody th{font-weight:600}.number{font-variant-numeric:tabular-nums;white-space:nowrap}
.wide{width:32%;min-width:8rem}
.matrix{width:auto;min-width:min(24rem,100%)}
.matrix td,.matrix thead th{text-align:center;min-width:3rem}
.matrix td{font-variant-numeric:tabular-nums;border:2px solid var(--paper);border-radius:8px}
.hit{background:color-mix(in srgb,var(--accent) calc(var(--s)*55%),var(--paper))}
.miss{background:color-mix(in srgb,var(--bad) calc(var(--s)*75%),var(--paper))}
details{margin-top:1rem}summary{cursor:pointer;font-weight:600;color:var(--accent)}
.plot{margin:.6rem 0 1rem}.plot svg{display:block;width:100%;height:7.5rem;fill:var(--accent)}
.plot.map svg{height:auto;border:1px solid var(--line);border-radius:10px}
.plot .axis{display:flex;justify-content:space-between;font-size:.8rem;color:var(--soft);
border-top:1px solid var(--line)}
.plot figcaption{font-size:.85rem}
.mark0{fill:var(--m0)}.mark1{fill:var(--m1)}.mark2{fill:var(--m2)}.mark3{fill:var(--rest)}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;list-style:none;padding:0;margin:.5rem 0 0}
.legend li{display:flex;gap:.4rem;align-items:center}.plot.map .legend svg{width:14px;border:0}
pre{background:var(--code);border:1px solid var(--line);border-radius:10px;padding:.9rem 1rem;
overflow-x:auto;font-size:.88rem;line-height:1.5}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.95em}
.method dt{font-weight:600}.method dd{margin:0 0 .6rem;color:var(--soft)}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--accent);
outline-offset:2px}
footer{color:var(--soft);font-size:.85rem;padding-bottom:2.5rem}
@media print{nav{display:none}section{break-inside:avoid}}
"""

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header class="top">
<p class="eyebrow">Robustness audit</p>
<h1>$model <span>on</span> $data</h1>
<p class="verdict">$verdict</p>
<p class="soft">$facts</p>
<dl class="tiles">$tiles</dl>
$notes
<nav aria-label="Sections"><ul>$links</ul></nav>
</header>
<main>$sections</main>
<footer><p>lightning-robust $version · $today</p></footer>
</body>
</html>
"""
)
