"""Reading specifications, and what is wrong with them."""

import pytest

from longtail_det2.ablation.parsing import load_specification
from longtail_det2.ablation.specification import DataSpec
from longtail_det2.utils.errors import ConfigError


def test_everything_is_read(project):
    spec = project.specification
    spec["baseline"] = "first@more"
    spec["plot"] = {"metrics": ["mAP50"], "x_label": "rate"}
    spec["data"]["made"] = {
        "imbalance": 50,
        "negatives_per_image": 100,
        "formats": ["openimages"],
        "seed": "run",
        "prepare": ["train_net.py --store '{data}/a b' --seed {seed}"],
    }
    spec["rows"][1].update(x=1, start_from="first", data=["made"])
    read = project.load()
    assert read.lines() == [
        ("first", "first"),
        ("first@more", "more"),
        ("second", "the second"),
    ]
    assert read.baseline == "first@more" and read.plot_metrics == ("mAP50",) and read.x_label == "rate"
    assert read.metrics == {"mAP50": "mAP50", "mAP50_leaves": "leaves"}
    made = read.data["made"]
    assert made.options.imbalance == 50.0 and made.options.formats == ("openimages",)
    assert made.prepare == (("train_net.py", "--store", "{data}/a b", "--seed", "{seed}"),)
    assert made.seed(7) == 7 and read.data["real"].seed(7) is None
    assert read.rows[0].overrides == {"SOLVER.MAX_ITER": 2, "SOLVER.BASE_LR": 0.1}
    assert read.rows[1].x == 1.0 and read.rows[1].data == ("made",) and not read.rows[0].is_lazy


def test_nested_overrides_are_written_out(project):
    project.specification["rows"][0]["overrides"] = {
        "SOLVER": {"BASE_LR": 0.3, "CLIP_GRADIENTS": {"ENABLED": 1}}
    }
    assert project.load().rows[0].overrides == {
        "SOLVER.MAX_ITER": 2,
        "SOLVER.BASE_LR": 0.3,
        "SOLVER.CLIP_GRADIENTS.ENABLED": 1,
    }


def test_seed_of_data():
    from longtail_det2.shapes import ShapesOptions

    assert DataSpec("a", ShapesOptions(seed=4)).seed(1) == 4
    assert DataSpec("a", ShapesOptions(), seed_per_run=True).seed(1) == 1


def change(*path, value):
    def apply(spec):
        node = spec
        for part in path[:-1]:
            node = node[part]
        if value is None:
            del node[path[-1]]
        else:
            node[path[-1]] = value

    return apply


MISTAKES = {
    "unknown top key": (change("baselin", value="first"), ["'baselin'", "'baseline'"]),
    "no seeds": (change("seeds", value=None), ["'seeds' is missing"]),
    "seeds twice": (change("seeds", value=[1, 1]), ["seeds:", "different"]),
    "seed no number": (change("seeds", value=["a"]), ["seeds[0]", "'a'"]),
    "unknown baseline": (change("baseline", value="frst"), ["baseline:", "'first'"]),
    "no metric": (change("metrics", value=[]), ["metrics:"]),
    "unknown row key": (change("rows", 1, "overides", value={}), ["rows[1]", "'overides'", "'overrides'"]),
    "row without name": (change("rows", 1, "name", value=None), ["rows[1]", "'name'"]),
    "two rows of a name": (change("rows", 1, "name", value="first"), ["rows[1]", "two rows 'first'"]),
    "row name no folder": (change("rows", 1, "name", value="a/b"), ["rows[1].name", "'a/b'"]),
    "no such config": (change("rows", 1, "config", value="shapes/no.yaml"), ["rows[1].config", "no.yaml"]),
    "managed key": (
        change("rows", 1, "overrides", "SEED", value=3),
        ["rows[1].overrides", "SEED", "'seeds'"],
    ),
    "placeholder": (
        change("rows", 1, "overrides", "MODEL.WEIGHTS", value="{dta}/x"),
        ["rows[1].overrides", "{dta}", "{data}"],
    ),
    "two evaluations": (
        change("rows", 0, "evaluate", value=[{"name": "a"}, {"name": "a"}]),
        ["rows[0].evaluate[1]", "'a'"],
    ),
    "start from later": (change("rows", 0, "start_from", value="second"), ["rows[0].start_from", "'second'"]),
    "unknown data": (change("rows", 0, "data", value=["reel"]), ["rows[0].data[0]", "'real'"]),
    "no folder": (change("data", "real", "folder", value="/no/where"), ["data.real.folder", "/no/where"]),
    "generator option": (change("data", "made", value={"imbalanc": 3}), ["data.made", "'imbalance'"]),
    "dashes": (change("data", "made", value={"train-images": 3}), ["data.made", "'train_images'"]),
    "option out of range": (
        change("data", "made", value={"co_label_rate": 2}),
        ["data.made", "co_label_rate"],
    ),
    "option of a type": (
        change("data", "made", value={"train_images": 2.5}),
        ["data.made.train_images", "2.5"],
    ),
    "no such script": (change("data", "real", "prepare", value=["no.py"]), ["data.real.prepare[0]", "no.py"]),
    "metric to plot": (change("plot", value={"metrics": ["mAP"]}), ["plot.metrics[0]", "'mAP'"]),
    "all hidden": (change("rows", value=[{"name": "a", "hidden": True}]), ["rows:", "hidden"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_file_and_key(project, name):
    apply, parts = MISTAKES[name]
    apply(project.specification)
    with pytest.raises(ConfigError) as caught:
        project.load()
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{project.path}: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("title: [1\nrows: 2\n", [":2: not YAML"]),
        ("seeds: [1]\ntitle: a\nseeds: [2]\n", [":3: not YAML", "'seeds' stands here twice"]),
        ("- a\n", ["must be a mapping"]),
        ("1: a\n", ["the key 1 must be text"]),
    ],
)
def test_a_file_that_is_no_specification(tmp_path, text, parts):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_specification(path)
    for part in parts:
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_specification(tmp_path / "none.yaml")
