import subprocess
import sys

from longtail_det2.utils.console import tell_error

SCRIPT = """
import sys
from pathlib import Path
from longtail_det2.utils.console import tell
for line in range(20_000):
    tell(f"line {line}")
Path(sys.argv[1]).write_text("made")
"""


def test_work_goes_on_when_the_reader_has_gone(tmp_path):
    done = tmp_path / "done"
    command = [sys.executable, "-c", SCRIPT, str(done)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr is not None and process.stderr.read() == b""
    assert process.returncode == 0 and done.read_text() == "made"


def test_errors_are_one_line_without_control_characters(capsys):
    assert tell_error(ValueError("a\x1b[2J\nb")) == 2
    assert capsys.readouterr().err == "error: a\\x1b[2J b\n"
