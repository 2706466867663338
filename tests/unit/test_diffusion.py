import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hbench.core.diffusion import (
    alpha_bar_schedule,
    direction_to_x_t,
    generation_steps,
    inversion_steps,
    pair_steps,
    predict_x_0,
    run,
    timesteps,
    transitions,
)
from hbench.core.seeds import draw_x_T
from hbench.models.adm import ADMConfig, UNetModel

A = alpha_bar_schedule()


class ConstantEps(torch.nn.Module):
    """A network whose eps does not depend on x: the sampler must then be exact for any M."""

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


@given(M=st.integers(1, 1000), spacing=st.sampled_from(["trailing", "linspace", "leading"]))
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
@given(M=st.integers(1, 50), spacing=st.sampled_from(["trailing", "linspace", "leading"]))
def test_constant_eps_recovers_x_0_exactly_for_any_M(M, spacing):
    generator = torch.Generator().manual_seed(M)
    x_0, eps = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64, generator=generator)
    descending = timesteps(M, spacing=spacing)
    a = float(A[descending[0]])
    x_T = math.sqrt(a) * x_0 + math.sqrt(1 - a) * eps
    torch.testing.assert_close(run(generation_steps(ConstantEps(eps), A, descending), x_T), x_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(run(inversion_steps(ConstantEps(eps), A, descending), x_0), x_T, rtol=0, atol=1e-10)


@given(a=st.floats(1e-4, 0.9999), eps=st.floats(-3, 3), x_0=st.floats(-1, 1))
def test_P_and_D_invert_the_forward_process(a, eps, x_0):
    x_t = math.sqrt(a) * x_0 + direction_to_x_t(torch.tensor(eps, dtype=torch.float64), a)
    assert float(predict_x_0(x_t, torch.tensor(eps, dtype=torch.float64), a)) == pytest.approx(x_0, abs=1e-9)


def test_only_P_sees_the_shift_and_only_from_t_shift_on():
    eps = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    shift = torch.full_like(eps, 0.1)
    x_T = torch.zeros_like(eps)
    steps = generation_steps(ConstantEps(eps), A, [800, 300], lambda h, emb, t: shift, t_shift=500)
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
    generation_steps(Counting(x), A, [999], lambda h, emb, t: h)[0](x)
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


def test_pairs_are_what_the_two_processes_make_apart():
    torch.manual_seed(0)
    model = UNetModel(SMALL).double().eval()
    torch.nn.init.normal_(model.out[-1].weight, std=0.02)
    rows = []

    class Counting(torch.nn.Module):
        def encode(self, x, t):
            rows.append(len(x))
            return model.encode(x, t)

        decode = staticmethod(model.decode)

        def forward(self, x, t):
            return self.decode(*self.encode(x, t))

    x_T = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    s = torch.tensor([0.5, -1, 2], dtype=torch.float64)[:, None, None, None]
    for t_shift in (0, 500, 1000):
        process = (A, timesteps(4))
        delta_h = lambda h, emb, t: s * h.roll(1, 1) * (t / 1000)  # noqa: E731
        with torch.no_grad():
            rows.clear()
            both = run(pair_steps(Counting(), *process, delta_h, t_shift), x_T)
            assert rows == [3, 6, 6, 6]  # x_T is common to both
            torch.testing.assert_close(both[:3], run(generation_steps(model, *process), x_T))
            torch.testing.assert_close(both[3:], run(generation_steps(model, *process, delta_h, t_shift), x_T))


def test_zero_shift_is_bit_identical_to_the_regular_process():
    torch.manual_seed(0)
    model = UNetModel(SMALL).eval()
    torch.nn.init.normal_(model.out[-1].weight, std=0.02)
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        regular = run(generation_steps(model, A, timesteps(4)), x)
        shifted = run(generation_steps(model, A, timesteps(4), lambda h, emb, t: torch.zeros_like(h)), x)
    assert torch.equal(regular, shifted)


def test_learned_sigma_is_ignored():
    eps = torch.randn(1, 2, 4, 4)  # eps and variance of a grey model
    x = torch.randn(1, 1, 4, 4)
    both = run(generation_steps(ConstantEps(eps), A, timesteps(3)), x)
    assert torch.equal(both, run(generation_steps(ConstantEps(eps[:, :1]), A, timesteps(3)), x))


def test_noise_does_not_depend_on_the_batch():
    whole = draw_x_T(7, 0, 5, (1, 4, 4))
    parts = torch.cat([draw_x_T(7, 0, 2, (1, 4, 4)), draw_x_T(7, 2, 3, (1, 4, 4))])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, draw_x_T(8, 0, 5, (1, 4, 4)))


def test_transitions_end_at_the_image():
    assert transitions([999, 499]) == [(999, 499), (499, -1)]
