"""Comparisons within one run: whose turn it is, ratios and their intervals, and which sampler is recommended."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.main import main
from headrace.insight import Interval, Turn, ratio_of, take_turns
from headrace.insight.bench import BenchReport, SamplerFigures, bottleneck, simplest_of_the_fastest
from headrace.insight.turns import timed_turn
from headrace.plotting import plot_bars
from headrace.samplers.timing import TimingReport

ROOT = Path(__file__).parent.parent


def test_contenders_take_turns_in_an_order_that_is_reversed_each_round() -> None:
    order: list[str] = []

    def contender(name: str) -> Turn:
        order.append(name)
        return Turn(steps=100, seconds=0.5, cpu_seconds=0.25)

    turns = take_turns({name: lambda name=name: contender(name) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(order) == "abccbaabc"
    assert {name: len(own) for name, own in turns.items()} == {"a": 3, "b": 3, "c": 3}
    assert turns["a"][0].steps_per_second == 200
    assert turns["a"][0].cpu_us == 2500


def test_no_round_begins_after_the_deadline_but_the_first() -> None:
    turns = take_turns({"a": lambda: Turn(1, 1, 1)}, 5, deadline=0.0)
    assert len(turns["a"]) == 1


def test_a_turn_does_not_count_what_comes_before_its_first_tenth() -> None:
    calls: list[int] = []

    def collect() -> int:
        calls.append(1)
        sum(range(20_000))
        return 7

    turn = timed_turn(collect, 0.05)
    assert 0 < turn.steps < 7 * len(calls)
    assert turn.steps % 7 == 0


def test_a_ratio_has_the_interval_of_its_rounds() -> None:
    same = ratio_of([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])  # a machine that slows down slows both down
    assert same == Interval(2.0, 2.0, 2.0)
    assert str(same) == "2.00 (2.00 to 2.00)"
    few = ratio_of([1.0, 1.0, 3.0, 1.0, 1.0], [1.0] * 5)
    assert few.middle == 1.0
    assert few.low == 1.0 < few.high <= 3.0
    assert ratio_of([1.0, 1.0, 3.0, 1.0, 1.0], [1.0] * 5) == few  # it is drawn in the same way each time


@pytest.mark.parametrize("values", [([], []), ([1.0], [1.0, 2.0])])
def test_a_ratio_of_different_rounds_is_refused(values: tuple[Sequence[float], Sequence[float]]) -> None:
    with pytest.raises(ValueError, match="the same rounds, at least one; got"):
        ratio_of(*values)


@pytest.mark.parametrize(
    ("rates", "recommended"),
    [
        ({"serial": [100.0, 101.0, 99.0], "cpu": [200.0, 201.0, 199.0]}, "cpu"),
        ({"serial": [100.0, 101.0, 99.0], "cpu": [102.0, 103.0, 101.0]}, "serial"),  # 2 % are not worth processes
        ({"serial": [100.0, 250.0, 90.0], "cpu": [200.0, 201.0, 199.0]}, "serial"),  # nothing shows that cpu is faster
        ({"serial": [300.0, 301.0, 299.0], "cpu": [200.0, 201.0, 199.0]}, "serial"),
    ],
)
def test_the_simplest_of_the_fastest_is_recommended(rates: dict[str, list[float]], recommended: str) -> None:
    assert simplest_of_the_fastest(rates) == recommended


def timing(**shares: float) -> TimingReport:
    none = {"env": 0.0, "reset": 0.0, "acting": 0.0, "recording": 0.0, "idle": 0.0}
    return TimingReport(steps=1, seconds=1.0, steps_per_second=1.0, **{**none, **shares})


@pytest.mark.parametrize(
    ("shares", "what"),
    [
        ({"env": 0.4, "reset": 0.2, "acting": 0.3}, "Most of the time is spent in the environment"),
        ({"acting": 0.6, "env": 0.3}, "Most of the time is spent in the agent"),
        ({"idle": 0.6, "env": 0.9}, "Workers mostly wait"),
        ({"env": 0.4, "acting": 0.4, "recording": 0.2}, "No part takes most of the time"),
    ],
)
def test_what_limits_a_sampler_is_said(shares: dict[str, float], what: str) -> None:
    assert bottleneck(timing(**shares)).startswith(what)


def test_the_table_of_a_comparison_has_a_line_for_each_sampler() -> None:
    figures = (
        SamplerFigures("serial", 10_000.0, Interval(1, 1, 1), 12.34, timing(env=0.5, acting=0.5)),
        SamplerFigures("gpu", 20_000.0, Interval(2, 1.5, 2.5), 20.0, timing(env=1.0)),
    )
    heading, serial, gpu = BenchReport(figures, n_rounds=3, recommended="gpu").table()
    assert heading.split()[:5] == ["sampler", "steps/s", "ratio", "to", "serial"]
    assert serial.split() == ["serial", "10,000", "1", "12.3", "50%", "50%", "0%", "0%"]
    assert gpu.split() == ["gpu", "20,000", "2.00", "(1.50", "to", "2.50)", "20.0", "100%", "0%", "0%", "0%"]


def test_bars_have_the_names_in_a_picture(tmp_path: Path) -> None:
    plot_bars({"first": (2.0, 1.5, 2.5), "second": (0.5, 0.4, 0.6)}, tmp_path / "bars.svg", x_label="ratio", mark=1.0)
    picture = (tmp_path / "bars.svg").read_text()
    assert all(f"<!-- {word} -->" in picture for word in ("first", "second", "ratio"))


def test_the_table_of_peers_compares_with_the_sampler_of_the_same_kind(tmp_path: Path) -> None:
    def cell(contender: str, beside: str, rate: float) -> dict[str, Any]:
        turns = [{"steps": rate * factor, "seconds": 1.0, "cpu_seconds": factor} for factor in (1.0, 2.0, 1.5)]
        return {"contender": contender, "beside": beside, "world": "plain", "B": 8, "T": 64, "turns": turns}

    found = {
        "machine": {"cores": 2},
        "versions": {"current": {"versions": {"numpy": "2.4.6"}}},
        "cells": [cell("headrace serial", "headrace serial", 3000), cell("Other", "headrace serial", 1000)],
        "failed": {"rlpyt (rlpyt)": "No matching distribution found"},
    }
    (tmp_path / "found.json").write_text(json.dumps(found))
    program = [sys.executable, str(ROOT / "benchmarks/peers/compare.py"), "--table", str(tmp_path / "found.json")]
    printed = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True).stdout
    assert "| Other | 1,500 | 1000.0 | headrace serial | 3.00 (3.00 to 3.00) | 3.00 (3.00 to 3.00) |" in printed
    assert "- not measured: rlpyt (rlpyt): No matching distribution found" in printed
    assert "numpy 2.4.6" in printed


@pytest.mark.programs
def test_the_command_measures_and_recommends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--samplers", "serial", "gpu", "--batch-B", "4", "--batch-T", "8", "--n-workers", "1"]
    assert main(["bench", *options, "--seconds", "1", "--json", str(tmp_path / "bench.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [one["sampler"] for one in found["figures"]] == ["serial", "gpu"]
    assert (found["env"], found["batch_T"], found["batch_B"]) == ("CartPole-v1", 8, 4)
    assert found["n_rounds"] >= 3
    assert all(one["steps_per_second"] > 0 for one in found["figures"])
    assert f"headrace train --sampler {found['recommended']}" in printed
    assert f"figures         {tmp_path / 'bench.json'}" in printed


@pytest.mark.programs
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--samplers", "serail"], "unknown sampler 'serail'; did you mean 'serial'?"),
        (["--seconds", "0"], "--seconds must be greater than 0, got 0.0"),
        (["--batch-B", "0"], "batch_B must be"),
        (["--env", "CartPole-v7"], "unknown environment 'CartPole-v7'"),
    ],
)
def test_wrong_usage_is_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    assert said in capsys.readouterr().err
