import numpy as np

from longtail_det2.utils.ragged import gather_rows, offsets_of
from longtail_det2.utils.wording import printable


def test_rows_are_gathered_in_any_order_and_repeated():
    values = np.arange(10, 20)
    offsets = np.array([0, 3, 3, 7, 10], dtype=np.int32)
    rows = np.array([3, 0, 1, 0])
    positions, gathered = gather_rows(offsets, rows)
    parts = [values[offsets[row] : offsets[row + 1]] for row in rows]
    assert values[positions].tolist() == np.concatenate(parts).tolist()
    assert np.diff(gathered).tolist() == [3, 3, 0, 3]
    positions, gathered = gather_rows(offsets, np.zeros(0, dtype=np.int64))
    assert len(positions) == 0 and gathered.tolist() == [0]
    assert offsets_of(np.zeros(0, dtype=int)).tolist() == [0]


def test_control_characters_are_escaped_and_long_texts_cut():
    assert printable("a\n\x1b[31mé\udc80") == "a\\n\\x1b[31mé\\udc80"
    assert printable("x" * 300, most=5) == "xxxxx ..."
