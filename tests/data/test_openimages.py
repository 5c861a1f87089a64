"""Open Images CSVs to a store: every form of the files, what becomes of the rows, and what is refused."""

import pytest
from openimages_files import CHIPS, DOG, MAN, PERSON, WOMAN, Folder, image_labels, objects, row

from longtail_det2.data.store import ObjectFlag
from longtail_det2.utils.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


# ---- the files in all their forms


def test_rows_become_objects_by_image(folder):
    folder.boxes(
        row("b", "/m/dog", (0.5, 0.5, 1, 1), (1, 0, 0, 0, 1)),
        row("a", "/m/person", (0, 0, 0.25, 0.5), (0, 1, 0, 1, 0)),
        row("b", "/m/chips", (0, 0.125, 0.5, 1), (0, 0, 1, 0, 0)),
    )
    store = folder.prepare()
    assert objects(store) == [
        ("a", (0, 0, 0.25, 0.5), ObjectFlag.TRUNCATED | ObjectFlag.DEPICTION, [PERSON]),
        ("b", (0, 0.125, 0.5, 1), ObjectFlag.GROUP_OF, [CHIPS]),
        ("b", (0.5, 0.5, 1, 1), ObjectFlag.OCCLUDED | ObjectFlag.INSIDE, [DOG]),
    ]
    assert store.class_names == ("Person", "Man", "Woman", 'Chips, "French"', "Dog")
    assert store.hierarchy.ancestors[MAN].tolist() == [True, False, False, False, False]
    assert store.file_names.tolist() == [b"a.jpg", b"b.jpg"]
    assert not store.has_image_sizes
    assert store.image_root is None


def test_columns_are_found_by_name(folder):
    expected = objects(folder.prepare(folder.boxes(row("a"), row("b", flags=(0, 0, 1, 0, 0)))))
    challenge = folder.write(
        "challenge.csv",
        "IsGroupOf,YMax,LabelName,Extra,YMin,XMax,ImageID, XMin\n"
        '0,0.4,/m/dog,"x,\ty",0.2,0.3,a,0.1\n1,0.4,/m/dog,,0.2,0.3,b,0.1\n',
    )
    assert objects(folder.prepare(challenge, output="challenge")) == expected


