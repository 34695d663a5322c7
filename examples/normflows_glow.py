"""A Glow of normflows converted to hexad: the same samples and log-probabilities from the same weights."""

import normflows as nf
import torch

from hexad.integrations.normflows import convert

torch.manual_seed(0)
flows = [nf.flows.GlowBlock(12, 32, init_zeros=False) for _ in range(4)] + [nf.flows.Squeeze()]
model = nf.NormalizingFlow(nf.distributions.DiagGaussian((12, 8, 8)), flows).eval()

with torch.no_grad():
    images = torch.randn(4, 3, 16, 16)
    model.log_prob(images)  # actnorm starts from its first batch
    fast = convert(model)
    print(fast.flows)
    print("log-probabilities:", model.log_prob(images), fast.log_prob(images))

    torch.manual_seed(1)
    theirs, _ = model.sample(4)
    torch.manual_seed(1)
    ours, _ = fast.sample(4)
    print("largest difference of a sample:", (ours - theirs).abs().max().item())
    assert torch.allclose(ours, theirs, atol=1e-4)
