"""Unregistered ids: the error names the module of the installed package that registers the id."""

import sys
from pathlib import Path

import pytest

from headrace.cli.main import main
from headrace.envs import VectorEnvs
from headrace.envs.registering import where_registered
from headrace.samplers import SerialSampler

SOURCES = {
    "rocket_gym": "gymnasium.register(id=f'Launch{kind}-v3')",  # called as ids begin: RocketLand
    "lunar_suite": "from gymnasium import register\nregister(id=f'CraterWalk{kind}-v3')\nregister('lunar/Base-v0')",
    "ancient": "import gym\ngym.register(id='AncientRuin-v0')",
    "unrelated": "names = ['CraterWalkDense-v3']",
}
REQUIRES = {"rocket_gym": "gymnasium>=1", "lunar_suite": "numpy", "ancient": None, "unrelated": "numpy"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions as pip leaves them. Importing them would raise."""
    for name, source in SOURCES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise AssertionError\n{source}\n")
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        requires = f"Requires-Dist: {REQUIRES[name]}\n" if REQUIRES[name] else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n{info.name}/METADATA,,\n")
    (tmp_path / "lunar_suite-1.0.dist-info" / "entry_points.txt").write_text(
        "[gymnasium.envs]\nmoon = nowhere:register\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("RocketLand-v3", "the package rocket_gym registers it when it is imported: rocket_gym:RocketLand-v3"),
        (
            "CraterWalkDense-v3",
            "the package lunar_suite registers it when it is imported: lunar_suite:CraterWalkDense-v3",
        ),
        ("lunar/Base-v0", "the package lunar_suite registers it when it is imported: lunar_suite:lunar/Base-v0"),
        ("AncientRuin-v0", "the package ancient registers it when it is imported: gym:ancient:AncientRuin-v0"),
        ("Zzzzz-v0", "if a package registers it, put its module before the id to import it first: module:Zzzzz-v0"),
        ("gym:Zzzzz-v0", "put its module before the id to import it first: gym:module:Zzzzz-v0"),
    ],
)
def test_unregistered_id_error_names_the_module_that_registers_it(
    env_id: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="is not a registered environment") as caught:
        SerialSampler(env_id, batch_T=2, batch_B=2)
    assert says in str(caught.value)
    assert main(["train", "--env", env_id]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"headrace: unknown environment {env_id!r}; ")
    assert says in err
    assert not SOURCES.keys() & sys.modules.keys()


@pytest.mark.usefixtures("installed")
def test_module_of_a_vector_environment_is_named() -> None:
    with pytest.raises(ValueError, match="rocket_gym:RocketLand-v3"):
        VectorEnvs("RocketLand-v3")


def test_possibly_misspelled_id_is_not_searched_in_packages() -> None:
    for env_id in ("CartPol-v1", "cartpole-v1"):
        assert where_registered(env_id, ["CartPole-v1", "Pendulum-v1"]) == ""
