"""Open Images CSVs to a store: the files, what becomes of the rows, what is refused, images, repeated runs.

For cells and headers that are wrong see tests/hostile/test_annotations.py.
"""

import logging
import os

import pytest
from openimages_files import CHIPS, DOG, MAN, PERSON, WOMAN, Folder, image_labels, objects, row

from longtail_det2.cli import main
from longtail_det2.data.store import AnnotationStore, ObjectFlag
from longtail_det2.utils.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


# ---- the files in all their forms


def test_rows_become_objects_by_image(folder):
    folder.write_boxes(
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


def test_byte_order_mark_and_windows_line_ends(folder):
    expected = objects(folder.prepare(folder.write_boxes(row("a"), row("b"))))
    text = (folder.path / "boxes.csv").read_text().replace("\n", "\r\n")
    (folder.path / "windows.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert objects(folder.prepare(folder.path / "windows.csv", output="windows")) == expected


def test_flags_that_are_absent_or_unknown_are_unset(folder):
    folder.write_boxes(row("a", flags=(-1, -1, -1, -1, -1)), row("b", flags=(-1, "1.0", -1, "0.0", -1)))
    assert folder.prepare().flags.tolist() == [0, ObjectFlag.TRUNCATED]
    plain = folder.write("plain.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax\na,/m/dog,0,1,0,1\n")
    assert folder.prepare(plain, output="plain", hierarchy=None).flags.tolist() == [0]


def test_file_without_rows_and_file_without_last_line_end(folder):
    assert len(folder.prepare(folder.write_boxes())) == 0
    folder.write_boxes(row("a"), end="")
    assert len(folder.prepare()) == 1


def test_several_files_equal_one(folder):
    rows = [row("a"), row("b"), row("a", "/m/man"), row("c", "/m/chips")]
    expected = objects(folder.prepare(folder.write_boxes(*rows)))
    parts = [folder.write_boxes(*rows[:1], name="1.csv"), folder.write_boxes(*rows[1:], name="2.csv")]
    assert objects(folder.prepare(*parts, output="parts")) == expected


# ---- labels and objects


def test_equal_boxes_are_one_object_most_specific_label_first(folder):
    folder.write_boxes(
        row("a", "/m/person", flags=(1, 0, 0, 0, 0)),
        row("a", "/m/man", flags=(0, 1, 0, 0, 0)),
        row("a", "/m/dog"),
        row("b", "/m/dog"),
        row("b", "/m/dog"),
        row("b", "/m/woman", (0.1, 0.2, 0.3, 0.41)),
    )
    store = folder.prepare()
    assert [labels for *_, labels in objects(store)] == [[MAN, PERSON, DOG], [DOG], [WOMAN]]
    assert store.flags.tolist() == [ObjectFlag.OCCLUDED | ObjectFlag.TRUNCATED, 0, 0]
    summary = store.header["summary"]
    counted = ("box_rows", "rows_merged_equal_box", "duplicate_rows")
    assert [summary[name] for name in counted] == [6, 2, 1]


def test_image_labels_and_images_with_nothing_else(folder):
    folder.write_boxes(row("b"))
    labels = folder.write_labels(
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


# ---- what is wrong is refused with its line, or skipped


def test_fractional_confidence(folder):
    folder.write_boxes(row("a"))
    rows = ("a,,/m/man,1", "a,,/m/dog,0.7", "a,,/m/chips,0.2", "a,,/m/woman,0")
    labels = [folder.write_labels(*rows)]
    with pytest.raises(DataError, match=r"labels\.csv, line 3: Confidence is 0\.7.*human-imagelabels"):
        folder.prepare(image_labels=labels)
    store = folder.prepare(image_labels=labels, skip_bad=True)
    assert image_labels(store, 0) == [(MAN, 1), (WOMAN, 0)]
    labels = [folder.write_labels("a,,/m/man,2")]
    with pytest.raises(DataError, match=r"labels\.csv, line 2: column Confidence holds 2; .*\[0, 1\]"):
        folder.prepare(image_labels=labels, skip_bad=True)


def test_unknown_labels(folder):
    """They may have any box or confidence."""
    folder.write_boxes(row("a"), "", row("b", "/m/cat", box=(0, 0, 9, 9)), row("c"), row("c", "/m/cat"))
    labels = [folder.write_labels("b,machine,/m/cat,0.3", "a,verification,/m/dog,1")]
    message = r"boxes\.csv, line 4: label '/m/cat' is not among the 5 classes \(3 rows .*skip"
    with pytest.raises(DataError, match=message):
        folder.prepare(image_labels=labels)
    store = folder.prepare(image_labels=labels, on_unknown_label="skip")
    assert store.image_ids.tolist() == [b"a", b"c"]  # nothing is known of b
    assert store.num_objects == 2
    assert store.header["summary"]["unknown_label"] == 3


def test_line_number_far_into_the_file(folder):
    rows = [row(f"{index:07d}") for index in range(200_000)]
    rows[150_000] = rows[150_000].replace("0.3", "0.3.3", 1)
    with pytest.raises(DataError, match=r"line 150002: column XMax holds '0\.3\.3'"):
        folder.prepare(folder.write_boxes(*rows))
    rows[150_000] = row("x", "/m/cat")
    with pytest.raises(DataError, match=r"line 150002: label '/m/cat'"):
        folder.prepare(folder.write_boxes(*rows))


def test_bad_rows_can_be_skipped(folder, caplog):
    folder.write_boxes(
        row("a", box=(-0.5, 0.5, 0.5, 1)),
        row("b", box=(0.5, 0.5, 0.1, 1)),
        row("c", box=(1.1, 0, 1.2, 1)),
        row("d", box=("nan", 0, 1, 1)),
        row("e", box=(-5e-7, 0, 1.0000005, 1)),
        row("f", box=(0.5, 0, 0.5, 1)),
        row("h", "/m/c\x1b[31mat"),
    )
    labels = [folder.write_labels("a,machine,/m/dog,0.3", "g,verification,/m/dog,1")]
    message = r"boxes\.csv, line 2: bad box XMin=-0\.5 .*\(4 bad boxes\).*--skip-bad.*1 image labels that"
    with pytest.raises(DataError, match=message):
        folder.prepare(image_labels=labels, on_unknown_label="skip")
    store = folder.prepare(image_labels=labels, on_unknown_label="skip", skip_bad=True)
    assert store.image_ids.tolist() == [b"e", b"f", b"g"]  # within the tolerance; empty, but not wrong
    assert store.boxes[0].tolist() == [0, 0, 1, 1]
    summary = store.header["summary"]
    assert (summary["bad_box"], summary["machine_label"], summary["empty_boxes"]) == (4, 1, 1)
    (table,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "line 8: label '/m/c\\x1b[31mat'" in table and "line 2: bad box" in table and "\x1b" not in table


def test_class_files_that_cannot_be_used_are_named(folder):
    boxes = folder.write_boxes(row("a"))
    for text, named in (
        ("", "bad.csv.*no classes"),
        ("/m/a,A\n/m/b,B\n/m/a,C\n", "line 3: class '/m/a'"),
        ("/m/a,A\n,B\n", "line 2: the class id is empty"),
    ):
        with pytest.raises(DataError, match=named):
            folder.prepare(boxes, classes=folder.write("bad.csv", text))


# ---- repeated runs


def stamp(store: AnnotationStore) -> int:
    return os.stat(store.path / "box.npy").st_mtime_ns


def test_changes_lead_to_a_new_store(folder):
    boxes = folder.write_boxes(row("a"))
    stamps = [stamp(folder.prepare())]
    os.utime(boxes, ns=(1, 1))
    assert [stamp(folder.prepare())] == stamps  # the content is what counts
    stamps.append(stamp(folder.prepare(force=True)))
    folder.write_boxes(row("b"))
    os.utime(boxes, ns=(1, 2))
    store = folder.prepare()
    assert store.image_ids.tolist() == [b"b"]
    stamps.append(stamp(store))
    stamps.append(stamp(folder.prepare(skip_bad=True)))
    stamps.append(stamp(folder.prepare(hierarchy=None)))
    stamps.append(stamp(folder.prepare(image_labels=[folder.write_labels("b,verification,/m/dog,1")])))
    assert len(set(stamps)) == len(stamps)


def test_images_that_were_missing_are_looked_for_again(folder):
    folder.write_boxes(row("a"), row("b"))
    folder.image("a.jpg")
    options = {"images": folder.path / "images", "skip_bad": True}
    assert len(folder.prepare(**options)) == 1
    folder.image("b.jpg")
    store = folder.prepare(**options)
    assert len(store) == 2
    assert stamp(folder.prepare(**options)) == stamp(store)


# ---- images


def test_images_at_any_depth_and_of_any_kind(folder):
    folder.write_boxes(row("a1"), row("b2"), row("c3"))
    folder.image("a1.JPG", (40, 30))
    folder.image("train/b2.png", (20, 10))
    folder.image("train/c/c3.jpeg", (6, 8))
    folder.image("train/c/unused.jpg")
    (folder.path / "images" / "a1.txt").write_text("no image")
    store = folder.prepare(images=folder.path / "images")
    assert store.file_names.tolist() == [b"a1.JPG", b"train/b2.png", b"train/c/c3.jpeg"]
    assert store.image_sizes.tolist() == [[30, 40], [10, 20], [8, 6]]
    assert store.image_root == folder.path / "images"
    assert store.has_image_sizes
    folder.image("validation/b2.jpg")
    message = r"two files could be one image: train/b2\.png and validation/b2\.jpg"
    with pytest.raises(DataError, match=message):
        folder.prepare(images=folder.path / "images", force=True)


def test_missing_image_is_refused_or_skipped(folder):
    folder.write_boxes(row("a"), row("b"), row("b", "/m/man"), row("c"))
    labels = folder.write_labels("b,verification,/m/dog,1", "c,verification,/m/man,0")
    folder.image("a.jpg")
    folder.image("c.jpg")
    (folder.path / "images" / "d.jpg").mkdir()
    options = {"images": folder.path / "images", "image_labels": [labels]}
    with pytest.raises(DataError, match=r"^image b is not below .*images; .*--skip-bad"):
        folder.prepare(**options)
    store = folder.prepare(**options, skip_bad=True)
    assert store.image_ids.tolist() == [b"a", b"c"]
    assert [image for image, *_ in objects(store)] == ["a", "c"]
    assert [image_labels(store, image) for image in range(2)] == [[], [(MAN, 0)]]
    assert store.header["summary"]["missing_image"] == 1


# ---- the command, and real annotations


def test_command_line(folder, monkeypatch, capsys, caplog):
    monkeypatch.chdir(folder.path)
    caplog.set_level(logging.INFO)
    folder.write_boxes(row("a"), row("a", "/m/man"))
    command = ["prepare", "openimages", "--boxes", "boxes.csv", "--classes", "classes.csv"]
    command += ["--output", "store"]
    assert main(command) == 0
    assert "1 images, 1 objects, 2 labels of 5 classes" in capsys.readouterr().out
    assert main(command) == 0
    assert "store is up to date" in caplog.text
