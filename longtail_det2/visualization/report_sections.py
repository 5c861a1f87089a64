"""The sections of the report: each a function from results to HTML, empty where there is no content."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from longtail_det2 import __version__
from longtail_det2.data.store import AnnotationStore
from longtail_det2.visualization.predictions import read_predictions
from longtail_det2.visualization.report_facts import (
    changed_settings,
    describe_environment,
    describe_run,
    describe_store,
    duration,
)
from longtail_det2.visualization.report_html import Cell, definitions, details, figure, section, table
from longtail_det2.visualization.report_pictures import Picture, draw_pictures
from longtail_det2.visualization.report_plots import (
    COLOR_OF_GROUP,
    ap_figure,
    frequency_figure,
    group_of_class,
    training_figure,
)
from longtail_det2.visualization.run_data import ClassResult, Evaluation, RunData, TrainingLog

_GROUPS = ("head", "medium", "tail")
_COCO_TASKS = {"coco_bbox": "boxes", "coco_segm": "masks"}
_LVIS_TASKS = {
    "lvis_bbox": "boxes",
    "lvis_bbox_fixed": "boxes, fixed AP",
    "lvis_segm": "masks",
    "lvis_segm_fixed": "masks, fixed AP",
}
_LVIS_MEANS = {
    "AP": "AP",
    "APr": "AP rare classes",
    "APc": "AP common classes",
    "APf": "AP frequent classes",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "AP small objects",
    "APm": "AP medium objects",
    "APl": "AP large objects",
}
_COCO_MEANS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "AP small objects",
    "APm": "AP medium objects",
    "APl": "AP large objects",
    "AP_leaves": "AP leaf classes",
    "AP_head": "AP head classes",
    "AP_medium": "AP medium classes",
    "AP_tail": "AP tail classes",
}


def header(title: str, log: TrainingLog | None, evaluation: Evaluation | None) -> str:
    """Heading and one or two sentences."""
    sentences = []
    if log is not None:
        sentences.append(f"Trained for {int(log.iteration[-1]) + 1:,} iterations.")
    if evaluation is not None:
        images = f"{evaluation.num_images:,} images of " if evaluation.num_images else ""
        known = {
            "the Open Images challenge metric": evaluation.summary,
            "COCO's metric": evaluation.coco,
            "LVIS's metric": evaluation.lvis,
        }
        metric = " and by ".join(name for name, means in known.items() if means) or "no metric"
        sentences.append(f"Evaluated on {images}{evaluation.dataset} by {metric}.")
    return f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(" ".join(sentences))}</p>'


def cards(evaluation: Evaluation) -> str:
    """The numbers to look at first: of the Open Images metric, else of LVIS's."""
    if not evaluation.summary:
        return _lvis_cards(evaluation)
    labels = {"": "official mAP, all classes", "leaves": "leaf classes"}
    labels.update({group: f"{group} classes" for group in _GROUPS})
    pieces = []
    for kind, label in labels.items():
        value = _summary(evaluation, kind)
        if not math.isnan(value):
            pieces.append(f'<div class="card {kind}"><b>{_percent(value)} %</b><span>{label}</span></div>')
    return f'<div class="cards">{"".join(pieces)}</div>' if pieces else ""


def _lvis_cards(evaluation: Evaluation) -> str:
    pieces = []
    for task in ("lvis_segm", "lvis_bbox"):
        groups = {"AP": "", "APf": "head", "APc": "medium", "APr": "tail"}
        for name, kind in groups.items():
            value = evaluation.lvis.get(task, {}).get(name, math.nan)
            if not math.isnan(value):
                text = f"<b>{_percent(value)} %</b><span>{_LVIS_MEANS[name]}, {_LVIS_TASKS[task]}</span>"
                pieces.append(f'<div class="card {kind}">{text}</div>')
    return f'<div class="cards">{"".join(pieces)}</div>' if pieces else ""


