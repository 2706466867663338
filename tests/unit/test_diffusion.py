import math
import re
from pathlib import Path

import pytest
import torch
from samplers import sampler_of

import hbench
from hbench.core.chain import run_chain
from hbench.core.diffusion import (
    alpha_bar_schedule,
    direction_to_x_t,
    inverse_transitions,
    predict_x_0,
    timesteps,
    training_target,
    transitions,
)
from hbench.core.seeds import draw_x_T
from hbench.errors import HBenchError
from hbench.models.adm import ADMConfig, UNetModel

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
given, settings = hypothesis.given, hypothesis.settings

A = alpha_bar_schedule()


class ConstantEps(torch.nn.Module):
    """A network whose eps does not depend on x: the sampler must then be exact for any M."""

    prediction = "eps"

    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def encode(self, x, t, y=None):
        return self.eps, [], torch.zeros(len(x), 1)

    def decode(self, h, skips, emb):
        return h

    def forward(self, x, t):
        return self.eps


def test_schedule_ends():
    assert A.dtype == torch.float64
    assert float(A[0]) == pytest.approx(1 - 1e-4, abs=1e-15)
    assert float(A[999]) == pytest.approx(4.0358e-5, rel=1e-4)  # DDPM's linear schedule


def test_timesteps_of_each_spacing():
    assert timesteps(10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert timesteps(10, spacing="leading") == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert timesteps(4, spacing="linspace") == [999, 666, 333, 0]
    assert timesteps(10, spacing="skipping") == [999, 640, 564, 489, 414, 338, 263, 188, 112, 37]


def test_a_spacing_that_skips_noise_is_trailing_where_there_is_none_to_skip_or_no_room():
    assert timesteps(10, A[:500], "skipping") == timesteps(10, A[:500])  # x_499 is far from pure noise
    assert timesteps(400, spacing="skipping") == timesteps(400)
    assert timesteps(1, spacing="skipping") == [999]


@given(M=st.integers(1, 1000), spacing=st.sampled_from(["trailing", "linspace", "leading", "skipping"]))
def test_timesteps_descend_within_range(M, spacing):
    found = timesteps(M, spacing=spacing)
    assert len(found) == M
    assert found == sorted(set(found), reverse=True)
    assert found[-1] >= 0
    assert found[0] <= 999


@pytest.mark.parametrize("M", [0, 1001])
def test_timesteps_refuse_impossible_M(M):
    with pytest.raises(ValueError, match=r"M must be in 1\.\.1000"):
        timesteps(M)


@settings(deadline=None)
@given(M=st.integers(1, 50), spacing=st.sampled_from(["trailing", "linspace", "leading", "skipping"]))
def test_constant_eps_recovers_x_0_exactly_for_any_M(M, spacing):
    generator = torch.Generator().manual_seed(M)
    x_0, eps = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64, generator=generator)
    descending = timesteps(M, spacing=spacing)
    a = float(A[descending[0]])
    x_T = math.sqrt(a) * x_0 + math.sqrt(1 - a) * eps
    sampler = sampler_of(ConstantEps(eps), descending)
    torch.testing.assert_close(sampler.generate(x_T), x_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(sampler.invert(x_0), x_T, rtol=0, atol=1e-10)


@given(a=st.floats(1e-4, 0.9999), eps=st.floats(-3, 3), x_0=st.floats(-1, 1))
def test_P_and_D_invert_the_forward_process(a, eps, x_0):
    x_t = math.sqrt(a) * x_0 + direction_to_x_t(torch.tensor(eps, dtype=torch.float64), a)
    assert float(predict_x_0(x_t, torch.tensor(eps, dtype=torch.float64), a)) == pytest.approx(x_0, abs=1e-9)


def test_only_P_sees_the_shift_and_only_from_t_shift_on():
    eps = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    shift = torch.full_like(eps, 0.1)
    x_T = torch.zeros_like(eps)
    steps = sampler_of(ConstantEps(eps), [800, 300], t_shift=500).steps(lambda h, emb, t: shift)
    a, a_prev = float(A[800]), float(A[300])
    expected = math.sqrt(a_prev) * predict_x_0(x_T, eps + shift, a) + direction_to_x_t(eps, a_prev)
    node = steps[0](x_T)
    torch.testing.assert_close(node, expected)
    torch.testing.assert_close(steps[1](node), predict_x_0(node, eps, a_prev))  # regular below t_shift


def test_shifted_step_runs_encoder_once_and_decoder_twice_in_one_pass():
    calls = []

    class Counting(ConstantEps):
        def encode(self, x, t, y=None):
            calls.append(("encode", len(x)))
            return super().encode(x, t)

        def decode(self, h, skips, emb):
            calls.append(("decode", len(h)))
            return super().decode(h, skips, emb)

    x = torch.zeros(1, 1, 4, 4)
    sampler_of(Counting(x), [999]).steps(lambda h, emb, t: h)[0](x)
    assert calls == [("encode", 1), ("decode", 2)]


SMALL = ADMConfig(
    image_size=16,
    in_channels=1,
    out_channels=1,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    use_scale_shift_norm=True,
)


@pytest.mark.slow
def test_pairs_are_what_the_two_processes_make_apart():
    torch.manual_seed(0)
    model = UNetModel(SMALL).double().eval()
    torch.nn.init.normal_(model.out[-1].weight, std=0.02)
    rows = []

    class Counting(torch.nn.Module):
        prediction = "eps"

        def encode(self, x, t):
            rows.append(len(x))
            return model.encode(x, t)

        decode = staticmethod(model.decode)

        def forward(self, x, t):
            return self.decode(*self.encode(x, t))

    x_T = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    s = torch.tensor([0.5, -1, 2], dtype=torch.float64)[:, None, None, None]
    for t_shift in (0, 500, 1000):
        delta_h = lambda h, emb, t: s * h.roll(1, 1) * (t / 1000)  # noqa: E731
        with torch.no_grad():
            rows.clear()
            both = run_chain(sampler_of(Counting(), 4, t_shift).pair_steps(delta_h), x_T)
            assert rows == [3, 6, 6, 6]  # x_T is common to both
            torch.testing.assert_close(both[:3], run_chain(sampler_of(model, 4).steps(), x_T))
            torch.testing.assert_close(both[3:], run_chain(sampler_of(model, 4, t_shift).steps(delta_h), x_T))


def test_zero_shift_is_bit_identical_to_the_regular_process():
    torch.manual_seed(0)
    model = UNetModel(SMALL).eval()
    torch.nn.init.normal_(model.out[-1].weight, std=0.02)
    x = torch.randn(2, 1, 16, 16)
    sampler = sampler_of(model, 4)
    regular, shifted = sampler.generate(x), sampler.generate(x, lambda h, emb, t: torch.zeros_like(h))
    assert torch.equal(regular, shifted)


def test_learned_sigma_is_ignored():
    eps = torch.randn(1, 2, 4, 4)  # eps and variance of a grey model
    x = torch.randn(1, 1, 4, 4)
    both = sampler_of(ConstantEps(eps), 3).generate(x)
    assert torch.equal(both, sampler_of(ConstantEps(eps[:, :1]), 3).generate(x))


def test_noise_does_not_depend_on_the_batch():
    whole = draw_x_T(7, 0, 5, (1, 4, 4))
    parts = torch.cat([draw_x_T(7, 0, 2, (1, 4, 4)), draw_x_T(7, 2, 3, (1, 4, 4))])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, draw_x_T(8, 0, 5, (1, 4, 4)))


