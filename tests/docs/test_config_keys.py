"""docs/config_keys.md says what config.py does; running this file writes the page."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs/config_keys.md"
HEAD = """# Config keys

What this project adds to Detectron2's config, and the four defaults that it changes, generated from the
comments in [config.py](../longtail_det2/config.py) by `python tests/docs/test_config_keys.py`.
"""


def page():
    """The page: a table of key, default and meaning per first part of the key."""
    groups, comment = {}, []
    for line in (REPOSITORY / "longtail_det2/config.py").read_text().splitlines():
        found = re.fullmatch(r"    cfg\.([A-Z][\w.]+) = (.+)", line)
        if line.startswith("    # "):
            comment.append(line[6:])
            continue
        if found and not found[2].startswith("CN()"):
            meaning = " ".join(comment).replace("|", "\\|")
            row = f"| `{found[1]}` | `{found[2]}` | {meaning} |"
            groups.setdefault(found[1].partition(".")[0], []).append(row)
        comment = []
    tables = (
        "\n".join([f"\n## {name}\n", "| key | default | meaning |", "| --- | --- | --- |", *rows, ""])
        for name, rows in groups.items()
    )
    return HEAD + "".join(tables)


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run: python tests/docs/test_config_keys.py"
    assert page().count("\n| `") > 50 and "|  |" not in page(), "a key has no comment"


if __name__ == "__main__":
    PAGE.write_text(page())