def results(evaluation: Evaluation) -> str:
    """The table of means of the Open Images metric, and how to read it; empty if it was not computed."""
    if not evaluation.summary:
        return ""
    rows = []
    for kind, label, members in _kinds(evaluation):
        value = _summary(evaluation, kind)
        if math.isnan(value) and not members:
            continue
        counts = [one.train_images for one in members if one.train_images is not None]
        spread = f"{min(counts):,} – {max(counts):,}" if counts else "unknown"
        rows.append(
            [
                Cell(label),
                Cell(_percent(value), bar=0 if math.isnan(value) else 100 * value),
                Cell(f"{sum(one.num_gt > 0 for one in members):,}", numeric=True),
                Cell(spread, numeric=True),
            ]
        )
    iou = evaluation.options.get("iou_threshold", 0.5)
    columns = ("Mean over", f"mAP@{iou:g}, %", "classes with ground truth", "training images a class")
    means = f'<div class="wide">{table(columns, rows, "Mean average precision of groups of classes.")}</div>'
    return section("Results", means, "<h3>How to read this</h3>", *_paragraphs(_reading(evaluation)))


def coco_results(evaluation: Evaluation) -> str:
    """The table of COCO's metric; empty if it was not computed."""
    if not evaluation.coco:
        return ""
    rows = []
    for task, means in evaluation.coco.items():
        cells = [Cell(_percent(means.get(name, math.nan)), numeric=True) for name in _COCO_MEANS]
        rows.append([Cell(escape(_COCO_TASKS.get(task, task))), *cells])
    columns = ("Of", *map(_heading, _COCO_MEANS.values()))
    text = (
        "COCO's AP is the mean over the overlaps (IoU) 0.5, 0.55, ..., 0.95 and over the classes; AP50 and "
        "AP75 are at one overlap; small, medium and large objects have areas up to 32², up to 96², and above "
        "96² pixels. Head, medium and tail classes are those of the table above. An object counts for each "
        "of its labels and their ancestors; boxes around groups, and objects without a mask where masks are "
        "evaluated, count neither way."
    )
    caption = "Means of COCO's metric in percent, computed by longtail_det2's COCOStoreEvaluator."
    return section(
        "COCO's metric", f'<div class="wide">{table(columns, rows, caption)}</div>', *_paragraphs([text])
    )


def lvis_results(evaluation: Evaluation) -> str:
    """The table of LVIS's metric; empty if it was not computed."""
    if not evaluation.lvis:
        return ""
    rows = []
    for task, means in evaluation.lvis.items():
        cells = [Cell(_percent(means.get(name, math.nan)), numeric=True) for name in _LVIS_MEANS]
        rows.append([Cell(escape(_LVIS_TASKS.get(task, task))), *cells])
    columns = ("Of", *map(_heading, _LVIS_MEANS.values()))
    text = (
        "LVIS's AP is COCO's (the mean over the overlaps 0.5, 0.55, ..., 0.95 and over the classes), but a "
        "class is judged only in images where it is annotated or verified absent, and of an image the best "
        "300 detections over all classes count. Rare classes are in at most 10 training images, common ones "
        "in at most 100. Fixed AP takes instead the best 10,000 detections of each class over all images, so "
        "that classes do not compete for places. The numbers 300 and 10,000 are the defaults."
    )
    caption = "Means of LVIS's metric in percent, computed by longtail_det2's LVISStoreEvaluator."
    return section(
        "LVIS's metric", f'<div class="wide">{table(columns, rows, caption)}</div>', *_paragraphs([text])
    )


def run_facts(
    data: RunData,
    train: AnnotationStore | None,
    validation: AnnotationStore | None,
    steps: Sequence[tuple[str, float]],
) -> str:
    """What was run, on what, for how long and with which software."""
    pairs = [
        ("Training data", describe_store(train)),
        ("Validation data", describe_store(validation)),
        *describe_run(data),
    ]
    if steps:
        listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in steps)
        pairs.append(("Steps", f"{listed}; together {duration(sum(seconds for _, seconds in steps))}"))
    pairs += describe_environment()
    changed = changed_settings(data.config)
    folded = details(
        "Settings that differ from Detectron2's and this package's defaults", definitions(changed)
    )
    return section("The run", definitions(pairs), folded if changed else "")


def ap_by_frequency(evaluation: Evaluation) -> str:
    """AP of each class against its training images."""
    svg = ap_figure(evaluation.classes, evaluation.main_task, f"{_main_ap(evaluation)}, %")
    if svg is None:
        return ""
    caption = (
        "One mark is one class; point at it for its name and numbers. A horizontal line is the mean of a "
        "group. Hollow marks are inner classes: their truth is that of all classes below them."
    )
    return section("AP against training frequency", figure(svg, caption))