def test_transitions_end_at_the_image_and_their_inverses_start_there():
    found = [[(each.t, each.t_prev) for each in way(A, [999, 499])] for way in (transitions, inverse_transitions)]
    assert found == [[(999, 499), (499, -1)], [(-1, 499), (499, 999)]]


class Gaussian(torch.nn.Module):
    """The exact predictions for images of a normal distribution with mean 0.3 and this variance."""

    def __init__(self, prediction, variance=0.25):
        super().__init__()
        self.prediction, self.variance = prediction, variance

    def encode(self, x, t):
        a = A[t][:, None, None, None]
        x_0 = 0.3 + a.sqrt() * self.variance * (x - 0.3 * a.sqrt()) / (a * self.variance + 1 - a)
        eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        return x_0, [x, a], eps

    def decode(self, h, skips, emb):
        x, a = skips
        eps = (x - a.sqrt() * h) / (1 - a).sqrt()  # of a shifted x_0
        return {"eps": eps, "x_0": h, "v": a.sqrt() * eps - (1 - a).sqrt() * h}[self.prediction]


@pytest.mark.parametrize("prediction", ["v", "x_0"])
@pytest.mark.parametrize("descending", [timesteps(7), timesteps(7, spacing="leading"), [999, 0]])
def test_what_a_model_predicts_does_not_change_its_chains(prediction, descending):
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, found = (sampler_of(Gaussian(name), descending, t_shift=400) for name in ("eps", prediction))
    shift = lambda h, emb, t: 0.1 * h + 0.05 * (t / 1000)  # noqa: E731
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(found.generate(x), expected.generate(x), **close)
    torch.testing.assert_close(found.generate(x, shift), expected.generate(x, shift), **close)
    torch.testing.assert_close(found.invert(x), expected.invert(x), **close)
    for one, other in zip(found.generate_pairs(x, shift), expected.generate_pairs(x, shift), strict=True):
        torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_a_network_that_meets_its_target_finds_the_image_in_one_step(prediction):
    torch.manual_seed(0)
    x_0, eps = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    a = A[[600]].expand(3)[:, None, None, None]
    model = ConstantEps(eps)
    model.prediction = prediction
    model.eps = training_target(model, x_0, eps, a)
    found = sampler_of(model, [600]).generate(a.sqrt() * x_0 + (1 - a).sqrt() * eps)
    torch.testing.assert_close(found, x_0, rtol=0, atol=1e-12)
    assert prediction != "eps" or model.eps is eps


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_a_fine_chain_carries_noise_to_the_distribution_of_the_images(prediction):
    # the probability-flow ODE of a normal distribution is linear: x_T = sqrt(v_T) z -> x_0 = 0.3 + 0.5 z
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None, None, None]
    a = A[999]
    x_T = 0.3 * a.sqrt() + (0.25 * a + 1 - a).sqrt() * z
    torch.testing.assert_close(sampler_of(Gaussian(prediction), 1000).generate(x_T), 0.3 + 0.5 * z, rtol=0, atol=5e-3)


