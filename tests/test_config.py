import builtins

import pytest
import yaml
from detectron2.config import get_cfg as detectron2_cfg

from longtail_det2.config import add_longtail_config, get_cfg, own_arguments
from longtail_det2.config_files import load_cfg, load_lazy, merge_options
from longtail_det2.utils.errors import ConfigError


def write(path, text):
    path.write_text(text)
    return path


def test_import_registers_nothing():
    """Importing the package and its config adds nothing to Detectron2's registries."""
    import subprocess
    import sys

    code = (
        "import longtail_det2, longtail_det2.config\n"
        "from detectron2.modeling import ROI_HEADS_REGISTRY\n"
        "assert 'MultiLabelROIHeads' not in ROI_HEADS_REGISTRY\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def settings(node, prefix=""):
    """Values of a config by key."""
    for key, value in node.items():
        if isinstance(value, type(node)) and value:
            yield from settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_keys_are_only_added_to_a_config_of_detectron2():
    cfg, before = detectron2_cfg(), dict(settings(detectron2_cfg()))
    add_longtail_config(cfg)
    after = dict(settings(cfg))
    assert len(after) > len(before) and before.items() <= after.items()
    changed = {key for key, value in settings(get_cfg()) if after[key] != value}
    assert changed == {
        "MODEL.ROI_HEADS.NUM_CLASSES",
        "MODEL.RETINANET.NUM_CLASSES",
        "MODEL.ROI_MASK_HEAD.NAME",
        "DATALOADER.SAMPLER_TRAIN",
    }


def test_a_config_survives_dump_and_load(tmp_path):
    cfg = load_cfg("shapes/faster_rcnn_tiny_sigmoid_shapes.yaml")
    again = load_cfg(write(tmp_path / "dumped.yaml", cfg.dump()))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_misspelt_key_names_file_and_nearest_key(tmp_path):
    base = write(tmp_path / "base.yaml", "MODEL:\n  ROI_HEADS:\n    NUM_CLASES: 3\n")
    child = write(tmp_path / "child.yaml", "_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 3\n")
    with pytest.raises(ConfigError) as error:
        load_cfg(child)
    assert str(base) in str(error.value)
    assert "'MODEL.ROI_HEADS.NUM_CLASES'" in str(error.value)
    assert "Did you mean 'MODEL.ROI_HEADS.NUM_CLASSES'?" in str(error.value)


@pytest.mark.parametrize("base", ["shapes/faster_rcnn_tiny_softmax_shapes.yaml", "Base-RCNN-FPN.yaml"])
def test_base_from_the_model_zoo(tmp_path, base):
    cfg = load_cfg(write(tmp_path / "c.yaml", f"_BASE_: {base}\nSEED: 5\n"))
    assert cfg == load_cfg(base, ["SEED", "5", "OUTPUT_DIR", "./output/c"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER:\n  MAX_ITER: many\n", r"c.yaml: .*MAX_ITER"),
        ("DATALOADER:\n  IMS_PER_BATCH: 4\n", r"Did you mean 'SOLVER.IMS_PER_BATCH'"),
        ("SOLVER: 3\n", r"c.yaml: .*SOLVER"),
        ("SOLVER: [\n", r"c.yaml: not a YAML config: [\s\S]*line 2"),
        ("- 1\n", r"c.yaml: a config is a mapping"),
        ("_BASE_: nowhere.yaml\n", r"c.yaml: its _BASE_ is no file .*nowhere.yaml"),
        ("_BASE_: [nowhere.yaml]\n", r"c.yaml: its _BASE_ is no file .*nowhere.yaml"),
        ("_BASE_: shapes/faster_rcnn_tiny.yaml\n", r"c.yaml: its _BASE_ .*Did you mean 'shapes/faster"),
        ("_BASE_: c.yaml\n", r"c.yaml: the config is its own _BASE_"),
        ("SOLVER: !!python/object/apply:os.getcwd []\n", r"c.yaml: not a YAML config"),
    ],
)
def test_unusable_files(tmp_path, text, message):
    path = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError, match=message):
        load_cfg(path)