def long_tail(evaluation: Evaluation) -> str:
    """Training images of the classes by rank."""
    svg = frequency_figure(evaluation.classes, evaluation.main_task)
    if svg is None:
        return ""
    counts = [one.train_images for one in evaluation.classes if one.is_leaf and one.train_images is not None]
    sentence = ""
    if counts and min(counts) > 0:
        sentence = (
            f"The most frequent leaf class is in {max(counts):,} training images, the rarest in "
            f"{min(counts):,}: {max(counts) / min(counts):,.0f} times fewer."
        )
    elif counts:
        unseen = sum(count == 0 for count in counts)
        sentence = f"{unseen} of {len(counts)} leaf classes are in no training image at all."
    return section("The long tail", figure(svg, sentence))


def training(log: TrainingLog | None) -> str:
    """Loss curves and learning rate."""
    svg = training_figure(log)
    if svg is None:
        return ""
    caption = "Thin lines are the values as logged, thick lines a moving average over 4 % of the curve."
    return section("Training", figure(svg, caption))


def pictures(
    store: AnnotationStore, evaluation: Evaluation | None, count: int, score_threshold: float | None
) -> str:
    """Truth and predictions side by side."""
    path = None if evaluation is None else evaluation.predictions
    detections = None if path is None else read_predictions(path, store)
    groups = {}
    if evaluation is not None and [one.id for one in evaluation.classes] == list(store.class_ids):
        groups = {place: one.group for place, one in enumerate(evaluation.classes) if one.group}
    drawn, threshold = draw_pictures(store, detections, groups, count=count, score_threshold=score_threshold)
    if not drawn:
        return ""
    masks = " Masks are tinted in the colour of the class." if store.has_masks else ""
    text = [
        "One text block belongs to one box and lists all its labels, the most specific first. Dashed boxes "
        f"enclose groups of objects.{masks} A class has the same colour everywhere."
    ]
    if detections is not None:
        text.append(
            f"Predictions with a score of at least {threshold:.2f} are drawn; those of several classes on "
            "one box are drawn as one object. A label counts as found if a prediction of its class "
            "overlaps the box by 0.5; a prediction is wrong if no object that it overlaps so is of its "
            "class, of one above or below it."
        )
    return section("Validation pictures", *_paragraphs(text), *(_picture(one) for one in drawn))


def per_class(evaluation: Evaluation) -> str:
    """One row a class, the most frequent first."""

    def order(one: ClassResult) -> tuple[int, int, str]:
        return int(not one.is_leaf), -(one.train_images or 0), one.name

    main = evaluation.main_task
    others = [task for task in (*evaluation.lvis, *evaluation.coco) if task != main]
    expanded = bool(evaluation.summary)
    rows = [_class_row(one, main, others, expanded) for one in sorted(evaluation.classes, key=order)]
    aps = [_main_ap(evaluation) if main else "AP", *["AP expanded"] * expanded, *map(_task_ap, others)]
    columns = ("Class", "Group", *(f"{name}, %" for name in aps), "training images", "objects to find")
    caption = "AP expanded: predictions count for the ancestors of their class too. " if expanded else ""
    caption += "Click a heading to sort."
    return (
        section("All classes", f'<div class="scroll">{table(columns, rows, caption, sortable=True)}</div>')
        if rows
        else ""
    )


def footer() -> str:
    """Who made the page."""
    return (
        f"<footer>Made by longtail_det2 {escape(__version__)}. This file is complete in itself and loads "
        "nothing from a network.</footer>"
    )


def _metric_name(evaluation: Evaluation) -> str:
    """How the evaluator names its summary: "mAP50" for an IoU threshold of 0.5."""
    return f"mAP{100 * evaluation.options.get('iou_threshold', 0.5):g}"


def _heading(mean: str) -> str:
    """Of a column: short, so that a table of many means fits the page."""
    return mean.removesuffix(" classes").removesuffix(" objects")


def _main_ap(evaluation: Evaluation) -> str:
    """What the AP of single classes is that figures show."""
    if evaluation.main_task:
        return _task_ap(evaluation.main_task)
    return f"AP at IoU {evaluation.options.get('iou_threshold', 0.5):g}"


def _task_ap(task: str) -> str:
    """The AP of COCO's or LVIS's metric in words."""
    metric, tasks = ("LVIS", _LVIS_TASKS) if task in _LVIS_TASKS else ("COCO", _COCO_TASKS)
    return f"{metric}'s AP, {tasks.get(task, task)}"


