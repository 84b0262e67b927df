"""
Add a third modality
====================

The context of :class:`~crossmodal_attn.CMRA` may be a list of any length. Video that relates to audio today relates to
audio and text tomorrow, with the same layer, and one that is missing from some samples is a mask.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from crossmodal_attn import CMRA, padding_mask, zero_padding

torch.manual_seed(0)

# %%
# Three modalities, of three rates and widths
# -------------------------------------------
# Ten seconds of video features, forty frames of audio, and up to seven words.

video, audio, text = torch.randn(2, 10, 256), torch.randn(2, 40, 128), torch.randn(2, 7, 300)
text_padding = padding_mask([7, 3])

# %%
# Contexts of one layer share their width and their key and value projection. Where the widths differ, project each to
# one first. A learned vector for each modality tells them apart, as attention by itself sees a set.
#
# Nothing at padding reaches the output of the layer, NaN included. But a linear map in front of the layer sums its
# gradients over all steps, padding too, where zero times NaN is NaN; so :func:`~crossmodal_attn.zero_padding` comes
# before it.


class Trimodal(nn.Module):
    """Video relates to audio, text and itself."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.audio_proj = nn.Linear(128, width)
        self.text_proj = nn.Linear(300, width)
        self.modality = nn.Parameter(torch.randn(2, width) * 0.02)
        self.relation = CMRA(256, num_heads=4, context_dim=width)

    def forward(
        self, video: Tensor, audio: Tensor, text: Tensor, text_padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Give the related video, and the weights of all heads."""
        text = zero_padding(text, text_padding)
        contexts = [self.audio_proj(audio) + self.modality[0], self.text_proj(text) + self.modality[1]]
        return self.relation(video, contexts, context_padding_mask=[None, text_padding], need_weights=True)


model = Trimodal().eval()
related, weights = model(video, audio, text, text_padding)
print(tuple(related.shape), tuple(weights.shape))

# %%
# The weights follow the memory: 40 of audio, 7 of text, 10 of video. Words that are padding get none.

to_audio, to_text, to_video = weights.split([40, 7, 10], dim=-1)
print("weight on padded words:", to_text[1, :, :, 3:].abs().max().item())
assert (to_text[1, :, :, 3:] == 0).all()

# %%
# In training, what padding holds makes no difference to any weight's gradient.

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
# A modality that is missing
# --------------------------
# A sample without text has all of its words padded. That is exactly as if the layer had not been given any.

without_text = padding_mask([0, 0], max_length=7)
masked, _ = model(video, audio, text, without_text)
left_out = model.relation(video, model.audio_proj(audio) + model.modality[0])
print("largest difference:", (masked - left_out).abs().max().item())
assert torch.allclose(masked, left_out, atol=1e-5)

# %%
# So batches may mix samples with and without a modality, and dropping one at random in training is one line:

text_padding = text_padding | (torch.rand(2, 1) < 0.3)
related, _ = model(video, audio, text, text_padding)
assert related.isfinite().all()
