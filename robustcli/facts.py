"""What a registered thing says of itself: one frozen class of facts per registry.

So nobody has to know a name.

Nothing here imports torch: `--help` and shell completion read registrations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["fixed", "minimal", "unbounded"]
Needs = Literal["gradient", "scores", "decisions"]
#: (parameters, defaults included; classes of the model; norm of the ball) -> model passes.
Passes = Callable[[Mapping[str, Any], int, str], int]
#: (parameters, defaults included; networks behind the defences; classes) -> a score.
Highest = Callable[[Mapping[str, Any], int, int], float]


@dataclass(frozen=True, kw_only=True)
class AttackFacts:
    """What an attack needs, costs and promises.

    Args:
        kind: "fixed" searches inside the ball; "minimal" looks for the closest success and may leave the
            radius; "unbounded" is a threat of its own, which no radius describes.
        norms: the norms it works for.
        needs: what it asks the model for.
        precision: the lowest in which its search finds what it finds in fp32.
        passes: forward and backward passes over one sample that survives an evaluation: each forward pass and
            each backward pass counts one. The clean point, whose logits an evaluation knows, is not counted;
            the last point is. Exact, or the most where the search may end early on a sample that stands.
        use: when to take it, for the documentation.
        deterministic: whether another seed gives the same points.
        starts_at_clean: whether it begins at the clean points, where some losses have no slope.
        guarded: whether it is made for guarded models, and searches for a wrong class and against the
            rejection apart. On any other model it is PGD, and may cost less than `passes`.
        for_others: whether it climbs on changed copies of the image. Its points are to fool other models, and
            are not the worst for the one that it searches on.
        ends_early: whether `passes` is the most, and a sample that stands may cost less.
        label: parameters, defaults included -> its name in tables; None: the registered name, with steps and
            restarts.
        reads: parameters, defaults included -> the files that verdicts depend on; None for none.
        ready: parameters, defaults included -> whether nothing is searched, and decisions are enough; None:
            never.
        fits: (parameters, defaults included; shape (C, H, W) of the images): raises DataError for files that
            cannot be read, or do not go with such images. It is called before any work. None for no files.
        kept: how many of the passes training saves: their answers belong to a class and are kept for many
            steps (`core.memory`). They are asked for on images that are all alike, which have no batch
            statistics.
    """

    kind: Kind
    norms: tuple[str, ...]
    needs: Needs
    precision: Literal["bf16", "fp32"]
    passes: Passes
    use: str
    deterministic: bool
    starts_at_clean: bool = False
    guarded: bool = False
    for_others: bool = False
    ends_early: bool = False
    label: Callable[[Mapping[str, Any]], str] | None = None
    reads: Callable[[Mapping[str, Any]], list[Path]] | None = None
    ready: Callable[[Mapping[str, Any]], bool] | None = None
    fits: Callable[[Mapping[str, Any], tuple[int, int, int]], None] | None = None
    kept: int = 0


@dataclass(frozen=True, kw_only=True)
class TransformFacts:
    """What an input transform of momentum attacks needs and does.

    Args:
        use: when to take it, for the documentation.
        copies: of the image that the model sees for one gradient, >= 1. Each costs a forward and a backward
            pass.
        random: whether it draws.
        still: whether the pixels stay as they are, and only the gradient changes.
    """

    use: str
    copies: int = 1
    random: bool = False
    still: bool = False


@dataclass(frozen=True, kw_only=True)
class EnsembleFacts:
    """What a list of attacks under one name says.

    Args:
        audit: (norm, **parameters) -> how the survivors are checked, or None where nothing needs a check.
        use: when to take it, for the documentation.
        norms: the norms that the list knows.
    """

    audit: Callable[..., Any]
    use: str
    norms: tuple[str, ...] = ("linf", "l2", "l1")


@dataclass(frozen=True, kw_only=True)
class LossFacts:
    """What a loss is bound to.

    Args:
        state: per row: labels "y", clean logits "clean".
        soft: whether it takes mixed labels.
        flat_at_clean: whether its gradient is 0 at the clean points.
    """

    state: tuple[str, ...] = ("y",)
    soft: bool = False
    flat_at_clean: bool = False


@dataclass(frozen=True, kw_only=True)
class ObjectiveFacts:
    """What an outer training loss says.

    Args:
        inner: the loss that the inner attack ascends, None for none.
        passes: forward and backward passes of one outer step over one sample, the attack apart.
        per_rival: what `passes` grow by for each class but one.
        held: activations that wait for the backward pass, in outputs of all layers for one image.
        held_per_rival: what `held` grows by for each class but one.
        use: what it is for, for the documentation.
        view: (model, x, rng, *, ...) -> classifier: what the inner attack sees in place of the model. Its
            keyword-only parameters have the values of the objective's. None: the model itself.
        copies: the parameter that says how many noisy copies of each image pass through the model, in the
            loss and in the attack; "" for none. `passes` are those of one copy.
        noisy: whether the network is trained on noisy images, which clean ones must not replace.
        front: whether it trains what stands in front of the classifier, and has nothing to train without.
        bounds: whether it bounds the network over the whole ball. Such training is robust without an attack,
            its best checkpoint is that of the largest verified accuracy, and the network needs bounds for
            each of its operations.
        norms: the norms of the ball that it works for.
    """

    inner: str | None
    passes: int
    use: str
    view: Callable[..., Any] | None = None
    copies: str = ""
    noisy: bool = False
    front: bool = False
    bounds: bool = False
    norms: tuple[str, ...] = ("linf", "l2", "l1", "l0")
    per_rival: int = 0
    held: int = 1
    held_per_rival: int = 0


@dataclass(frozen=True, kw_only=True)
class RegularizerFacts:
    """What a term beside the objective says.

    Args:
        passes: the most that it adds to one outer step over one sample.
        use: what it is for, for the documentation.
        twice: whether it differentiates twice, which torch.compile cannot.
        ball: whether it looks around in the ball of the batch, and not at the attacked images alone.
    """

    passes: int
    use: str
    twice: bool = False
    ball: bool = False


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """attacks: whether the step runs the configured attack."""

    attacks: bool


@dataclass(frozen=True, kw_only=True)
class HookFacts:
    """What a training hook adds.

    Args:
        extra_losses: how often it computes the loss again per step.
        publishes: "weights" where it publishes weights of its own; only one hook of a run may.
        estimates: whether it estimates BatchNorm's statistics anew, on clean images.
    """

    extra_losses: int
    estimates: bool = False
    publishes: Literal["weights"] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """cite: the paper. tiny: parameters of a small one, for tests. fixed_size: it takes one size only."""

    cite: str = ""
    tiny: Mapping[str, Any] = field(default_factory=dict)
    fixed_size: bool = False


@dataclass(frozen=True, kw_only=True)
class LayoutFacts:
    """How the tensors of published weights are named, and what their networks have in common.

    Args:
        arch: the registered model that such weights are for.
        published: whose weights look like this, for messages and the documentation.
        names: name in the file -> name in our network, the first that fits. ``{0}`` stands for a number,
            ``{1}`` for the same number plus one, ``*`` for the rest. Empty: the names are ours.
        marks: names that every such file holds, and that tell it from other layouts.
        never: names that no such file holds.
        unused: beginnings of names that files hold and their networks never ask.
        means: parameters that no tensor tells, as the published networks have them: a value, or one for each
            number of classes, 0 for any other.
        head: weight of the last layer, in our network.
        normalize: number of classes -> what the networks expect where the file has no normaliser; 0 stands
            for any other number. Empty: nothing is known.
    """

    arch: str
    published: str
    marks: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    never: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    means: Mapping[str, Any] = field(default_factory=dict)
    head: str = "head.weight"
    normalize: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What is usual for a data set.

    Args:
        presets: norm -> usual radius, in pixel units of [0, 1].
        augment: (pixels of padding before a random crop, whether to flip), or None where nothing is known.
        mean, std: per channel, in pixel units; None means: measured on the training images.
        path: whether the name takes a path, as in ``folder:PATH``.
    """

    presets: Mapping[str, float] = field(default_factory=dict)
    augment: tuple[int, bool] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    path: bool = False


@dataclass(frozen=True)
class NoFacts:
    """A registration that says nothing but its name."""


@dataclass(frozen=True, kw_only=True)
class DefenceFacts:
    """What a defence in front of a deployed model needs, costs and promises.

    Args:
        kind: "purifier" changes the image before the network sees it; "detector" scores how suspicious an
            image is; "vote" joins the answers of several networks.
        random: whether each pass draws anew: such a model is judged over many draws.
        differentiable: whether its gradient is its own. False: the backward pass is a surrogate, as BPDA
            makes one (Athalye et al., ICML 2018, arXiv:1802.00420).
        fit: what `guard fit` must find out from data: "statistics" (one pass over labelled images),
            "training" (a network of its own), or None.
        passes: parameters, defaults included -> passes of the classifier that it adds to each answer.
        highest: a bound that no score or doubt lies above; None where there is none.
        use: when to take it, for the documentation.
    """

    kind: Literal["purifier", "detector", "vote"]
    random: bool
    differentiable: bool
    fit: Literal["statistics", "training"] | None = None
    passes: Callable[[Mapping[str, Any]], int] = lambda given: 0  # noqa: ARG005
    highest: Highest | None = None
    use: str