@pytest.mark.parametrize(
    "text",
    [
        "MODEL:\n  PIXEL_STD: ' '\n",
        "MODEL:\n  PIXEL_STD: [' ', 1.0, 1.0]\n",
        "INPUT:\n  MIN_SIZE_TRAIN: [[64], [32]]\n",
        "INPUT:\n  MIN_SIZE_TRAIN: [small]\n",
        "INPUT:\n  MIN_SIZE_TEST: small\n",
        "MODEL:\n  ROI_HEADS:\n    IOU_THRESHOLDS: [true]\n",
        "MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: [32, 64]\n",
        "SOLVER: &node\n  STEPS: [*node]\n",
        "SOLVER:\n  STEPS: &node [*node]\n",
        "SOLVER:\n  STEPS: " + "[" * 5000 + "]" * 5000,
        "SOLVER:\n  STEPS: " + "[" * 40 + "]" * 40,
        "SOLVER:\n  MAX_ITER: 3\n  MAX_ITER: 4\n",
        "1: 2\n",
        "[a, b]: 2\n",
        "? {a: b}\n: 2\n",
        "null\n---\nnull\n",
        "SOLVER:\n  MAX_ITER: 2020-01-01\n",
        "SOLVER:\n  1: 3\n",
        *(b"\xff\xfe\x00", b"\x00\x01", b"a: \x07"),
    ],
)
def test_values_of_a_wrong_kind(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"c.yaml: "):
        load_cfg(path)


