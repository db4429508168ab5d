"""IBP, CROWN-IBP, MTL-IBP, SABR: closed forms, upper bounds, BatchNorm, kappa, small boxes, Shi's terms."""

import gc
import math
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch
from robustcli.models.initialise import ibp_init
from robustcli.objectives.crown_ibp import crown_ibp
from robustcli.objectives.ibp import ibp
from robustcli.objectives.madry import madry
from robustcli.objectives.mtl_ibp import mtl_ibp
from robustcli.objectives.natural import natural
from robustcli.objectives.sabr import sabr
from robustcli.objectives.walked import over_box, program_of, worst_ce
from robustcli.training.forward import Forward, Shared
from robustcli.training.trainplan import TrainPlan

EPS = 0.1
ALONE = partial(ibp, kappa_start=0, kappa_end=0)
NAMES = [entry.name for entry in registry.objectives if entry.facts.bounds]


def network(batch_norm=True):
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(4)] if batch_norm else []
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def batch(ramp=1.0, y_soft=None, eps=EPS, shape=(1, 4, 4)):
    g = torch.Generator().manual_seed(0)
    x, ids = torch.rand(6, *shape, generator=g), torch.arange(6)
    x_adv = (x + eps * (2 * torch.rand(x.shape, generator=g) - 1)).clamp(0, 1)
    return Batch(x, ids % 3, x_adv, ids, Ball("linf", eps), RowRandom(0, "start", ids), y_soft, ramp)


def gradients(net, loss):
    return torch.autograd.grad(loss, list(net.parameters()))


