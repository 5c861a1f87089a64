import json
import pickle

import numpy as np
import pytest
from factories import ANIMAL, CAR, DOG, FISH, PET, PUPPY
from factories import CLASS_IDS as IDS

from longtail_det2.data.hierarchy import HierarchyError, LabelHierarchy
from longtail_det2.data.open_images_csv import read_classes

# animal > dog > puppy; pet > dog (two parents), pet > fish; car alone.
TREE = {
    "LabelName": "root",
    "Subcategory": [
        {
            "LabelName": "animal",
            "Subcategory": [{"LabelName": "dog", "Subcategory": [{"LabelName": "puppy"}]}],
            "Part": [{"LabelName": "tail", "Subcategory": [{"LabelName": "tip"}]}],
        },
        {"LabelName": "pet", "Subcategory": [{"LabelName": "dog"}, {"LabelName": "fish"}]},
        {"LabelName": "car", "Part": [{"LabelName": "dog"}]},
    ],
}


@pytest.fixture
def hierarchy():
    return LabelHierarchy.from_json(TREE, IDS)


def test_relation_of_a_dag_written_as_a_tree(hierarchy):
    expected = np.zeros((6, 6), bool)
    expected[DOG, [ANIMAL, PET]] = True
    expected[PUPPY, [ANIMAL, PET, DOG]] = True  # puppy is listed below only one of the two dogs
    expected[FISH, PET] = True
    assert np.array_equal(hierarchy.ancestors, expected)
    assert hierarchy.depth.tolist() == [0, 1, 2, 0, 1, 0]
    assert hierarchy.leaves.tolist() == [PUPPY, FISH, CAR]
    assert hierarchy.inner.tolist() == [ANIMAL, DOG, PET]
    assert [p.tolist() for p in hierarchy.parents] == [[], [ANIMAL, PET], [DOG], [], [PET], []]
    assert hierarchy.ancestors_of(PUPPY).tolist() == [ANIMAL, DOG, PET]


def test_mapping_and_tree_agree_and_survive_files(hierarchy, tmp_path):
    mapping = {"dog": ["animal", "pet"], "puppy": "dog", "fish": ["pet"]}
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(TREE))
    assert LabelHierarchy.from_json(mapping, IDS) == hierarchy
    assert LabelHierarchy.from_json(path, IDS) == hierarchy
    assert LabelHierarchy.from_json(hierarchy.to_parents(), IDS) == hierarchy
    assert hierarchy != LabelHierarchy.flat(IDS)
    named = LabelHierarchy.from_json({"LabelName": ["animal"]}, ["animal", "LabelName"])  # no tree
    assert named.to_parents() == {"LabelName": ["animal"]}
    assert pickle.loads(pickle.dumps(hierarchy)) == hierarchy


def test_contract_hangs_children_below_kept_ancestors():
    ids = ["puppy", "animal", "pet", "fish", "car"]
    contracted = LabelHierarchy.from_json(TREE, ids, unlisted="contract")
    assert contracted.ancestors_of(0).tolist() == [1, 2]
    assert contracted.to_parents() == {"puppy": ["animal", "pet"], "fish": ["pet"]}


def test_root_is_a_class_where_it_is_listed():
    hierarchy = LabelHierarchy.from_json(TREE, [*IDS, "root"])
    assert hierarchy.ancestors[:6, 6].all() and hierarchy.depth[PUPPY] == 3


def below(child):
    return {"LabelName": "r", "Subcategory": child}


@pytest.mark.parametrize(
    ("source", "ids", "named"),
    [
        (TREE, IDS[:-1], "1 labels .*'car'"),
        (TREE, [*IDS, "tail"], "1 of 7 classes .*'tail'"),
        ({"dog": ["wolf"]}, IDS, "'wolf'"),
        ({"dog": 3}, IDS, "parents of 'dog'"),
        (below([{"Name": "x"}]), IDS, "below 'r'"),
        (below("x"), IDS, "'Subcategory' of 'r'"),
        (below([{"LabelName": "x", "Subcategory": [{"LabelName": "r"}]}]), ["x"], "cycle"),
        ({}, ["a", "b", "a"], "'a' occurs"),
        ([1], IDS, "JSON object"),
        (
            {"car": ["puppy"], "puppy": ["dog"], "dog": ["puppy"]},
            IDS,
            "cycle.*(dog|puppy) -> ",
        ),
        ({"dog": ["dog"]}, IDS, "dog -> dog"),
    ],
)
def test_errors_name_file_and_label(tmp_path, source, ids, named):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(source))
    with pytest.raises(HierarchyError, match=rf"broken\.json: .*{named}"):
        LabelHierarchy.from_json(path, ids)


def test_a_cycle_of_unlisted_labels():
    hidden = {"dog": ["u"], "u": ["v"], "v": ["u"]}
    with pytest.raises(HierarchyError, match=r"u -> v -> u|v -> u -> v"):
        LabelHierarchy.from_json(hidden, IDS, unlisted="contract")


