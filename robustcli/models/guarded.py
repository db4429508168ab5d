"""A model behind its defences: one classifier with K + 1 logits, the last of which says "reject"."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.defences.ballot import Ballot, Behind
from robustcli.facts import DefenceFacts

#: Where nothing is scored, reject lies this far below the largest class logit.
_NEVER = 1e4


class Look(NamedTuple):
    """What a guarded model sees in B images: logits [B, K], and label -> score [B] of each detector."""

    logits: Tensor
    scores: dict[str, Tensor]


@dataclass(frozen=True)
class Defence:
    """One defence of a guarded model.

    Args:
        label: its name in tables, different from those of the others.
        name: its registered name.
        params: all parameters it was built with, in JSON types.
        module: what the registered function built.
    """

    label: str
    name: str
    params: Mapping[str, Any]
    module: nn.Module

    @property
    def facts(self) -> DefenceFacts:
        return registry.defences.get(self.name).facts


class GuardedModel(nn.Module):
    """z_reject = max_k z_k + scale * max_i (s_i - t_i) / d_i  after the K class logits z.

    s_i is the score of detector i, t_i its threshold, d_i the spread of its scores on clean images. An image
    is accepted when the largest of the K + 1 logits is a class. A model without detectors accepts all.

    Args:
        members: classifiers, pixels [B, C, H, W] in [0, 1] -> logits [B, K]; several need a vote.
        defences: in the order in which purifiers are applied.
        num_classes: K.
        scale: logits per spread, > 0. It moves no decision, but the slope that an attack sees.

    Attributes:
        reject: K, the column that says "reject".
        randomised: whether each pass draws anew.
        detectors: labels of what gives a score, in the order of `thresholds` and `spreads`, float32 [D].
            Before they are set the thresholds are infinite.
        described: hash of the defences' names and parameters and of `scale`, uint8 [32]: a digest of the
            state tells guards apart whose tensors are the same.
        sha256: of the manifest, when the guard was opened from a file.
        fpr: the share of clean images that its thresholds were set to reject, when it was opened from a file.

    Raises:
        ValueError: several members without a vote, two votes, or two defences with one label.
    """

    thresholds: Tensor
    spreads: Tensor
    described: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        defences: Sequence[Defence],
        num_classes: int,
        *,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.defences, self.reject, self.scale = tuple(defences), num_classes, scale
        labels = [one.label for one in defences]
        votes = [one for one in defences if one.facts.kind == "vote"]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two defences have one label: {', '.join(labels)}")
        if len(votes) > 1 or (len(members) > 1 and not votes):
            raise ValueError(f"{len(members)} networks need one vote, and there are {len(votes)}")
        self.members = nn.ModuleList(members)
        self.modules_by_label = nn.ModuleDict({one.label: one.module for one in defences})
        self._vote = votes[0].label if votes else None
        self._purifiers = [one.label for one in defences if one.facts.kind == "purifier"]
        self._scorers = [one.label for one in defences if one.facts.kind == "detector"]
        self.randomised = any(one.facts.random for one in defences)
        self.detectors = [*self._scorers]
        if self._vote is not None and getattr(votes[0].module, "abstains", False):
            self.detectors.append(self._vote)
        self.register_buffer("thresholds", torch.full((len(self.detectors),), torch.inf))
        self.register_buffer("spreads", torch.ones(len(self.detectors)))
        self.register_buffer("described", _described(defences, scale))
        self.sha256: str | None = None
        self.fpr: float | None = None

    @property
    def info(self) -> Any:
        """The shape of the images and the number of classes: those of the first member."""
        return getattr(self.members[0], "info", None)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, where a checkpoint of the first member told them."""
        return getattr(self.members[0], "classes", None)

    @property
    def highest(self) -> list[float]:
        """What no score of each detector lies above, in the order of `thresholds`; infinite for no bound."""
        by_label = {one.label: one for one in self.defences}
        facts = ((by_label[label].facts, by_label[label].params) for label in self.detectors)
        shape = len(self.members), self.reject
        return [math.inf if fact.highest is None else fact.highest(given, *shape) for fact, given in facts]

    @property
    def passes(self) -> int:
        """Passes of its networks in each answer."""
        return len(self.members) * (1 + sum(one.facts.passes(one.params) for one in self.defences))

    @property
    def fitted(self) -> bool:
        """Whether each detector has a threshold."""
        return bool(torch.isfinite(self.thresholds).all())

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K + 1] of pixels x [B, C, H, W]."""
        logits, scores = self.look(x)
        return torch.cat([logits, self.rejection(logits, scores)[:, None]], 1)

    def rejection(self, logits: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        """The logit [B] that says "reject", from what `look` saw."""
        best = logits.amax(1)
        if not self.detectors:
            return best - _NEVER
        fitted = torch.isfinite(self.thresholds).all()  # asked where the logits lie: no pass waits for it
        return best + torch.where(fitted, self.scale * self.excess(scores), -_NEVER)

    def excess(self, scores: Mapping[str, Tensor]) -> Tensor:
        """max_i (s_i - t_i) / d_i: [B], in spreads; > 0 where a detector alarms."""
        found = torch.stack([scores[label] for label in self.detectors], 1)
        return ((found - self.thresholds) / self.spreads).amax(1)

    def look(self, x: Tensor) -> Look:
        """Class logits and scores of pixels x [B, C, H, W].

        Detectors see x, and the network what the purifiers leave of it.
        """
        ballot, view = self._ballot(x), Behind(self.net, self.each)
        scores = {label: self.modules_by_label[label](x, ballot.logits, view) for label in self._scorers}
        if ballot.doubt is not None and self._vote in self.detectors:
            assert self._vote is not None
            scores[self._vote] = ballot.doubt
        return Look(ballot.logits, scores)

    def net(self, x: Tensor) -> Tensor:
        """Class logits [B, K] of pixels x behind the purifiers: what a detector may ask."""
        return self._ballot(x).logits

    def each(self, x: Tensor) -> Tensor:
        """Class logits [M, B, K] of every member behind the purifiers."""
        x = self.purified(x)
        return torch.stack([member(x) for member in self.members])

    def purified(self, x: Tensor) -> Tensor:
        """What the purifiers leave of pixels x [B, C, H, W]: what the networks see."""
        for label in self._purifiers:
            x = self.modules_by_label[label](x)
        return x

    def _ballot(self, x: Tensor) -> Ballot:
        answers = self.each(x)
        if self._vote is None:
            return Ballot(answers[0], None)
        ballot: Ballot = self.modules_by_label[self._vote](answers)
        return ballot


def _described(defences: Sequence[Defence], scale: float) -> Tensor:
    said = [[one.label, one.name, dict(one.params)] for one in defences]
    text = json.dumps([said, scale], sort_keys=True, default=str)
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
