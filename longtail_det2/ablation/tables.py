"""Results by data set, line, metric and seed, and the Markdown table of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from longtail_det2.shapes import ShapesOptions
from longtail_det2.utils.errors import ConfigError
from longtail_det2.visualization.report_facts import duration

from .specification import DataSpec, Specification
from .spread import Mean, mean_over_seeds, paired_difference

Values = dict[tuple[str, str, str], dict[int, float]]
"""(data, line, metric) -> {seed: percent}; NaN for a mean over no class."""


def arrange(specification: Specification, results: Sequence[Mapping[str, Any]]) -> Values:
    """Sorts the metrics of the table out of the results.

    Raises:
        ConfigError: no result has a metric of the specification.
    """
    known = {name for result in results for name in result["metrics"]}
    for name in specification.metrics:
        if results and name not in known:
            raise ConfigError(
                f"{specification.path}: metrics: the evaluations have no {name!r}; they have "
                f"{', '.join(sorted(known))}"
            )
    values: Values = {}
    for result in results:
        for name in specification.metrics:
            if name in result["metrics"]:
                value = result["metrics"][name]
                seeds = values.setdefault((result["data"], result["line"], name), {})
                seeds[result["seed"]] = math.nan if value is None else float(value)
    return values


def markdown(specification: Specification, results: Sequence[Mapping[str, Any]], command: str) -> str:
    """The tables of all data sets, with what is needed to read them.

    Args:
        specification: of the table.
        results: from :func:`longtail_det2.ablation.results.collect`.
        command: that makes them.

    Raises:
        ConfigError: see :func:`arrange`.
    """
    values = arrange(specification, results)
    parts = [f"# {specification.title}"]
    for data in specification.data.values():
        lines = _lines_of(specification, values, data.name)
        if lines:
            parts += [f"## {data.name}", describe_data(data)]
            parts += [_mean_table(specification, values, data.name, lines)]
            parts += _difference_table(specification, values, data.name, lines)
    parts += [_legend(specification), _circumstances(results, command)]
    return "\n\n".join(parts) + "\n"


def describe_data(data: DataSpec) -> str:
    """A sentence about a data set: the options in which it differs from the generator's defaults."""
    if data.options is None:
        return "Data that were there before."
    defaults = ShapesOptions()
    names = [field.name for field in dataclasses.fields(defaults)]
    changed = [
        f"{name.replace('_', ' ')} {getattr(data.options, name)}"
        for name in names
        if name not in ("formats", "seed") and getattr(data.options, name) != getattr(defaults, name)
    ]
    seed = "generated anew for each seed" if data.seed_per_run else f"seed {data.options.seed}"
    options = data.options
    return (
        f"Shapes, {seed}: {options.train_images:,} training and {options.validation_images:,} validation "
        f"images, imbalance {options.imbalance:g}, missing leaves {options.missing_leaf_rate:g}, co-labels "
        f"{options.co_label_rate:g}. Other than by default: {', '.join(changed) or 'nothing'}."
    )


def _lines_of(specification: Specification, values: Values, data: str) -> list[tuple[str, str]]:
    """(name, label) of the lines that have a result."""
    present = {line for one, line, _ in values if one == data}
    return [line for line in specification.lines() if line[0] in present]


def differences(specification: Specification, values: Values, data: str, line: str, metric: str) -> Mean:
    """A line's difference to the baseline, paired by seed."""
    return paired_difference(
        values.get((data, line, metric), {}), values.get((data, specification.baseline, metric), {})
    )


def _mean_table(
    specification: Specification, values: Values, data: str, lines: Sequence[tuple[str, str]]
) -> str:
    metrics = specification.metrics
    best = {metric: _best(specification, values, data, metric, lines) for metric in metrics}
    rows = [["", "n", *metrics.values()]]
    for name, label in lines:
        means = {metric: mean_over_seeds(values.get((data, name, metric), {})) for metric in metrics}
        cells = [_bold(_plain(means[metric]), name == best[metric]) for metric in metrics]
        rows.append([label, str(max(len(values.get((data, name, one), ())) for one in metrics)), *cells])
    return _table(rows)


def _best(
    specification: Specification, values: Values, data: str, metric: str, lines: Sequence[tuple[str, str]]
) -> str | None:
    """The line with the highest mean if it is resolved from the baseline, else None."""
    means = {name: mean_over_seeds(values.get((data, name, metric), {})).mean for name, _ in lines}
    means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    if not means:
        return None
    best = max(means, key=lambda name: means[name])
    return best if differences(specification, values, data, best, metric).resolved else None


def _difference_table(
    specification: Specification, values: Values, data: str, lines: Sequence[tuple[str, str]]
) -> list[str]:
    """Heading and table; nothing where there is nothing to compare."""
    labels = dict(lines)
    others = [line for line in lines if line[0] != specification.baseline]
    if specification.baseline not in labels or not others:
        return []
    rows = [["", "n", *specification.metrics.values()]]
    for name, label in others:
        found = [differences(specification, values, data, name, one) for one in specification.metrics]
        cells = [_bold(_signed(one), one.resolved) for one in found]
        rows.append([label, str(max(one.n for one in found)), *cells])
    return [f"Difference to {labels[specification.baseline]}, paired by seed:", _table(rows)]


def _plain(value: Mean) -> str:
    if not value.n:
        return "–"
    return f"{value.mean:.2f}" + (f" ± {value.sd:.2f}" if value.n > 1 else "")


def _signed(value: Mean) -> str:
    if not value.n:
        return "–"
    text = f"{value.mean:+.2f}".replace("-", "−")
    return text + (f" ± {value.se:.2f}" if value.n > 1 else "")


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(cells[0]) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])


def _legend(specification: Specification) -> str:
    fixed = [one.name for one in specification.data.values() if one.options and not one.seed_per_run]
    spread = "training (initial weights, order of the images)"
    if len(fixed) < len(specification.data):
        where = f" except for {', '.join(fixed)}" if fixed else ""
        spread += f" and data (objects, images, which class is rare){where}"
    return (
        f"Values in percent, differences in percentage points. Seeds vary {spread}. First table: mean ± "
        "standard deviation of a single run over n seeds. Second: mean difference ± its standard error, over "
        "the seeds that both have. **Bold** there: the 95 % interval of the difference (Student's t, n − 1 "
        "degrees of freedom) leaves 0 out; of many cells one in twenty does so by chance. Bold in the first "
        "table: the column's best, where its difference to the baseline is of that kind."
    )


def _circumstances(results: Sequence[Mapping[str, Any]], command: str) -> str:
    machines = sorted({f"{one['machine']['cpu']}, {one['machine']['cores']} cores" for one in results})
    software = [{key: one["software"].get(key) for key in ("longtail_det2", "torch")} for one in results]
    versions = sorted({f"longtail_det2 {one['longtail_det2']}, torch {one['torch']}" for one in software})
    seconds = sum(one["cpu_seconds"] for one in results)
    trainings = sum("@" not in one["line"] for one in results)
    mixed = " Not all are of one version." if len(versions) > 1 else ""
    return (
        f"{trainings} trainings and {len(results) - trainings} further evaluations, {duration(seconds)} of "
        f"processor time; {'; '.join(versions)}; {'; '.join(machines)}.{mixed} Made by `{command}`."
    )
