"""Fit a neural ODE to a trajectory: a chain of Runge-Kutta steps, without diffusion."""

from functools import partial
from itertools import accumulate

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import hbench
from hbench.runtime.memory import saved_tensors_peak


def pendulum() -> Tensor:
    """Return angle and angular velocity of a damped pendulum at 51 times, float32 [51, 2]."""
    times = np.linspace(0, 10, 51)
    found = solve_ivp(lambda t, y: (y[1], -2 * np.sin(y[0]) - 0.2 * y[1]), (0, 10), (2, 0), t_eval=times)
    return torch.tensor(found.y.T, dtype=torch.float32)


def runge_kutta(f: nn.Module, dt: float, y: Tensor) -> Tensor:
    """Return the states y [B, 2] a time dt later, by the classical method of order 4."""
    a = f(y)
    b = f(y + dt / 2 * a)
    c = f(y + dt / 2 * b)
    return y + dt / 6 * (a + 2 * b + 2 * c + f(y + dt * c))


def fit(f: nn.Module, path: Tensor, iterations: int) -> float:
    """Train f so that each point of the path [N, 2] leads to the one a second later; return the last loss."""
    steps = [partial(runge_kutta, f, 0.05)] * 20
    optimizer = torch.optim.Adam(f.parameters(), lr=0.01)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss, _ = hbench.backpropagate(steps, path[:-5], lambda y: nn.functional.mse_loss(y, path[5:]))
        optimizer.step()
    return loss.item()


def main(iterations: int = 400) -> None:
    """Fit a model, print its error and the memory of two strategies, and draw ode.png."""
    torch.manual_seed(0)
    path, f = pendulum(), nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    print(f"squared error a second ahead: {fit(f, path, 1):.4f} -> {fit(f, path, iterations):.5f}")
    steps = [partial(runge_kutta, f, 0.025)] * 400
    for strategy in ("vanilla", "node"):
        held = saved_tensors_peak(partial(hbench.backpropagate, steps, path, Tensor.sum, strategy), f.parameters())
        print(f"{strategy}: graphs of {held:,} bytes at once, in 400 steps")
    with torch.no_grad():
        fitted = torch.stack([*accumulate(steps, lambda y, step: step(y), initial=path[0])])
    axes = (figure := Figure()).add_subplot(xlabel="angle", ylabel="angular velocity")
    axes.legend(axes.plot(*path.T, "o") + axes.plot(*fitted.T), ["pendulum", "neural ODE"], loc="lower right")
    figure.savefig("ode.png")


if __name__ == "__main__":
    main()
