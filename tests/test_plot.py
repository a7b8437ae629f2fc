"""`headrace plot`: which runs share a line, the band, and the legend."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.cli.main import main
from headrace.cli.plot import names_of_lines
from headrace.plotting import axis_label
from headrace.runners.logging import Curve, Summary, plot_curves, read_columns, summary_of

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("copies_tried_here")]


def run_folder(path: Path, config: dict[str, Any] | None, rows: list[tuple[float, float, float | str]]) -> str:
    """Makes a folder like that of a training."""
    path.mkdir()
    lines = [f"{steps},{seconds},{value},{value}" for steps, seconds, value in rows]
    (path / "progress.csv").write_text("\n".join(["CumSteps,CumTime,ReturnAverage,ReturnMin", *lines]) + "\n")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return str(path)


def config(seed: int, epochs: int = 4, env: str = "CartPole-v1") -> dict[str, Any]:
    nested = {"n_steps": 30, "seed": seed, "log_dir": f"runs/{seed}"}
    return {"env": env, "algo": "ppo", "runner": nested, "ppo": {"epochs": epochs, "gamma": 0.9}}


@pytest.fixture
def four_runs(tmp_path: Path) -> list[str]:
    """Two seeds of two settings."""
    return [
        run_folder(tmp_path / "a", config(0), [(10, 1.0, 1.0), (20, 2.0, 3.0), (30, 3.0, 5.0)]),
        run_folder(tmp_path / "b", config(1), [(10, 1.5, 3.0), (20, 2.5, 5.0), (30, 3.5, 9.0)]),
        run_folder(tmp_path / "c", config(0, epochs=8), [(10, 1.0, "nan"), (20, 2.0, 30.0)]),
        run_folder(tmp_path / "d", config(1, epochs=8), [(10, 1.0, ""), (20, 2.0, 50.0)]),
    ]


def texts(svg: Path) -> str:
    """Returns the texts of a plot: matplotlib writes each as a comment beside its glyphs."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    tree = ElementTree.parse(svg, parser)
    comments = [node for node in tree.iter() if node.tag is ElementTree.Comment]  # type: ignore[comparison-overlap]
    return "\n".join(node.text or "" for node in comments)


def n_bands(svg: Path) -> int:
    return svg.read_text().count('<g id="FillBetween')


