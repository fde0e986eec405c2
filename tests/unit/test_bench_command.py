"""`cowfs bench` in front of the benchmarks: what it passes on, and what it says where there is nothing to measure."""

import json
import os
import pathlib

import pytest

from benchmarks import report
from cowfs.commands import bench
from cowfs.commands import main as cowfs_command


def test_bench_outside_a_checkout(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert cowfs_command.main(["bench"]) == 3
    assert "make bench" in capsys.readouterr().err


def test_bench_passes_its_options_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert cowfs_command.main(["bench", "--list", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"report": None}
    assert "sequential_write_1m" in captured.err and "ceiling_uring" in captured.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as measuring does")
def test_bench_goes_on_with_a_run_where_the_caller_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cowfs_command.main(["bench", "--continue", "none"]) == 1
    assert f"{tmp_path}/none has no {report.META_NAME}, there is no run to go on with" in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cowfs_command.main(["bench", "--continue", "none", "--output", "some"])
    assert ended.value.code == 2
