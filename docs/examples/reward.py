"""Train LoRA weights of a diffusers UNet for a differentiable reward, through all DDIM steps, as AlignProp does."""

import torch
from diffusers import DDIMScheduler, UNet2DModel
from peft import LoraConfig, inject_adapter_in_model
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.utils import save_image

import hbench

DIGITS = torch.tensor(load_digits().images).float().unsqueeze(1) / 8 - 1  # [1797, 1, 8, 8] in [-1, 1]
scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False)


def pretrained(iterations: int) -> UNet2DModel:
    """Return a small model of digits, trained here; ``UNet2DModel.from_pretrained`` gives a larger one."""
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    unet = UNet2DModel(8, 1, 1, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, **blocks)
    optimizer = torch.optim.Adam(unet.parameters(), lr=4e-3)
    for _ in range(iterations):
        x_0 = DIGITS[torch.randint(len(DIGITS), (32,))]
        noise, t = torch.randn_like(x_0), torch.randint(1000, (32,))
        v = unet(scheduler.add_noise(x_0, noise, t), t).sample
        optimizer.zero_grad()
        nn.functional.mse_loss(v, scheduler.get_velocity(x_0, noise, t)).backward()
        optimizer.step()
    return unet.eval().requires_grad_(False)


def main(pretraining: int = 400, iterations: int = 10) -> UNet2DModel:
    """Train a model of digits, then its adapters to take more ink; print rewards, draw reward.png, return the model."""
    torch.manual_seed(0)
    unet = pretrained(pretraining)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["conv1", "conv2"]), unet)

    def reward(x_0: Tensor) -> Tensor:  # the share of ink
        return (4 * x_0).sigmoid().mean()

    scheduler.set_timesteps(10)
    steps = [lambda x_t, t=t: scheduler.step(unet(x_t, t).sample, t, x_t).prev_sample for t in scheduler.timesteps]
    optimizer = torch.optim.Adam([each for each in unet.parameters() if each.requires_grad], lr=3e-3)
    x_T, samples = torch.randn(16, 1, 8, 8), []
    for i in range(iterations + 1):
        optimizer.zero_grad()
        noise = torch.randn_like(x_T) if 0 < i < iterations else x_T  # the same at the first and the last time
        loss, x_0 = hbench.backpropagate(steps, noise, lambda x_0: -reward(x_0))
        optimizer.step()
        if i in (0, iterations):
            print(f"reward after {i} steps: {-loss:.3f}")
            samples.append(nn.functional.interpolate(x_0, scale_factor=6))
    save_image(torch.cat(samples), "reward.png", nrow=16, normalize=True, value_range=(-1, 1))
    return unet


if __name__ == "__main__":
    main()
