"""
Add a third modality
====================

The context of :class:`~crossmodal_attn.CMRA` may be a list of any length. So the same layer can relate video to audio,
or to audio and text. If a modality is missing in some samples, a mask excludes it. If it is missing in a whole batch,
pass None in its place.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from crossmodal_attn import CMRA, padding_mask, zero_padding

torch.manual_seed(0)

# %%
# Three modalities, of three rates and widths
# -------------------------------------------
# The features are ten seconds of video, forty frames of audio, and up to seven words.

video, audio, text = torch.randn(2, 10, 256), torch.randn(2, 40, 128), torch.randn(2, 7, 300)
text_padding = padding_mask([7, 3])

# %%
# A list of widths gives each modality its own key and value projection. These projections let the layer distinguish the
# modalities, since attention alone cannot.

relation = CMRA(256, num_heads=4, context_dim=[128, 300])
related, weights = relation(video, [audio, text], context_padding_mask=[None, text_padding], need_weights=True)
print(tuple(related.shape), tuple(weights.shape))

# %%
# The weights have the order of the memory: 40 for audio, 7 for text, 10 for video. Padded words get zero.

to_audio, to_text, to_video = weights.split([40, 7, 10], dim=-1)
print("weight on padded words:", to_text[1, :, :, 3:].abs().max().item())
assert (to_text[1, :, :, 3:] == 0).all()

# %%
# In training, padded values, even NaN, do not affect any gradient.

text[1, 3:] = torch.nan
relation(video, [audio, text], context_padding_mask=[None, text_padding]).sum().backward()
assert all(parameter.grad.isfinite().all() for parameter in relation.parameters())

# %%
# A layer of your own before CMRA needs care: its weight gradients are sums over all steps, including padding, and zero
# times NaN is NaN. So use :func:`~crossmodal_attn.zero_padding` on its input.

project = nn.Linear(300, 300)
projected = project(zero_padding(text, text_padding))
relation(video, [audio, projected], context_padding_mask=[None, text_padding]).sum().backward()
assert project.weight.grad.isfinite().all()

# %%
# The figure shows how much attention each second of video gives to each modality. The layer is untrained, so each share
# is about proportional to the modality's length.

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
# For a sample without text, all words are padding. For a batch without text, pass None. The output is the same; None
# adds nothing to the memory.

masked = relation(video, [audio, text], context_padding_mask=[None, padding_mask([0, 0], max_length=7)])
left_out, weights = relation(video, [audio, None], need_weights=True)
print(f"{tuple(weights.shape)}, largest difference {(masked - left_out).abs().max():.1e}")
assert torch.allclose(masked, left_out, atol=1e-5)

# %%
# So a batch may contain samples with and without a modality. Dropping a modality at random in training takes one line:

text_padding = text_padding | (torch.rand(2, 1) < 0.3)
related = relation(video, [audio, text], context_padding_mask=[None, text_padding])
assert related.isfinite().all()
