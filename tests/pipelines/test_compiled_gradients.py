"""What torch's compiler makes of a transformer has the gradients of the code as it is written.

It once gave an autoencoder gradients of zero. SANA's transformer is the one with convolutions; a family takes a minute.
"""

import pytest
import torch

from families import FAMILIES

from .driven import PROMPTS, noise, opened
from .tiny import train_branch


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sana"])
def test_gradients(name):
    any_step = train_branch(opened(FAMILIES[name]))
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.0, 0.5, 0.1])

    def gradients() -> dict[str, torch.Tensor]:
        any_step.network.zero_grad()
        any_step.field(x, t, r, cond).square().mean().backward()
        named = any_step.network.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    plain = gradients()
    torch._dynamo.reset()
    any_step.network.compile()
    found = gradients()
    torch._dynamo.reset()
    assert found.keys() == plain.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for key, gradient in found.items():
        said = f"{key}: {{}}".format
        torch.testing.assert_close(gradient, plain[key], rtol=1e-3, atol=1e-5 * largest, msg=said)
