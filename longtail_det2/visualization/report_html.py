"""The report's page: style, script and the pieces of HTML it is made of.

Everything is in the one file: no network, fonts of the reader's system, colours for light, dark and print.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Cell", "definitions", "details", "figure", "page", "section", "table"]

_STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --surface: #ffffff; --ink: #15181d; --muted: #525b68; --line: #dfe3e8; --grid: #d5dae1;
  --accent: #14508c; --bar: #cfe0f2;
  --head: #0068a8; --medium: #b06f00; --tail: #bb2a6b; --inner: #6b7482;
  --s1: #0068a8; --s2: #b06f00; --s3: #bb2a6b; --s4: #16836a; --s5: #7351b5; --s6: #6b7482; }
@media (prefers-color-scheme: dark) { :root {
  --page: #111418; --surface: #1a1e24; --ink: #e9ecf0; --muted: #a9b2be; --line: #30363f; --grid: #3a414b;
  --accent: #7cb9f2; --bar: #23435f;
  --head: #58b0ee; --medium: #eeb04a; --tail: #f27fb4; --inner: #98a2b0;
  --s1: #58b0ee; --s2: #eeb04a; --s3: #f27fb4; --s4: #4fc7a6; --s5: #b296ef; --s6: #98a2b0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 1.2rem; margin: 0 0 10px; }
h3 { font-size: 1rem; margin: 18px 0 6px; }
p { margin: 0 0 10px; max-width: 90ch; }
.lead { color: var(--muted); margin-bottom: 20px; }
section { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px;
  margin: 18px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 18px 0; }
.card { background: var(--surface); border: 1px solid var(--line); border-top: 4px solid var(--accent);
  border-radius: 10px; padding: 12px 16px; }
.card b { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--muted); font-size: .875rem; }
.card.head { border-top-color: var(--head); } .card.medium { border-top-color: var(--medium); }
.card.tail { border-top-color: var(--tail); }
.scroll { overflow: auto; max-height: 620px; border: 1px solid var(--line); border-radius: 8px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9375rem; }
caption { text-align: left; color: var(--muted); padding: 0 0 8px; font-size: .875rem; }
.scroll caption { padding: 8px 10px; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); color: var(--muted); font-weight: 600; }
.scroll thead th { position: sticky; top: 0; background: var(--surface); }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 400; }
.n { text-align: right; white-space: nowrap; }
td.bar { background: linear-gradient(to right, var(--bar) calc(var(--v) * 1%), transparent 0);
  min-width: 120px; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em;
  background: var(--c); border: 2px solid var(--c); }
.dot.hollow { background: transparent; border-radius: 1px; transform: rotate(45deg) scale(.85); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; font-size: .9375rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0; } figure + figure { margin-top: 14px; }
figcaption { color: var(--muted); font-size: .875rem; max-width: 96ch; }
svg { display: block; width: 100%; height: auto; max-width: 1000px; }
svg * { stroke-linejoin: round; stroke-linecap: butt; } svg text { font-family: inherit; }
.picture { display: grid; grid-template-columns: 1fr 1fr minmax(180px, 250px); gap: 14px; padding: 14px 0;
  border-top: 1px solid var(--line); align-items: start; }
.picture.single { grid-template-columns: minmax(0, 480px) 1fr; }
.picture img { width: 100%; height: auto; display: block; border-radius: 4px; }
.picture small { display: block; color: var(--muted); margin-bottom: 4px; }
.picture p { font-size: .9375rem; } .picture p.id { color: var(--muted); font-size: .8125rem; }
details > summary { cursor: pointer; color: var(--accent); margin-top: 12px; }
details[open] > summary { margin-bottom: 10px; }
.note { border-left: 4px solid var(--medium); padding: 2px 0 2px 12px; }
code { font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; font-size: .9em; }
footer { color: var(--muted); font-size: .875rem; }
@media screen and (max-width: 760px) { .picture, .picture.single { grid-template-columns: 1fr; }
  main { padding: 18px 12px; }
  dl { grid-template-columns: 1fr; } dt { margin-top: 6px; } section { padding: 16px 14px; } }
@media print { :root { --page: #fff; --surface: #fff; --ink: #000; --muted: #444; --line: #ccc; --grid: #ddd;
  --accent: #14508c; --bar: #dbe7f3; --head: #0068a8; --medium: #b06f00; --tail: #bb2a6b; --inner: #6b7482;
  --s1: #0068a8; --s2: #b06f00; --s3: #bb2a6b; --s4: #16836a; --s5: #7351b5; --s6: #6b7482; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  section { border: 0; padding: 8px 0; margin: 8px 0; }
  .scroll { max-height: none; overflow: visible; border: 0; }
  .scroll thead th { position: static; } figure, .picture, .card, tr { break-inside: avoid; }
  .picture { grid-template-columns: 1fr 1fr 34mm; } dl { font-size: inherit; } table { font-size: 9.5pt; }
  .cards { grid-template-columns: repeat(5, 1fr); } .card { padding: 6px 10px; } .card b { font-size: 14pt; }
  h2 { break-after: avoid; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

_SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  var heads = table.tHead.rows[0].cells;
  Array.prototype.forEach.call(heads, function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.textContent = "";
    head.appendChild(button);
    button.addEventListener("click", function () {
      var down = head.getAttribute("aria-sort") !== "descending";
      var body = table.tBodies[0];
      var rows = Array.prototype.slice.call(body.rows);
      var key = function (row) { return row.cells[column].dataset.k || row.cells[column].textContent; };
      rows.sort(function (one, other) {
        var a = key(one), b = key(other), x = parseFloat(a), y = parseFloat(b), order;
        if (isNaN(x) !== isNaN(y)) { return isNaN(x) ? 1 : -1; }
        order = isNaN(x) ? a.localeCompare(b) : x - y;
        return down ? -order : order;
      });
      Array.prototype.forEach.call(heads, function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        html: content, already escaped.
        numeric: right-aligned.
        key: what sorting uses instead of the text.
        bar: length of a bar behind the text, in percent; None for no bar.
    """

    html: str
    numeric: bool = False
    key: str = ""
    bar: float | None = None


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(title: str, *content: str) -> str:
    """A titled part of the page; empty pieces are left out."""
    inner = "\n".join(piece for piece in content if piece)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>"


