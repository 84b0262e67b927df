"""The loss and decision of networks that score events by segment and categories by video."""

from __future__ import annotations

from torch import Tensor

from ave.networks.cmran import Logits, localize, supervised_loss, weak_loss
from ave.networks.localizer import Decision, Localizer

__all__ = ["TwoScores"]


class TwoScores(Localizer):
    """A network whose logits are a :class:`Logits`, with the losses and the decision of CMRAN."""

    def loss(
        self,
        logits: Logits,
        target: Tensor,
        *,
        padding_mask: Tensor | None = None,
        eventless_category: int | None = 0,
    ) -> Tensor:
        """Return the loss of the network's setting, as :meth:`Localizer.loss` says."""
        if self.setting == "weak":
            return weak_loss(logits, target, padding_mask=padding_mask)
        return supervised_loss(logits, target, padding_mask=padding_mask, eventless_category=eventless_category)

    def decide(self, logits: Logits) -> Decision:
        """Return the video's best category where the event score is at least 0.5, else background."""
        category_score = logits.category.softmax(-1).amax(-1, keepdim=True).expand_as(logits.event)
        labels = localize(logits, background=self.num_categories)
        return Decision(labels, logits.event.sigmoid(), category_score)
