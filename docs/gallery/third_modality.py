"""
Add a third modality
====================

The context of :class:`~crossmodal_attn.CMRA` may be a list of any length. Video that relates to audio today relates to
audio and text tomorrow, with the same layer. One that is missing from some samples is a mask, one that is missing from
a whole batch is None.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from crossmodal_attn import CMRA, padding_mask, zero_padding

torch.manual_seed(0)

# %%
# Three modalities, of three rates and widths
# -------------------------------------------
# Ten seconds of video features, forty frames of audio, and up to seven words.

video, audio, text = torch.randn(2, 10, 256), torch.randn(2, 40, 128), torch.randn(2, 7, 300)
text_padding = padding_mask([7, 3])

# %%
# A list of widths gives each modality a key and value projection of its own. They tell the modalities apart, as
# attention by itself sees a set.

relation = CMRA(256, num_heads=4, context_dim=[128, 300])
related, weights = relation(video, [audio, text], context_padding_mask=[None, text_padding], need_weights=True)
print(tuple(related.shape), tuple(weights.shape))

# %%
# The weights follow the memory: 40 of audio, 7 of text, 10 of video. Words that are padding get none.

to_audio, to_text, to_video = weights.split([40, 7, 10], dim=-1)
print("weight on padded words:", to_text[1, :, :, 3:].abs().max().item())
assert (to_text[1, :, :, 3:] == 0).all()

# %%
# In training, what padding holds makes no difference to any weight's gradient.

text[1, 3:] = torch.nan
relation(video, [audio, text], context_padding_mask=[None, text_padding]).sum().backward()
assert all(parameter.grad.isfinite().all() for parameter in relation.parameters())

# %%
# A layer of your own in front needs care: a linear map sums its gradients over all steps, padding too, where zero times
# NaN is NaN. So :func:`~crossmodal_attn.zero_padding` comes before it.

project = nn.Linear(300, 300)
projected = project(zero_padding(text, text_padding))
relation(video, [audio, projected], context_padding_mask=[None, text_padding]).sum().backward()
assert project.weight.grad.isfinite().all()

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
# A sample without text has all of its words padded. A batch without any text may have None in its place, which is the
# same, and takes no place in the memory.

masked = relation(video, [audio, text], context_padding_mask=[None, padding_mask([0, 0], max_length=7)])
left_out, weights = relation(video, [audio, None], need_weights=True)
print(tuple(weights.shape), "largest difference:", (masked - left_out).abs().max().item())
assert torch.allclose(masked, left_out, atol=1e-5)

# %%
# So batches may mix samples with and without a modality, and dropping one at random in training is one line:

text_padding = text_padding | (torch.rand(2, 1) < 0.3)
related = relation(video, [audio, text], context_padding_mask=[None, text_padding])
assert related.isfinite().all()