def test_runs_that_differ_only_in_the_seed_are_one_line(
    four_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.svg"
    assert main(["plot", *four_runs, "--out", str(picture)]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "epochs=4: 2 runs, ReturnAverage 7 at CumSteps 30"
    assert second == "epochs=8: 2 runs, ReturnAverage 40 at CumSteps 20"
    assert last.split() == ["picture", str(picture)]
    words = texts(picture)
    for word in ("epochs=4", "epochs=8", "CartPole-v1 · ppo", "environment steps", "return per episode"):
        assert word in words
    assert "band: lowest to highest run" in words
    assert n_bands(picture) == 2


def test_names_of_lines_can_be_set(four_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.svg"
    assert main(["plot", *four_runs, "--label", "few epochs", "many", "--out", str(picture)]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[:2]] == ["few epochs", "many"]
    assert "few epochs" in texts(picture)
    assert "epochs=4" not in texts(picture)


@pytest.mark.parametrize(
    ("settings", "labels", "besides"),
    [
        ([{"env": "A", "algo": "ppo", "ppo.epochs": "4"}], ["mean"], []),
        (
            [{"ppo.epochs": "4", "model.dueling": "True"}, {"ppo.epochs": "8", "model.dueling": "True"}],
            ["epochs=4", "epochs=8"],
            [],
        ),
        (  # each algorithm has settings of its own, and defaults that differ
            [
                {"batch_T": "32", "algo": "ppo", "ppo.epochs": "4", "ppo.discount": "0.9"},
                {"batch_T": "8", "algo": "a2c", "a2c.discount": "0.9"},
            ],
            ["algo=ppo", "algo=a2c"],
            ["batch_T"],
        ),
        (
            [{"lr": lr, "T": T} for lr in ("1", "2") for T in ("8", "16")],
            ["lr=1, T=8", "lr=1, T=16", "lr=2, T=8", "lr=2, T=16"],
            [],
        ),
        (
            [{"ppo.size": "1", "a.size": "x"}, {"ppo.size": "2", "a.size": "y"}],
            ["ppo.size=1", "ppo.size=2"],
            ["a.size"],
        ),
    ],
    ids=["one", "one setting", "two algorithms", "a grid", "the same last part"],
)
def test_names_of_lines_are_short_and_distinct(
    settings: list[dict[str, str]], labels: list[str], besides: list[str]
) -> None:
    assert names_of_lines(settings) == (labels, besides)


def test_legend_does_not_cover_the_curves(tmp_path: Path) -> None:
    """It belongs to the figure, below the axes, and a single line needs none."""
    x = np.arange(3.0)
    one = {"first": Summary(x, x, x, x, 1)}
    plot_curves(one, tmp_path / "one.svg", x_label="x", y_label="y")
    plot_curves(one, tmp_path / "two.svg", x_label="x", y_label="y", marks={"mark": 1.0})
    assert "legend" not in (tmp_path / "one.svg").read_text()
    (axes,) = ElementTree.parse(tmp_path / "two.svg").iterfind(".//*[@id='axes_1']")
    assert "legend" in (tmp_path / "two.svg").read_text()
    assert not axes.findall(".//*[@id='legend_1']")


@pytest.mark.parametrize(
    ("column", "label"),
    [
        ("ReturnAverage", "return per episode"),
        ("LengthMax", "maximum length of an episode (steps)"),
        ("CumTime", "time (s)"),
        ("lossAverage", "lossAverage"),
        ("", ""),
    ],
)
def test_axes_have_labels_with_units(column: str, label: str) -> None:
    assert axis_label(column) == label


def test_any_columns_can_be_plotted_and_smoothed(
    four_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.svg"
    options = ["--x", "CumTime", "--y", "ReturnMin", "--smooth", "2", "--out", str(picture)]
    assert main(["plot", four_runs[0], *options]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "mean: 1 run, ReturnMin 4 at CumTime 3"
    words = texts(picture)
    assert "time (s)" in words
    assert "minimum return per episode" in words
    assert "band" not in words
    assert n_bands(picture) == 0


def test_plot_needs_no_display_and_its_format_follows_the_suffix(
    four_runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert main(["plot", *four_runs, "--band", "std"]) == 0
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


def test_runs_without_settings_are_named_after_their_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run_folder(tmp_path / name, None, [(10, 1.0, 1.0)]) for name in ("left", "right")]
    assert main(["plot", *runs, "--out", str(tmp_path / "picture.svg")]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("folder=left: 1 run")
    assert second.startswith("folder=right: 1 run")


def test_mean_and_band_cover_the_range_of_all_runs() -> None:
    curves = [
        Curve(np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0])),
        Curve(np.array([5.0, 15.0, 25.0]), np.array([1.0, 3.0, 5.0])),
    ]
    summary = summary_of(curves)
    assert summary.x.tolist() == [5.0, 10.0, 15.0, 20.0]
    assert summary.mean.tolist() == [3.0, 6.0, 9.0, 12.0]
    assert summary.low.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert summary.high.tolist() == [5.0, 10.0, 15.0, 20.0]
    assert summary.n_runs == 2
    deviation = summary_of(curves, "std")
    assert deviation.low.tolist() == [1.0, 2.0, 3.0, 4.0], "of two runs the deviation is half their distance"
    with pytest.raises(ValueError, match="ends before another begins"):
        summary_of([curves[0], Curve(np.array([30.0]), np.array([1.0]))])


def test_smoothing_is_the_mean_of_the_last_rows() -> None:
    curve = Curve(np.arange(4.0), np.array([1.0, 3.0, 8.0, 1.0]))
    assert curve.smoothed(1).y.tolist() == [1.0, 3.0, 8.0, 1.0]
    assert curve.smoothed(3).y.tolist() == [1.0, 2.0, 4.0, 4.0]


def test_columns_are_read_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    path.write_text("a,b\n1,\n2,3.5\n")
    columns = read_columns(path, ["a", "b"])
    assert columns["a"].tolist() == [1.0, 2.0]
    assert np.isnan(columns["b"][0])
    path.write_text("a\nx\n")
    with pytest.raises(ValueError, match="damaged"):
        read_columns(path, ["a"])


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        ([], 2, "give the folders of one or more runs"),
        (["nowhere"], 2, "nowhere does not exist; give folders of runs"),
        (["run", "--y", "RetrunAverage"], 2, "'RetrunAverage'; did you mean 'ReturnAverage'?"),
        (["run", "--x", "zzz"], 2, "'zzz'; choose one of CumSteps, CumTime, ReturnAverage, ReturnMin"),
        (["run", "--label", "a", "b"], 2, "--label needs a different name for each line; there are 1 lines: mean"),
        (["run", "--smooth", "0"], 2, "--smooth must be at least 1, got 0"),
        (["run", "--band", "x"], 2, "--band"),
        (["run", "--smoth", "3"], 2, "did you mean --smooth?"),
        (["empty"], 1, "has no row with both CumSteps and ReturnAverage"),
        (["damaged"], 1, "is damaged"),
        (["run", "--out", "picture.zzz"], 1, "zzz"),
        (["run", "--out", "nowhere/picture.png"], 1, "nowhere/picture.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_error_is_one_line_with_the_remedy(
    args: list[str],
    status: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "run", config(0), [(10, 1.0, 1.0)])
    run_folder(tmp_path / "empty", config(0), [(10, 1.0, "nan")])
    run_folder(tmp_path / "damaged", config(0), [(10, 1.0, "1.0.0")])
    assert main(["plot", *args]) == status
    complaint = capsys.readouterr().err
    assert complaint.startswith("headrace: ")
    assert complaint.count("\n") == 1
    assert says in complaint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "empty", "run"]


def test_missing_extra_is_named(
    four_runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plot", *four_runs]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("headrace: learning curves need matplotlib (")
    assert line.endswith('; pip install "headrace[plot]"')