@pytest.mark.parametrize("ramp", [0.25, 1.0])
def test_ibp_of_a_linear_model_has_a_closed_form(ramp):
    """min over the cut box of (w_y - w_k) x; kappa falls from 1 to 0.4 with the share of the radius."""
    net, b = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), batch(ramp)
    w, bias = net[1].weight.detach(), net[1].bias.detach()
    low, high = (b.x - EPS).clamp(0, 1).flatten(1), (b.x + EPS).clamp(0, 1).flatten(1)
    worst = torch.zeros(6, 3)
    for i, y in enumerate(b.y.tolist()):
        for k in range(3):
            d = w[y] - w[k]
            worst[i, k] = torch.where(d > 0, d * low[i], d * high[i]).sum() + bias[y] - bias[k]
    kappa = 1 - 0.6 * ramp
    wanted = kappa * F.cross_entropy(net(b.x), b.y) + (1 - kappa) * F.cross_entropy(-worst, b.y)
    got = ibp(net, b, kappa_end=0.4)
    assert float(got.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float(got.parts["bounds"]) == pytest.approx(float(F.cross_entropy(-worst, b.y)), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_no_point_of_the_box_is_above_the_bound(name):
    net, b = network().eval(), batch()
    bound = float(registry.objectives.get(name).fn(net, b).parts["bounds"])
    centre, radius = (b.x, EPS) if name != "sabr" else (over_box_of_sabr(b), 0.4 * EPS)
    g = torch.Generator().manual_seed(1)
    for _ in range(50):
        noise = radius * torch.randn(b.x.shape, generator=g).sign()
        point = (centre + noise).clamp(0, 1)
        assert float(F.cross_entropy(net(point), b.y).detach()) <= bound + 1e-6


def over_box_of_sabr(b):
    return torch.minimum(torch.maximum(b.x_adv, b.x - 0.6 * EPS), b.x + 0.6 * EPS).clamp(0, 1)


def test_merging_the_last_layer_is_never_looser_and_the_own_margin_is_0():
    net, b = network(), batch()
    walked = over_box(net, b, b.x, EPS)
    margins = walked.margins(b.y)
    lower, upper = walked.frame.boxes[-1]
    loose = lower.gather(1, b.y[:, None]) - upper
    rest = ~F.one_hot(b.y, 3).bool()
    assert (margins[rest] > loose[rest] - 1e-5).all() and (margins[rest] > loose[rest] + 1e-3).any()
    assert (margins[~rest] == 0).all()


def test_crown_ibp_of_one_hidden_layer_by_hand():
    """ReLU on [l, u] lies between s x and u (x - l) / (u - l), s = [u > -l]; beta goes from 1 to 0.2."""
    torch.manual_seed(0)
    net, b = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), batch(ramp=0.5)
    w, bias, v, head = (p.detach() for p in net.parameters())
    low, high = (b.x - EPS).clamp(0, 1).flatten(1), (b.x + EPS).clamp(0, 1).flatten(1)
    centre, radius = (low + high) / 2, (high - low) / 2
    middle, spread = centre @ w.T + bias, radius @ w.abs().T
    down, up = middle - spread, middle + spread
    crown = torch.zeros(6, 3)
    for i, y in enumerate(b.y.tolist()):
        for k in range(3):
            slopes, offset = torch.zeros(8), head[y] - head[k]
            for j, c in enumerate((v[y] - v[k]).tolist()):
                lo, hi = float(down[i, j]), float(up[i, j])
                chord = 1.0 if lo >= 0 else 0.0 if hi <= 0 else hi / (hi - lo)
                below = chord if lo >= 0 or hi <= 0 else float(hi > -lo)
                slopes[j] = c * (below if c > 0 else chord)
                if c < 0 and lo < 0 < hi:
                    offset = offset - c * chord * lo
            a = slopes @ w
            crown[i, k] = a @ centre[i] - a.abs() @ radius[i] + slopes @ bias + offset
    boxes = over_box(net, b, b.x, EPS).margins(b.y).detach()
    wanted = F.cross_entropy(-(0.6 * crown + 0.4 * boxes), b.y)
    got = crown_ibp(net, b, kappa_start=0, kappa_end=0, beta_end=0.2, warmup_reg=0)
    assert float(got.total.detach()) == pytest.approx(float(wanted), rel=1e-5)
    assert ((crown - boxes).abs() > 1e-2).any()


def test_batch_norm_takes_the_clean_statistics_once():
    """Running statistics move as in one pass over clean images, however wide the box is."""
    plain, net, b = network().train(), network().train(), batch()
    plain(b.x)
    ibp(net, b)
    for key, value in plain.state_dict().items():
        assert torch.allclose(net.state_dict()[key], value, rtol=1e-5), key
    logits, walked = plain(b.x), over_box(net, b, b.x, EPS)
    assert torch.allclose(walked.logits, logits, atol=1e-5)


def test_limits_of_the_dials():
    """kappa 1 is natural, alpha 0 and box 0 are madry, alpha 1 and box 1 are IBP alone: values and slopes."""
    net, b = network().eval(), batch()
    pairs = (
        (partial(ibp, kappa_start=1, kappa_end=1), natural),
        (partial(mtl_ibp, alpha=0), madry),
        (partial(mtl_ibp, alpha=1), ALONE),
        (partial(sabr, box=0), madry),
        (partial(sabr, box=1), ALONE),
        (partial(crown_ibp, kappa_end=0, beta_end=0), ALONE),
    )
    for ours, known in pairs:
        terms, wanted = ours(net, b), known(net, b)
        assert torch.allclose(terms.total, wanted.total, rtol=1e-5)
        slopes = zip(gradients(net, terms.total), gradients(net, wanted.total), strict=True)
        assert all(torch.allclose(got, slope, atol=1e-6) for got, slope in slopes)
    adversarial, alone = (float(loss(net, b).total.detach()) for loss in (madry, ALONE))
    mixed = float(mtl_ibp(net, b, alpha=0.3).total.detach())
    assert mixed == pytest.approx(0.7 * adversarial + 0.3 * alone, rel=1e-5)


def test_the_small_box_lies_in_the_ball():
    net, b = network(), batch()
    centre = over_box_of_sabr(b)
    low, high = over_box(net, b, centre, 0.4 * EPS).frame.boxes[0]
    assert (low >= (b.x - EPS).clamp(0, 1) - 1e-6).all() and (high <= (b.x + EPS).clamp(0, 1) + 1e-6).all()
    got = float(sabr(net, b, box=0.4).parts["bounds"])
    walked = over_box(net, b, centre, 0.4 * EPS)
    assert got == pytest.approx(float(worst_ce(walked.margins, b).detach()), rel=1e-6)


def test_mixed_labels_are_a_mean_over_labels():
    net, b = network().eval(), batch()
    walked = over_box(net, b, b.x, EPS)
    hot, turned = F.one_hot(b.y, 3).float(), F.one_hot(b.y, 3).float().roll(1, 1)
    one, other = (worst_ce(walked.margins, batch(y_soft=q)) for q in (hot, turned))
    mixed = worst_ce(walked.margins, batch(y_soft=0.7 * hot + 0.3 * turned))
    assert torch.allclose(mixed, 0.7 * one + 0.3 * other) and not torch.allclose(one, other)


def test_the_terms_of_shi_by_hand_fade_with_the_radius():
    net, b = network(batch_norm=False), batch(ramp=0.25, eps=0.02)
    terms = []
    walked = over_box(net, b, b.x, 0.02)
    places = [k for k, step in enumerate(walked.frame.program.steps) if "Rectifier" in type(step.op).__name__]
    assert len(places) == 2
    for place in places:
        low, high = (side.detach().double().flatten() for side in walked.frame.inputs(place)[0])
        pixels = [side.double() for side in walked.frame.boxes[0]]
        centre, ratio = (low + high) / 2, float((pixels[1] - pixels[0]).mean() / (high - low).mean())
        active, inactive = centre[low > 0], centre[high < 0]
        assert len(active) and len(inactive)
        qs = [
            float(active.sum() / -inactive.sum()),
            float(((active - centre.mean()) ** 2).sum() / ((inactive - centre.mean()) ** 2).sum()),
        ]
        terms.append(sum(max(0, 0.5 - share) / 0.5 for share in (ratio, *(min(q, 1 / q) for q in qs))))
    assert float(walked.unbalanced().detach()) == pytest.approx(sum(terms) / 2, rel=1e-5)
    assert sum(terms) > 0.1
    plain, added = (float(ibp(net, b, warmup_reg=weight).total.detach()) for weight in (0.0, 2.0))
    assert added - plain == pytest.approx(2 * 0.75 * sum(terms) / 2, rel=1e-4)
    whole = batch(eps=0.02)
    assert torch.equal(ibp(net, whole, warmup_reg=2.0).total, ibp(net, whole, warmup_reg=0.0).total)


def test_a_point_has_bounds_and_slopes():
    """Trap: 0 / 0. Before the radius grows the box has no width, and the loss is the natural one."""
    net, b = network().eval(), batch(ramp=0.0, eps=0.0)
    terms = ibp(net, b, kappa_start=0.0, kappa_end=0.0, warmup_reg=0.0)
    assert torch.allclose(terms.total, natural(net, b).total, rtol=1e-5)
    assert all(torch.isfinite(grad).all() for grad in gradients(net, ibp(net, b).total))


def test_bounds_are_float32_in_training_of_any_precision():
    net, b = network().eval(), batch()
    wanted = ibp(net, b).total
    half = Forward(net, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ibp(Shared(half), b).total, wanted)
    assert torch.equal(ibp(Shared(half), b).total, wanted)


def test_the_first_weights_for_narrow_bounds():
    """std sqrt(2 pi) / n_in everywhere but in the last layer; then a box keeps its width."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(4, 200, 5, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(3200, 50), nn.ReLU())
    net = nn.Sequential(*layers, nn.Linear(50, 3))
    last, bias = net[5].weight.clone(), net[0].bias.clone()
    assert ibp_init(net) == 2
    for layer, inputs in ((net[0], 2 * 25), (net[3], 3200)):
        assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / inputs, rel=0.03)
    assert torch.equal(net[5].weight, last) and torch.equal(net[0].bias, bias)
    walked = over_box(net, batch(shape=(4, 8, 8)), torch.full((6, 4, 8, 8), 0.5), 0.1)
    low, high = walked.frame.inputs(0)[0]
    for place, gain in ((0, 2.0), (3, 1.0)):  # E|w| n = 2: a radius doubles, and ReLU halves it
        low, high = walked.frame.boxes[place + 1]
        radius = float((high - low).detach().mean() / 2)
        assert radius == pytest.approx(0.1 * gain * 2 ** (place > 0), rel=0.3)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_counts_what_the_step_holds(name):
    """Bytes that autograd keeps, in outputs of all layers: at most the stated ones, and half of them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )
    entry, b, kept = registry.objectives.get(name), batch(ramp=0.5, shape=(1, 5, 5)), {}
    held = entry.facts.held + 2 * entry.facts.held_per_rival

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        entry.fn(net, b)
    outputs = 6 * 4 * (2 * 8 * 9 + 2 * 8 + 8 + 3)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    size = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    assert 0.5 * held <= size / outputs <= 1.1 * held


def test_networks_are_traced_once_and_only_the_last_ones_are_kept():
    """A program holds its network: all of them would never be freed."""
    nets = [network() for _ in range(6)]
    programs = [program_of(net, (1, 4, 4)) for net in nets]
    assert program_of(nets[-1], (1, 4, 4)) is programs[-1] and program_of(nets[2], (1, 4, 4)) is programs[2]
    gone = weakref.ref(nets[0])
    del nets, programs
    gc.collect()
    assert gone() is None


def test_the_best_checkpoint_is_that_of_the_largest_verified_accuracy():
    plan = TrainPlan(0, 1, float, None, ("steps", 1), 1, 1, None, torch.zeros(0), verified=True)
    rows = [
        {"clean_acc": clean, "robust_acc": robust, "verified_acc": verified}
        for clean, robust, verified in ((0.9, 0.8, 0.3), (0.8, 0.6, 0.5), (0.7, 0.7, 0.5), (1.0, 1.0, None))
    ]
    assert sorted(rows, key=plan.score)[-1] is rows[2]