@pytest.mark.parametrize("up", [True, False])
def test_expand_equals_the_matrix_on_random_pairs(hierarchy, monkeypatch, up):
    """Pairs may repeat; each stands before its ancestors or descendants."""
    monkeypatch.setattr("longtail_det2.data.hierarchy._EXPAND_CHUNK", 7)
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 9, 100).astype(np.int32)
    classes = generator.integers(0, 6, 100).astype(np.int16)
    relation = hierarchy.ancestors if up else hierarchy.ancestors.T
    expected = [(r, t) for r, c in zip(rows, classes, strict=True) for t in [c, *np.flatnonzero(relation[c])]]
    found = hierarchy.expand(rows, classes, up=up)
    assert list(zip(*found, strict=True)) == expected
    assert [one.dtype for one in found] == [np.int32, np.int16]


def test_expand_edge_cases(hierarchy):
    for one in (hierarchy, LabelHierarchy.flat(IDS), LabelHierarchy.flat([])):
        rows, classes = one.expand(np.zeros(0, np.int32), np.zeros(0, np.int32))
        assert len(rows) == len(classes) == 0
    with pytest.raises(HierarchyError, match="class index 6 is outside"):
        hierarchy.expand(np.arange(1), np.array([6]))
    with pytest.raises(HierarchyError, match="class index -1 is outside"):
        hierarchy.expand(np.arange(1), np.array([-1]))


def test_expand_widens_a_type_that_cannot_hold_the_ancestors():
    wide = LabelHierarchy([str(i) for i in range(300)], [[299] if i == 0 else [] for i in range(300)])
    assert wide.expand(np.arange(1), np.zeros(1, np.int8))[1].tolist() == [0, 299]


def test_encode_equals_the_definition_on_random_dags():
    generator = np.random.default_rng(1)
    for _ in range(20):
        k = int(generator.integers(1, 12))
        parents = [[p for p in range(i) if generator.random() < 0.3] for i in range(k)]
        hierarchy = LabelHierarchy([str(i) for i in range(k)], parents)
        lists = [
            generator.choice(k, size=int(generator.integers(1, k + 1)), replace=False).tolist()
            for _ in range(8)
        ]
        up, down = hierarchy.ancestors, hierarchy.ancestors.T
        for labels, row in zip(lists, hierarchy.encode(lists), strict=True):
            positive = set(labels) | {j for i in labels for j in np.flatnonzero(up[i])}
            specific = [i for i in labels if not any(down[i, j] for j in labels)]
            ignored = {j for i in specific for j in np.flatnonzero(down[i])} - positive
            assert set(np.flatnonzero(row == 1)) == positive
            assert set(np.flatnonzero(row == -1)) == ignored
        strict = hierarchy.encode(lists, ignore_descendants=False)
        assert strict.dtype == np.int8 and np.array_equal(strict, hierarchy.encode(lists) == 1)


def test_flat_and_single_class():
    flat = LabelHierarchy.flat(["only"])
    assert flat.is_flat and flat.encode([[0]]).tolist() == [[1]]
    assert flat.encode([]).shape == (0, 1)
    assert flat.leaves.tolist() == [0] and flat.inner.size == 0
    assert flat.to_parents() == {} and LabelHierarchy.from_json({}, ["only"]) == flat


def test_real_open_images_hierarchies(shared_dir):
    folder = shared_dir / "data" / "openimages"
    ids, _ = read_classes(folder / "challenge-2019-classes-500.csv")
    derived = LabelHierarchy.from_json(folder / "derived-500-hierarchy.json", ids)
    assert (derived.num_classes, len(derived.leaves), len(derived.inner)) == (500, 443, 57)
    assert sum(len(parents) > 1 for parents in derived.parents) == 16
    assert derived.ancestors.sum(axis=1).max() == 5

    full_path = folder / "bbox_labels_600_hierarchy.json"
    contracted = LabelHierarchy.from_json(full_path, ids, unlisted="contract")
    assert np.array_equal(contracted.ancestors, derived.ancestors)
    with pytest.raises(HierarchyError, match="101 labels are not in the class list"):
        LabelHierarchy.from_json(full_path, ids)


def test_deep_chains(tmp_path):
    """Closed without recursion, and refused in one line where the JSON reader gives up."""
    depth = 2000
    ids = [str(i) for i in range(depth)]
    chain = LabelHierarchy.from_json({ids[i]: [ids[i - 1]] for i in range(1, depth)}, ids)
    assert chain.depth[-1] == depth - 1 and len(chain.ancestors_of(depth - 1)) == depth - 1
    tree: dict = {"LabelName": ids[-1]}
    for label in reversed(ids[:-1]):
        tree = {"LabelName": label, "Subcategory": [tree]}
    assert LabelHierarchy.from_json(tree, ids) == chain
    with pytest.raises(HierarchyError, match="cycle"):
        LabelHierarchy.from_json({ids[i]: [ids[i - 1]] for i in range(depth)}, ids)
    path = tmp_path / "deep.json"
    with pytest.raises(HierarchyError, match=r"deep\.json: no such file"):
        LabelHierarchy.from_json(path, ["a"])
    path.write_text('{"LabelName": "a", "Subcategory": [' * 5000 + "]}" * 5000)
    with pytest.raises(HierarchyError, match=r"deep\.json: not a usable JSON file"):
        LabelHierarchy.from_json(path, ["a"])