def figure(content: str, caption: str) -> str:
    """An image or SVG with its caption."""
    return f"<figure>\n{content}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def details(summary: str, content: str) -> str:
    """Content that the reader unfolds."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>"


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; pairs with an empty value are left out."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs if value)
    return "<dl>\n" + "\n".join(rows) + "\n</dl>"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str, *, sortable: bool = False
) -> str:
    """A table whose first column names the rows; numeric columns have numeric cells in the first row."""
    rows = list(rows)
    numeric = [cell.numeric for cell in rows[0]] if rows else [False] * len(columns)
    heads = "".join(
        f'<th scope="col"{" class=n" if right else ""}>{escape(name)}</th>'
        for name, right in zip(columns, numeric, strict=True)
    )
    body = "\n".join("<tr>" + _row(row) + "</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return (
        f"<table{kind}>\n<caption>{escape(caption)}</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )


def _row(cells: Sequence[Cell]) -> str:
    parts = []
    for place, cell in enumerate(cells):
        classes = " ".join(name for name, on in (("n", cell.numeric), ("bar", cell.bar is not None)) if on)
        attributes = f' class="{classes}"' if classes else ""
        attributes += f' data-k="{escape(cell.key)}"' if cell.key else ""
        attributes += f' style="--v:{cell.bar:.1f}"' if cell.bar is not None else ""
        parts.append(
            f'<th scope="row"{attributes}>{cell.html}</th>'
            if place == 0
            else f"<td{attributes}>{cell.html}</td>"
        )
    return "".join(parts)