def test_missing_file_lists_the_model_zoo(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing.yaml is no file[\s\S]*shapes/faster_rcnn_tiny_softmax"):
        load_cfg(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match=r"Did you mean 'shapes/faster_rcnn_tiny_softmax_shapes.yaml'"):
        load_cfg("shapes/faster_rcnn_tiny_softmax_shape.yaml")
    with pytest.raises(ConfigError, match=r"for scripts/lazyconfig_train_net.py"):
        load_cfg("shapes/faster_rcnn_tiny_softmax_shapes.py")


def test_empty_file_is_the_defaults(tmp_path):
    cfg = load_cfg(write(tmp_path / "empty.yaml", ""))
    assert cfg.OUTPUT_DIR == "./output/empty"
    cfg.OUTPUT_DIR = get_cfg().OUTPUT_DIR
    assert cfg == get_cfg()


def test_the_folder_of_a_run_is_named_by_the_config(tmp_path):
    base = write(tmp_path / "base.yaml", "SEED: 3\n")
    child = write(tmp_path / "child.yaml", f"_BASE_: {base}\n")
    assert load_cfg(child).OUTPUT_DIR == "./output/child"
    write(base, "OUTPUT_DIR: elsewhere\n")
    assert load_cfg(child).OUTPUT_DIR == "elsewhere"
    lazy = load_lazy(write(tmp_path / "own.py", "train = dict(output_dir='', my_note=3)\n"))
    assert (lazy.train.output_dir, lazy.train.my_note) == ("./output/own", 3)


def test_options():
    cfg = get_cfg()
    merge_options(cfg, ["SOLVER.BASE_LR", "0.5", "DATASETS.TRAIN", "one,two", "DATASETS.TEST", "('three',)"])
    merge_options(cfg, ["SOLVER.STEPS", "10,20", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.6]"])
    merge_options(cfg, ["DATASETS.STORES", "one=/a/b", "MODEL.TINY_BACKBONE.NORM", "GN"])
    merge_options(cfg, ["MODEL.RPN.PRIOR_PROB", "0"])  # a whole number for a float
    assert cfg.SOLVER.BASE_LR == 0.5 and cfg.SOLVER.STEPS == (10, 20)
    assert cfg.MODEL.RPN.PRIOR_PROB == 0 and type(cfg.MODEL.RPN.PRIOR_PROB) is float
    assert cfg.DATASETS.TRAIN == ("one", "two") and cfg.DATASETS.TEST == ("three",)
    assert cfg.DATASETS.STORES == ("one=/a/b",) and cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS == [0.6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.BASE_LR"], "pairs KEY VALUE"),
        (["SOLVER.BASE_LR", "0.1", "--resume"], "--resume .*flags come before"),
        (["SOLVER.BSE_LR", "0.1"], r"command line: .*'SOLVER.BSE_LR'.*Did you mean 'SOLVER.BASE_LR'"),
        (["SOLVER.MAX_ITER", "ten"], r"command line: SOLVER.MAX_ITER is 'ten'"),
        (["SOLVER", "3"], r"SOLVER"),
    ],
)
def test_unusable_options(options, message):
    with pytest.raises(ConfigError, match=message):
        merge_options(get_cfg(), options)


OWN = "MODEL:\n  CLASSIFICATION_LOSS:\n    OWN:\n"


def test_free_keys_of_an_own_loss(tmp_path):
    write(tmp_path / "base.yaml", OWN + "      MARGIN: 0.05\n      PARTS:\n        NAME: one\n")
    child = write(
        tmp_path / "child.yaml", "_BASE_: base.yaml\n" + OWN + "      PARTS:\n        SIZES: [1, 2]\n"
    )
    key = "MODEL.CLASSIFICATION_LOSS.OWN"
    options = [f"{key}.MARGIN", "0.1", f"{key}.RATES", "(0.5, 1)", f"{key}.PARTS.GAMMA", "2"]
    cfg = load_cfg(child, [*options, f"{key}.PARTS.NAME", "two"])
    parts = {"NAME": "two", "SIZES": [1, 2], "GAMMA": 2}
    assert {"MARGIN": 0.1, "RATES": (0.5, 1), "PARTS": parts} == cfg.MODEL.CLASSIFICATION_LOSS.OWN
    again = load_cfg(write(tmp_path / "dumped.yaml", cfg.dump()), [f"{key}.PARTS.MORE", "yes"])
    assert yaml.safe_load(again.dump())["MODEL"]["CLASSIFICATION_LOSS"]["OWN"]["PARTS"]["MORE"] == "yes"
    assert get_cfg().MODEL.CLASSIFICATION_LOSS.OWN == {}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (OWN.replace("OWN:", "MARGIN: 1"), [], "no config key 'MODEL.CLASSIFICATION_LOSS.MARGIN'"),
        (OWN.replace("OWN:", "ONW:\n      A: 1"), [], r"c.yaml: there is no config key .*ONW.A'"),
        (OWN + "      A: 1\nSOLVER:\n  MAXITER: 3\n", [], "'SOLVER.MAXITER'.*Did you mean 'SOLVER.MAX_ITER'"),
        (OWN.replace("OWN:\n", "OWN: 3\n"), [], "c.yaml: .*OWN"),
        (OWN + "      A: 1\n", ["MODEL.CLASSIFICATION_LOSS.ONW.A", "2"], r"ONW.A'"),
        (OWN + "      A: 1\n", ["MODEL.CLASSIFICATION_LOSS.OWN.A", "[2]"], r"command line: .*OWN.A"),
        (OWN + "      A: 1\n", ["MODEL.CLASSIFICATION_LOSS.OWN.A.B", "2"], r"OWN.A"),
        (OWN + "      A: 1\n", ["MODEL.CLASSIFICATION_LOSS.OWNER", "2"], r"command line: .*OWNER'"),
    ],
)
def test_other_keys_are_not_free(tmp_path, text, options, message):
    with pytest.raises(ConfigError, match=message):
        load_cfg(write(tmp_path / "c.yaml", text), options)