def test_byte_order_mark_and_windows_line_ends(folder):
    expected = objects(folder.prepare(folder.boxes(row("a"), row("b"))))
    text = (folder.path / "boxes.csv").read_text().replace("\n", "\r\n")
    (folder.path / "windows.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert objects(folder.prepare(folder.path / "windows.csv", output="windows")) == expected


def test_flags_that_are_absent_or_unknown_are_unset(folder):
    folder.boxes(row("a", flags=(-1, -1, -1, -1, -1)), row("b", flags=(-1, "1.0", -1, "0.0", -1)))
    assert folder.prepare().flags.tolist() == [0, ObjectFlag.TRUNCATED]
    plain = folder.write("plain.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax\na,/m/dog,0,1,0,1\n")
    assert folder.prepare(plain, output="plain").flags.tolist() == [0]


def test_file_without_rows_and_file_without_last_line_end(folder):
    assert len(folder.prepare(folder.boxes())) == 0
    folder.boxes(row("a"), end="")
    assert len(folder.prepare()) == 1


def test_several_files_equal_one(folder):
    rows = [row("a"), row("b"), row("a", "/m/man"), row("c", "/m/chips")]
    expected = objects(folder.prepare(folder.boxes(*rows)))
    parts = [folder.boxes(*rows[:1], name="1.csv"), folder.boxes(*rows[1:], name="2.csv")]
    assert objects(folder.prepare(*parts, output="parts")) == expected


def test_class_file_with_header_and_further_columns(folder):
    classes = folder.write("more.csv", "LabelName,DisplayName,Id\n/m/dog,Dog,1\n/m/cat,,2\n")
    store = folder.prepare(folder.boxes(row("a")), classes=classes, hierarchy=None)
    assert store.class_ids == ("/m/dog", "/m/cat")
    assert store.class_names == ("Dog", "/m/cat")
    assert not store.has_hierarchy


# ---- labels and objects


def test_equal_boxes_are_one_object_most_specific_label_first(folder):
    folder.boxes(
        row("a", "/m/person", flags=(1, 0, 0, 0, 0)),
        row("a", "/m/man", flags=(0, 1, 0, 0, 0)),
        row("a", "/m/dog"),
        row("b", "/m/dog"),
        row("b", "/m/woman", (0.1, 0.2, 0.3, 0.41)),
    )
    store = folder.prepare()
    assert [labels for *_, labels in objects(store)] == [[MAN, PERSON, DOG], [DOG], [WOMAN]]
    assert store.flags.tolist() == [ObjectFlag.OCCLUDED | ObjectFlag.TRUNCATED, 0, 0]
    assert store.header["summary"]["rows_merged_equal_box"] == 2


def test_of_equally_deep_labels_the_rarer_one_is_first(folder):
    folder.boxes(row("a", "/m/dog"), row("a", "/m/chips"), row("b", "/m/chips"), row("c", "/m/man"))
    assert objects(folder.prepare())[0][3] == [DOG, CHIPS]


def test_group_and_single_box_stay_apart(folder):
    folder.boxes(row("a", "/m/man", flags=(0, 0, 1, 0, 0)), row("a", "/m/person"))
    assert sorted(labels for *_, labels in objects(folder.prepare())) == [[PERSON], [MAN]]


def test_repeated_rows_count_once(folder):
    folder.boxes(row("a"), row("a"), row("a", "/m/chips"), row("a"), row("b"))
    store = folder.prepare()
    assert [labels for *_, labels in objects(store)] == [[CHIPS, DOG], [DOG]]
    assert store.header["summary"]["duplicate_rows"] == 2
    assert store.header["summary"]["box_rows"] == 5


def test_image_labels_and_images_with_nothing_else(folder):
    folder.boxes(row("b"))
    labels = folder.image_labels(
        "c,verification,/m/man,1",
        "a,verification,/m/dog,0",
        "c,verification,/m/dog,0",
        "c,verification,/m/man,1",
        "b,verification,/m/dog,1",
        "b,crowdsource,/m/dog,0",
    )
    store = folder.prepare(image_labels=[labels])
    assert store.image_ids.tolist() == [b"a", b"b", b"c"]
    assert store.object_offsets.tolist() == [0, 0, 1, 1]
    assert [image_labels(store, image) for image in range(3)] == [
        [(DOG, 0)],
        [(DOG, 0), (DOG, 1)],
        [(MAN, 1), (DOG, 0)],
    ]
    summary = store.header["summary"]
    assert (summary["images_without_objects"], summary["contradictory_image_labels"]) == (2, 1)


def test_fractional_confidence_is_refused_or_skipped(folder):
    folder.boxes(row("a"))
    labels = folder.write(
        "machine.csv",
        "ImageID,LabelName,Confidence\na,/m/man,1\na,/m/dog,0.7\na,/m/chips,0.2\na,/m/woman,0\n",
    )
    with pytest.raises(DataError, match=r"machine\.csv, line 3: Confidence is 0\.7.*human-imagelabels"):
        folder.prepare(image_labels=[labels])
    store = folder.prepare(image_labels=[labels], skip_bad=True)
    assert image_labels(store, 0) == [(MAN, 1), (WOMAN, 0)]


def test_unknown_label_is_refused_or_skipped(folder):
    folder.boxes(row("a"), "", row("b", "/m/cat"), row("c"), row("c", "/m/cat"))
    with pytest.raises(
        DataError, match=r"boxes\.csv, line 4: label '/m/cat' is not among the 5 classes \(2 rows .*skip"
    ):
        folder.prepare()
    store = folder.prepare(on_unknown_label="skip")
    assert store.image_ids.tolist() == [b"a", b"c"]  # nothing is known of b
    assert store.num_objects == 2
    assert store.header["summary"]["unknown_label"] == 2


# ---- what is wrong with a file is said with its line


def test_line_number_far_into_the_file(folder):
    rows = [row(f"{index:07d}") for index in range(200_000)]
    rows[150_000] = rows[150_000].replace("0.3", "0.3.3", 1)
    with pytest.raises(DataError, match=r"line 150002: column XMax holds '0\.3\.3'"):
        folder.prepare(folder.boxes(*rows))
    rows[150_000] = row("x", "/m/cat")
    with pytest.raises(DataError, match=r"line 150002: label '/m/cat'"):
        folder.prepare(folder.boxes(*rows))


def test_bad_rows_can_be_skipped(folder):
    folder.boxes(
        row("a", box=(-0.5, 0.5, 0.5, 1)),
        row("b", box=(0.5, 0.5, 0.1, 1)),
        row("c", box=(1.1, 0, 1.2, 1)),
        row("d", box=("nan", 0, 1, 1)),
        row("e", box=(-5e-7, 0, 1.0000005, 1)),
        row("f", box=(0.5, 0, 0.5, 1)),
    )
    labels = [folder.image_labels("a,machine,/m/dog,0.3", "g,verification,/m/dog,1")]
    message = r"boxes\.csv, line 2: bad box XMin=-0\.5 .*\(4 bad boxes\).*--skip-bad.*1 image labels that"
    with pytest.raises(DataError, match=message):
        folder.prepare(image_labels=labels)
    store = folder.prepare(image_labels=labels, skip_bad=True)
    assert store.image_ids.tolist() == [b"e", b"f", b"g"]  # within the tolerance; empty, but not wrong
    assert store.boxes[0].tolist() == [0, 0, 1, 1]
    summary = store.header["summary"]
    assert (summary["bad_box"], summary["machine_label"], summary["empty_boxes"]) == (4, 1, 1)


def test_skipped_labels_may_have_any_box(folder):
    folder.boxes(row("a"), row("b", "/m/cat", box=(0, 0, 9, 9)))
    labels = [folder.image_labels("b,machine,/m/cat,0.3", "a,verification,/m/dog,1")]
    store = folder.prepare(image_labels=labels, on_unknown_label="skip")
    assert store.image_ids.tolist() == [b"a"] and store.header["summary"]["unknown_label"] == 2


def test_what_was_skipped_is_listed(folder, caplog):
    folder.boxes(row("a"), row("b", "/m/c\x1b[31mat"), row("c", box=(0, 0, 2, 1)))
    folder.prepare(on_unknown_label="skip", skip_bad=True)
    (table,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "line 3: label '/m/c\\x1b[31mat'" in table and "line 4: bad box" in table and "\x1b" not in table


def test_class_files_that_cannot_be_used_are_named(folder):
    boxes = folder.boxes(row("a"))
    for text, named in (
        ("", "bad.csv.*no classes"),
        ("/m/a,A\n/m/b,B\n/m/a,C\n", "line 3: class '/m/a'"),
        ("/m/a,A\n,B\n", "line 2: the class id is empty"),
    ):
        with pytest.raises(DataError, match=named):
            folder.prepare(boxes, classes=folder.write("bad.csv", text))
