# ruff: noqa: F811 -- fixtures that are imported
"""A folder segmented in shares: each case once, none lost, one table."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import SimpleITK
from test_command import Run, cohort, options, run, weights  # noqa: F401 -- fixtures

from scripts.cli import segment as module
from scripts.cli.shards import Shard
from scripts.runtime.errors import UserError


@pytest.mark.parametrize("count", [1, 2, 3, 10, 25])
def test_each_case_is_in_one_share(count: int, tmp_path: Path) -> None:
    cases = [f"case{i}" for i in range(23)]
    shares = [Shard(f"{number}/{count}", tmp_path).of(cases) for number in range(1, count + 1)]
    assert sorted(case for share in shares for case in share) == sorted(cases)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/2", "1/0"])
def test_no_share(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write 3/10 for the third of ten"):
        Shard(text, tmp_path)


def test_two_workers_on_one_share(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    message = "Another process uses shard 1/2"
    with Shard("1/2", tmp_path).working(), Shard("2/2", tmp_path).working(), pytest.raises(UserError, match=message):
        Shard("1/2", tmp_path).working().__enter__()
    with Shard("1/2", tmp_path).working():
        pass


def test_a_worker_dies_and_nothing_is_lost_or_done_twice(
    run: Run,
    options: list[str],
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run("segment", cohort, "-o", whole, *options)[0] == 0
    written: list[str] = []
    real = module._write

    def counted(found: Any, *others: Any) -> None:
        real(found, *others)
        written.append(found.case)
        if len(written) == 2:
            raise KeyboardInterrupt  # the mask is there, its line is not

    monkeypatch.setattr(module, "_write", counted)
    assert run("segment", cohort, "-o", out, "--shard", "1/2", *options)[0] == 130
    assert len(written) == 2
    record = out / "records" / "1_of_2.jsonl"
    assert [json.loads(line)["case"] for line in record.read_text().splitlines()] == written[:1]
    with record.open("a") as file:
        file.write('{"case": "cut o')
    status, text, _ = run("segment", cohort, "-o", out, "--shard", "1/2", *options)
    assert (status, written[2:]) == (0, [written[1]])  # that one alone
    assert "manifest" not in text
    status, text, _ = run("segment", cohort, "-o", out, "--shard", "2/2", *options)
    assert str(out / "manifest.csv") in text
    assert len(written) == 4
    masks = sorted(path.name for path in whole.glob("*.nii.gz"))
    assert len(masks) == 3
    assert sorted(path.name for path in out.glob("*.nii.gz")) == masks
    for name in masks:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    rows = list(csv.DictReader((out / "manifest.csv").open()))
    assert [f"{row['case']}_lesion.nii.gz" for row in rows] == masks
    assert all(float(row["brain_ml"]) > 0 for row in rows)
    assert run("segment", cohort, "-o", out, "--shard", "1/1", *options)[0] == 0  # other shares, nothing to do
    assert len(written) == 4
    (out / masks[0]).unlink()
    assert run("segment", cohort, "-o", out, "--shard", "1/1", *options)[0] == 0
    assert len(written) == 5
    status, _, err = run("segment", cohort, "-o", out, "--shard", "1/1", *options, "--threshold=0.3")
    assert status == 1
    assert "has masks with other settings" in err
    assert "with threshold 0.5, not 0.3" in err


def test_done_is_what_the_record_says_of_these_maps_and_these_files(
    run: Run, options: list[str], cohort: Path, tmp_path: Path
) -> None:
    """Masks of other maps under the same ids stayed; an empty mask counted as done; new options were ignored."""
    out = tmp_path / "out"
    words = ["segment", cohort, "-o", out, "--shard", "1/1", "--json", *options]

    def made(*others: str) -> list[str]:
        status, text, err = run(*words, *others)
        assert status == 0, err
        return [case["case"] for case in json.loads(text)["cases"]]

    cases = made()
    assert len(cases) == 3
    assert made() == []
    (out / f"{cases[0]}_lesion.nii.gz").write_bytes(b"")
    assert made() == cases[:1]
    with (out / "records" / "1_of_1.jsonl").open("a") as file:
        file.write('[1]\n{"no": "case"}\n"text"\n')  # a foreign line made every later run fail
    adc = next(path for path in (cohort / "1ADC_ss").iterdir() if path.name.startswith(cases[1]))
    volume = SimpleITK.ReadImage(str(adc))
    SimpleITK.WriteImage(SimpleITK.Cast(volume, SimpleITK.sitkFloat32) * 1.1, str(adc))
    assert made() == [cases[1]]
    assert made("--probabilities") == cases
    assert len(list(out.glob("*_probability.nii.gz"))) == 3
    for option, said in (("--extension=.mha", "with mask"), ("--limits#outside_fraction=0.9", "limits#outside_frac")):
        status, _, err = run(*words, option)
        assert (status, "masks with other settings" in err, said in err) == (1, True, True), err


def test_masks_made_at_another_level_are_refused(run: Run, options: list[str], cohort: Path, tmp_path: Path) -> None:
    """Whatever changes masks with the same weights: evidence of ZADC, peaks, flips."""
    assert run("segment", cohort, "-o", tmp_path, "--shard", "1/3", *options)[0] == 0
    for name, value, before in (("z_evidence_level", 0.4, 0.33), ("z_evidence_weight", 0.5, 0), ("flips", "[0]", "[]")):
        status, _, err = run("segment", cohort, "-o", tmp_path, "--shard", "1/3", *options, f"--{name}={value}")
        assert status == 1
        assert f"with {name} {before}, not {value}" in err


def test_what_cannot_be_segmented_is_in_the_table(run: Run, options: list[str], cohort: Path, tmp_path: Path) -> None:
    bad = max((cohort / "1ADC_ss").iterdir())
    bad.write_bytes(b"no image")
    for number in (1, 2, 3):
        assert run("segment", cohort, "-o", tmp_path / "out", "--shard", f"{number}/3", *options)[0] == (number == 3)
    rows = list(csv.DictReader((tmp_path / "out" / "manifest.csv").open()))
    assert [bool(row["error"]) for row in rows] == [False, False, True]


def test_masks_that_are_removed_during_the_run_are_errors(
    run: Run, options: list[str], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = module._write, []

    def removing(found: Any, job: Any, place: dict[str, Path], *others: Any) -> None:
        for path in seen:
            path.unlink(missing_ok=True)
        real(found, job, place, *others)
        seen.append(place["mask"])

    monkeypatch.setattr(module, "_write", removing)
    status, _, err = run("segment", cohort, "-o", tmp_path / "out", *options)
    assert status == 1
    assert "was removed during the run" in err
    assert f"{len(seen) - 1} of {len(seen)} cases" in err


def test_what_a_killed_run_left_beside_its_masks_is_removed(
    run: Run, options: list[str], cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    case = next(path.name.partition("-ADC")[0] for path in (cohort / "1ADC_ss").iterdir())
    left, other = (tmp_path / "out" / f".0123abcd.{name}_lesion.nii.gz" for name in (case, "another"))
    for path in (left, other):
        path.touch()
    assert run("segment", cohort, "-o", tmp_path / "out", *options)[0] == 0
    assert not left.exists()
    assert other.exists()


def test_records_that_are_removed_during_the_run_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1_of_1.jsonl was removed during the run"), Shard("1/1", tmp_path).working():
        shutil.rmtree(tmp_path / "records")


def test_foreign_records_are_not_read(tmp_path: Path) -> None:
    shard = Shard("1/1", tmp_path)
    shard.records.mkdir()
    os.mkfifo(shard.records / "2_of_9.jsonl")
    (shard.records / "3_of_9.jsonl").mkdir()
    lines = ['{"case": ["a"]}', "[" * 100_000, "null", '{"case": 5}', '{"case": "b", "mask": 5}', "{"]
    (shard.records / "1_of_1.jsonl").write_text("\n".join(lines))
    assert set(shard.rows()) == {"['a']", "5", "b"}
    with pytest.raises(UserError, match="masks with other settings: b with mask "):
        shard.is_done(shard.rows()["b"], {}, [], {"mask": tmp_path / "b_lesion.nii.gz"})


def test_earlier_results_below_the_maps_are_no_cases(
    run: Run, options: list[str], cohort: Path, tmp_path: Path
) -> None:
    """A second run took its own probability maps for cases."""
    maps = shutil.copytree(cohort, tmp_path / "maps")
    for _ in range(2):
        status, text, err = run("segment", maps, "-o", maps / "out", "--probabilities", "--json", *options)
        assert status == 0, err
        assert len(json.loads(text)["cases"]) == 3