def test_free_keys_as_arguments():
    class Loss:
        def __init__(self, *, margin=0.0, rates=()):
            pass

    class Open:
        def __init__(self, margin, **others):
            pass

    cfg = get_cfg()
    key = "MODEL.CLASSIFICATION_LOSS.OWN"
    merge_options(cfg, [f"{key}.MARGIN", "0.1", f"{key}.RATES", "(1, 2)"])
    node = cfg.MODEL.CLASSIFICATION_LOSS.OWN
    assert own_arguments(Loss, node) == own_arguments(Open, node) == {"margin": 0.1, "rates": (1, 2)}
    merge_options(cfg, [f"{key}.MARGN", "0.1"])
    with pytest.raises(ConfigError, match=r"OWN.MARGN: Loss has no such argument. Did you mean 'MARGIN'\?"):
        own_arguments(Loss, node)
    assert own_arguments(Open, node)["margn"] == 0.1


LAZY = "shapes/faster_rcnn_tiny_softmax_shapes.py"


def test_lazy_overrides():
    cfg = load_lazy(
        LAZY,
        [
            "train.max_iter=7",
            "dataloader.train.mapper.augmentations.0.max_size=64",
            "model.roi_heads.box_predictor.test_nms_thresh=0.4",
            # not in the file, but an argument of the class
            "model.roi_heads.box_predictor.smooth_l1_beta=0.1",
            "+train.note=mine",
        ],
    )
    assert cfg.train.max_iter == 7 and cfg.train.note == "mine"
    assert cfg.dataloader.train.mapper.augmentations[0].max_size == 64
    assert cfg.model.roi_heads.box_predictor.smooth_l1_beta == 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=7", r"'train.max_itr'.*Did you mean 'train.max_iter'"),
        ("optimizer.learning_rate=7", r"optimizer.learning_rate: build_optimizer has no"),
        ("dataloader.train.mapper.augmentations.9.max_size=64", r"augmentations.9.max_size'"),
        ("train.max_iter", r"expected path.to.key=value"),
        ("--resume", r"flags come before"),
        ("train.max_iter=[", r"command line"),
        ("train.max_iter=ten", r"train.max_iter is 'ten'"),
        ("train.checkpointer.period=[1]", r"train.checkpointer.period is"),
        ("model.roi_heads.num_clases=3", r"num_clases'.*Did you mean 'model.roi_heads.num_classes'"),
        ("+model.roi_heads.num_clases=3", r"num_clases'.*Did you mean 'model.roi_heads.num_classes'"),
        ("model.roi_heads.box_predictor.test_score_tresh=0.1", r"Did you mean '.*test_score_thresh'"),
    ],
)
def test_unusable_lazy_overrides(override, message):
    with pytest.raises(ConfigError, match=message):
        load_lazy(LAZY, [override])


def test_broken_lazy_file_leaves_python_whole(tmp_path):
    importer = builtins.__import__
    path = write(tmp_path / "broken.py", "from .nowhere import model\n")
    with pytest.raises(ConfigError, match=r"broken.py, line 1: ImportError"):
        load_lazy(path)
    assert builtins.__import__ is importer
    with pytest.raises(ConfigError, match=r"SyntaxError"):
        load_lazy(write(tmp_path / "worse.py", "model = (\n"))


IN_FILE = "from longtail_det2 import model_zoo\nbase = model_zoo.get_config('{name}')\n" + (
    "model, train, optimizer = base.model, base.train, base.optimizer\n"
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train.max_iters = 3", r"own.py: .*'train.max_iters'. Did you mean 'train.max_iter'"),
        ("train.max_iter = 'ten'", r"own.py: train.max_iter is 'ten'"),
        ("train.max_iter = nothing", r"own.py, line 4: NameError"),
    ],
)
def test_misspelt_in_a_lazy_file(tmp_path, line, message):
    path = write(tmp_path / "own.py", IN_FILE.format(name=LAZY) + line + "\n")
    with pytest.raises(ConfigError, match=message):
        load_lazy(path)


def test_an_error_in_a_module_that_a_lazy_file_imports_names_both_places(tmp_path, monkeypatch):
    write(tmp_path / "own_module_of_a_user.py", "def build():\n    return None.nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(tmp_path / "own.py", "from own_module_of_a_user import build\nmodel = build()\n")
    message = r"own\.py, line 2: AttributeError: .*own_module_of_a_user\.py, line 2"
    with pytest.raises(ConfigError, match=message):
        load_lazy(path)
