"""What a user finds without the documentation: help, completion, printed batches, loops over batches."""

import pydoc
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.samplers import BaseSampler, CpuSampler, SamplerOptions, SerialSampler
from tests.faulty import SEED
from tests.walk import Walk


def test_help_explains_every_option_of_a_sampler() -> None:
    text = pydoc.render_doc(CpuSampler, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    for field in fields(SamplerOptions):
        assert f"{field.name}: " in text, field.name


def test_an_unknown_option_names_the_sampler() -> None:
    with pytest.raises(TypeError, match="CpuSampler has no setting 'n_worker'; it is called n_workers"):
        CpuSampler("CartPole-v1", batch_T=1, batch_B=1, n_worker=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"SerialSampler\(\): missing a required argument: 'batch_T'"):
        SerialSampler("CartPole-v1", batch_B=1)  # type: ignore[call-arg]


def test_subpackages_are_attributes_of_the_package() -> None:
    code = "import headrace; print(headrace.samplers.CpuSampler.__name__, 'agents' in dir(headrace))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert printed.stdout == "CpuSampler True\n"


@pytest.mark.parametrize("name", ["Nothing", "_private"])
def test_unknown_name_of_a_package_is_an_attribute_error(name: str) -> None:
    import headrace

    with pytest.raises(AttributeError, match=f"module 'headrace' has no attribute '{name}'"):
        getattr(headrace, name)


def test_name_of_a_subpackage_error_says_where_it_is() -> None:
    import headrace

    with pytest.raises(AttributeError, match=r"'CPUSampler'; did you mean headrace\.samplers\.CpuSampler\?$"):
        getattr(headrace, "CPUSampler")  # noqa: B009


def batch(sampler: BaseSampler) -> Samples:
    with sampler.initialize(RecurrentCategoricalPgAgent(), seed=SEED, bootstrap_value=True):
        return sampler.obtain_samples(0)[0].copy()


def test_a_printed_batch_shows_shapes_dtypes_and_counts() -> None:
    samples = batch(SerialSampler("CartPole-v1", batch_T=40, batch_B=3))
    samples.env.valid[7, 1] = False
    text = str(samples)
    assert len(text.splitlines()) <= 20
    n_ended = int(samples.env.done.sum())
    assert n_ended > 0
    assert text.startswith(
        f"Samples [T=40, B=3]: 119 valid steps, {n_ended} episodes ended ({n_ended} terminated, 0 tr"
    )
    assert "\n  env.observation: float32 [40, 3, 4]\n" in text
    assert "\n  agent.agent_info: dist.logits float32 [40, 3, 2], value float32 [40, 3]\n" in text
    assert "\n  agent.first_state: [0] float32 [1, 3, 64], [1] float32 [1, 3, 64]\n" in text


def test_printed_batch_is_short_for_any_spaces() -> None:
    samples = batch(SerialSampler("CartPole-v1", batch_T=2, batch_B=1))
    samples.env.observation = {f"a long name of sensor {k}": torch.zeros(2, 1, 7) for k in range(30)}
    lines = str(samples).splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 110


class Numbered(CategoricalPgAgent):
    """Keeps the numbers of the batches that it acted in."""

    def sample_mode(self, itr: int) -> None:
        super().sample_mode(itr)
        self.numbers = [*getattr(self, "numbers", []), itr]


def test_batches_yields_what_obtain_samples_returns() -> None:
    agents = Numbered(), Numbered()
    first, second = (SerialSampler("CartPole-v1", batch_T=8, batch_B=2) for _ in agents)
    with first.initialize(agents[0], seed=SEED), second.initialize(agents[1], seed=SEED):
        for itr, (samples, _) in enumerate(first.batches(3)):
            assert torch.equal(samples.env.observation, second.obtain_samples(itr)[0].env.observation)
    assert agents[0].numbers == agents[1].numbers
    assert agents[0].numbers[-3:] == [0, 1, 2]


def test_sampler_repr_shows_its_settings() -> None:
    sampler = CpuSampler("CartPole-v1", batch_T=8, batch_B=2, n_workers=2)
    assert repr(sampler) == "<CpuSampler of CartPole-v1, T=8, B=2, n_workers=2: new>"


def test_a_batch_becomes_a_tensordict() -> None:
    tensordict = pytest.importorskip("tensordict", reason="tensordict is not installed")
    sampler = SerialSampler(Walk, batch_T=4, batch_B=2)
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        samples, _ = sampler.obtain_samples(0)
        made = samples.to_tensordict()
        assert isinstance(made, tensordict.TensorDict)
        assert made.batch_size == (4, 2)
        assert made["env", "reward"].data_ptr() == samples.env.reward.data_ptr()
        assert torch.equal(made["agent", "agent_info", "dist", "logits"], samples.agent.agent_info.dist.logits)


def test_tensordict_has_the_fields_with_dims_t_and_b(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package: checks what it would get. Fields that are None, or have no time dimension, are left out."""
    monkeypatch.setitem(sys.modules, "tensordict", SimpleNamespace(TensorDict=lambda parts, batch_size: parts))
    given = batch(SerialSampler("CartPole-v1", batch_T=2, batch_B=1)).to_tensordict()
    assert sorted(given["env"]) == [
        "is_first",
        "observation",
        "prev_reward",
        "reward",
        "terminated",
        "truncated",
        "valid",
    ]
    assert sorted(given["agent"]) == ["action", "agent_info", "prev_action", "version"]
    assert sorted(given["agent"]["agent_info"]["dist"]) == ["logits"]


def test_missing_tensordict_package_is_a_one_sentence_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensordict", None)
    samples = batch(SerialSampler("CartPole-v1", batch_T=2, batch_B=1))
    with pytest.raises(ImportError, match="pip install tensordict"):
        samples.to_tensordict()