def test_nothing_that_stays_the_same_is_made_in_every_step():
    made = []

    class Watching(Gaussian):
        def encode(self, x, t):
            made.append(t)
            return super().encode(x, t)

    sampler = sampler_of(Watching("eps"), 3)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    for batch in (x, x, x[:1], x):
        sampler.generate(batch)
    assert [id(t) for t in made[:3]] == [id(t) for t in made[3:6]] == [id(t) for t in made[9:]]
    assert [len(t) for t in made] == [2] * 6 + [1] * 3 + [2] * 3


def test_with_other_steps_a_shift_keeps_its_meaning():
    sampler = sampler_of(Gaussian("eps"), 3, t_shift=400)  # shifted at 999 and 665
    seen = []
    longer = sampler.with_steps(6)  # at 999, 832, 665 and 499
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    unit = lambda h, emb, t: seen.append(t) or torch.ones_like(h)  # noqa: E731
    expected = sampler_of(Gaussian("eps"), 6, t_shift=400).generate(x, lambda h, emb, t: torch.full_like(h, 2 / 4))
    assert torch.equal(longer.generate(x, unit), expected)
    assert seen == [999, 832, 665, 499] == list(longer.shift_interval)
    assert torch.equal(longer.with_steps(3).generate(x, unit), sampler.generate(x, unit))
    assert sampler.with_steps(3) is sampler.with_steps(None) is sampler
    with pytest.raises(ValueError, match=r"M must be in 1\.\.1000, got 1001"):
        sampler.with_steps(1001)
    with pytest.raises(HBenchError, match="take more steps"):
        sampler_of(Gaussian("eps"), [300, 100], t_shift=400, unit_steps=2).steps(unit)


def test_schedules_and_devices_are_found_out_in_one_place():
    package = Path(hbench.__file__).parent
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        compared = Path("store/foreign.py")  # with the schedule that a file of another maker carries
        if file.relative_to(package) not in (Path("core/diffusion.py"), Path("core/sampler.py"), compared):
            assert not re.search(r"\b(timesteps|alpha_bar_schedule)\(", text), file
        assert not re.search(r"parameters\(\)\)\.device", text), file
