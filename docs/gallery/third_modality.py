"""
Add a third modality
====================

The context of :class:`~crossmodal_attn.CMRA` may be a list of any length. So the same layer can relate video to audio,
or to audio and text. If a modality is missing in some samples, a mask excludes it.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from crossmodal_attn import CMRA, padding_mask, zero_padding

torch.manual_seed(0)

# %%
# Three modalities, of three rates and widths
# -------------------------------------------
# The features are ten seconds of video, forty frames of audio, and up to seven words.

video, audio, text = torch.randn(2, 10, 256), torch.randn(2, 40, 128), torch.randn(2, 7, 300)
text_padding = padding_mask([7, 3])

# %%
# All contexts of a layer have the same width and share a key and value projection. If their widths differ, project them
# to one width first. A learned vector is added to each modality, since attention cannot distinguish them otherwise.
#
# Padded values, even NaN, never affect the layer's output at valid steps. But the gradients of a linear layer before it
# are sums over all steps, and zero times NaN is NaN. So use :func:`~crossmodal_attn.zero_padding` before such a layer.


class Trimodal(nn.Module):
    """Relate video to audio, text and itself."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.audio_proj = nn.Linear(128, width)
        self.text_proj = nn.Linear(300, width)
        self.modality = nn.Parameter(torch.randn(2, width) * 0.02)
        self.relation = CMRA(256, num_heads=4, context_dim=width)

    def forward(
        self, video: Tensor, audio: Tensor, text: Tensor, text_padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the related video, and the weights of all heads."""
        text = zero_padding(text, text_padding)
        contexts = [self.audio_proj(audio) + self.modality[0], self.text_proj(text) + self.modality[1]]
        return self.relation(video, contexts, context_padding_mask=[None, text_padding], need_weights=True)


model = Trimodal().eval()
related, weights = model(video, audio, text, text_padding)
print(tuple(related.shape), tuple(weights.shape))

# %%
# The weights have the order of the memory: 40 for audio, 7 for text, 10 for video. Padded words get zero.

to_audio, to_text, to_video = weights.split([40, 7, 10], dim=-1)
print("weight on padded words:", to_text[1, :, :, 3:].abs().max().item())
assert (to_text[1, :, :, 3:] == 0).all()

# %%
# In training, padded values, even NaN, do not affect any gradient.

text[1, 3:] = torch.nan
model(video, audio, text, text_padding)[0].sum().backward()
assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

# %%
# Where each second of video gets its information from, as a sum over each part of the memory. The weights are
# untrained, so each part gets about its share of the places.

shares = torch.stack([part.sum(-1).mean(1)[0] for part in (to_audio, to_text, to_video)]).detach()
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
bottom = torch.zeros(10)
for share, name in zip(shares, ("audio, 40 frames", "text, 7 words", "video, 10 seconds"), strict=True):
    axes.bar(range(10), share, bottom=bottom, label=name)
    bottom += share
axes.set(xlabel="second of video (query)", ylabel="share of attention", ylim=(0, 1))
axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)

# %%
# A missing modality
# ------------------
# For a sample without text, all words are padding. The output is the same as without a text context.

without_text = padding_mask([0, 0], max_length=7)
masked, _ = model(video, audio, text, without_text)
left_out = model.relation(video, model.audio_proj(audio) + model.modality[0])
print("largest difference:", (masked - left_out).abs().max().item())
assert torch.allclose(masked, left_out, atol=1e-5)

# %%
# So a batch may contain samples with and without a modality. Dropping a modality at random in training takes one line:

text_padding = text_padding | (torch.rand(2, 1) < 0.3)
related, _ = model(video, audio, text, text_padding)
assert related.isfinite().all()
