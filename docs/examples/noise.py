"""Find the noise whose sample is what you want, by exact gradients through all steps (DOODL, Wallace et al. 2023)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import save_image

import hbench
from hbench.store.classifier import load_classifier, shipped_classifier

run = hbench.load_run("faces16", device="cpu")
steps = run.sampler.steps()  # ten callables, from x_T to x_0


def optimised(x_T: Tensor, objective: Callable[[Tensor], Tensor], iterations: int) -> Tensor:
    """Return noise near x_T [B, 3, 16, 16] whose samples have a lower objective."""
    size = x_T.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x_T = x_T.clone().requires_grad_()
    optimizer = torch.optim.Adam([x_T], lr=0.03)
    for _ in range(iterations):
        optimizer.zero_grad()
        with run.sampler.autocast():
            hbench.backpropagate(steps, x_T, objective)
        optimizer.step()
        with torch.no_grad():  # the model knows no noise of another size
            x_T *= size / x_T.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return x_T.detach()


def match(pictures: Tensor, iterations: int) -> list[float]:
    """Return the squared error of samples to the pictures: from the noise of DDIM inversion, and from better noise."""
    inverted = run.invert(pictures, steps=len(steps))
    found = optimised(inverted, lambda x_0: F.mse_loss(x_0, pictures), iterations)
    return [F.mse_loss(run.generate(x_T), pictures).item() for x_T in (inverted, found)]


def main(iterations: int = 12) -> None:
    """Print how near samples come to the shipped pictures, let others wear hats, and draw noise.png."""
    faces = [each.pixels for each in hbench.read_images(run.folder / "pictures", run.experiment.data)]
    print("squared error: {:.4f} by inversion -> {:.4f}".format(*match(torch.stack(faces) / 127.5 - 1, iterations)))
    classifier = load_classifier(shipped_classifier(run.experiment.data))
    hat = [factor.name for factor in classifier.factors].index("hat")

    def log_likelihood(x_0: Tensor) -> Tensor:
        return classifier.network(x_0)[hat].log_softmax(1)[:, 1].mean()

    x_T = run.noise(6, seed=1)
    found = optimised(x_T, lambda x_0: -log_likelihood(x_0), iterations)
    before, after = (run.generate(each) for each in (x_T, found))
    print(f"likelihood of a hat: {log_likelihood(before).exp():.5f} -> {log_likelihood(after).exp():.5f}")
    large = F.interpolate(torch.cat([before, after]), scale_factor=6)
    save_image(large, "noise.png", nrow=6, normalize=True, value_range=(-1, 1))


if __name__ == "__main__":
    main()