def _summary(evaluation: Evaluation, kind: str) -> float:
    name = _metric_name(evaluation)
    return evaluation.summary.get(f"{name}_{kind}" if kind else name, math.nan)


def _kinds(evaluation: Evaluation) -> list[tuple[str, str, list[ClassResult]]]:
    """(suffix of the summary's name, label, classes) of each row of the table of means."""
    every = list(evaluation.classes)
    rows = [
        ("", "all classes, predictions as they are (official)", every),
        ("expanded", "all classes, predictions expanded to ancestors", every),
        ("leaves", "leaf classes", [one for one in every if one.is_leaf]),
    ]
    for group in _GROUPS:
        dot = f'<span class="dot" style="--c:var(--{group})"></span>'
        rows.append((group, f"{dot}{group}", [one for one in every if one.group == group]))
    if math.isnan(_summary(evaluation, "expanded")):
        del rows[1]
    return rows


def _reading(evaluation: Evaluation) -> list[str]:
    """Which protocol the numbers follow, in words."""
    iou = evaluation.options.get("iou_threshold", 0.5)
    weight = evaluation.options.get("group_of_weight", 1.0)
    sentences = [
        "The numbers are those of the Open Images object-detection challenge of 2019, "
        "computed by longtail_det2's OpenImagesEvaluator"
        + (f" ({evaluation.metric})" if evaluation.metric else "")
        + f": a detection finds an object of its class at an overlap (IoU) of {iou:g} or more; annotations "
        "are expanded, so that an object counts for every ancestor of its label; only classes verified for "
        f"an image are judged there; a group-of box weighs {weight:g}; AP is the area under the "
        "precision-recall curve at all its points, and mAP the plain mean over the classes that have "
        "ground truth.",
        f"They are not COCO's AP{' (below)' if evaluation.coco else ''}, and other evaluators of Open Images "
        "give other numbers: compare only numbers of the same evaluator and the same expansion.",
    ]
    if not math.isnan(_summary(evaluation, "expanded")):
        sentences.append(
            "With expanded predictions each detection is repeated for the ancestors of its class. That "
            "helps a detector that names the most specific class alone, and adds false positives to one "
            "that says the ancestors by itself."
        )
    if any(one.group for one in evaluation.classes):
        sentences.append(
            "Head, medium and tail are the leaf classes with many, some and few training images. The plain "
            "mean gives each class the same weight, so the tail decides as much as the head does."
        )
    return sentences


def _picture(one: Picture) -> str:
    name = escape(one.image_id)
    text = f"<div><p><strong>{escape(one.reason)}</strong></p>"
    text += f"<p>{escape(one.caption)}</p>" if one.caption else ""
    text += f'<p class="id">{name}</p></div>'
    sides = [("truth", one.truth), ("predictions", one.predictions)]
    images = "".join(
        f'<div><small>{side}</small><img src="{uri}" alt="{side} of image {name}"></div>'
        for side, uri in sides
        if uri
    )
    return f'<div class="picture{"" if one.predictions else " single"}">{images}{text}</div>'


def _class_row(one: ClassResult, main: str, others: Sequence[str], expanded: bool) -> list[Cell]:
    group = group_of_class(one)
    hollow = " hollow" if group == "inner" else ""
    dot = f'<span class="dot{hollow}" style="--c:var(--{COLOR_OF_GROUP[group]})"></span>'
    ap = one.ap_of(main)
    more = [one.ap_expanded] * expanded + [one.ap_of(task) for task in others]
    count = "–" if one.train_images is None else f"{one.train_images:,}"
    return [
        Cell(escape(one.name)),
        Cell(f"{dot}{group}", key=group),
        Cell(_percent(ap), key=_key(ap), bar=0 if math.isnan(ap) else 100 * ap),
        *(Cell(_percent(value), numeric=True, key=_key(value)) for value in more),
        Cell(count, numeric=True, key=str(-1 if one.train_images is None else one.train_images)),
        Cell("–" if math.isnan(one.num_gt) else f"{one.num_gt:,.10g}", numeric=True, key=_key(one.num_gt)),
    ]


def _key(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.9g}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _paragraphs(sentences: Iterable[str]) -> list[str]:
    return [f"<p>{escape(sentence)}</p>" for sentence in sentences]
