"""Several networks vote."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustcli import registry
from robustcli.defences.ensemble import ensemble
from robustcli.models.defended import make_defence
from robustcli.models.guarded import GuardedModel

K = 3
VOTES = st.lists(st.integers(0, K - 1), min_size=1, max_size=7)


def logits_of(votes, sure=2.0):
    """[M, 1, K]: network m answers votes[m]."""
    noise = torch.rand(len(votes), K, generator=torch.Generator().manual_seed(len(votes)))
    return (sure * torch.eye(K)[torch.tensor(votes)] + noise)[:, None]


@settings(max_examples=60, deadline=None)
@given(VOTES, st.integers(1, 8) | st.none())
def test_most_votes_win_and_too_few_raise_doubt(votes, quorum):
    logits = logits_of(votes)
    answer, doubt = ensemble(rule="abstain", quorum=quorum)(logits)
    counts = torch.tensor(votes).bincount(minlength=K)
    assert counts[answer.argmax(1)] == counts.max()
    torch.testing.assert_close(answer.softmax(1)[0], counts / len(votes), atol=0.03, rtol=0)
    wanted = min(quorum or len(votes) // 2 + 1, len(votes))
    assert bool(doubt > 0) == bool(counts.max() < wanted)
    majority = ensemble(rule="majority")(logits)
    assert majority.doubt is None and torch.equal(majority.logits, answer)


def test_the_mean_keeps_the_logits_and_their_slope():
    logits = torch.randn(4, 5, K, requires_grad=True)
    answer, doubt = ensemble()(logits)
    assert doubt is None and torch.equal(answer, logits.mean(0))


def test_among_equal_votes_the_surer_side_wins():
    logits = torch.tensor([[[3.0, 0, 0]], [[0, 2, 0]]])
    weaker = logits / torch.tensor([3.0, 1.0])[:, None, None]
    vote = ensemble(rule="majority")
    assert vote(logits).logits.argmax(1) == 0 and vote(weaker).logits.argmax(1) == 1


def test_the_network_nearest_to_its_boundary_pulls_most_and_sure_ones_still_pull():
    logits = logits_of([0, 0, 0]) * torch.tensor([1.0, 5.0, 100.0])[:, None, None]
    logits.requires_grad_(True)
    ensemble(rule="majority")(logits).logits[0, 1].backward()
    near, sure, surest = logits.grad[:, 0, 1].tolist()
    assert near > 10 * sure > 0 and surest > 5e-5


def test_sure_networks_that_agree_leave_the_cross_entropy_a_slope():
    logits = (1000 * logits_of([0, 0, 0])).requires_grad_(True)
    nn.functional.cross_entropy(ensemble(rule="majority")(logits).logits, torch.tensor([0])).backward()
    assert (logits.grad[:, 0, 0] < 0).all() and (logits.grad[:, 0, 1:] > 0).all()


def test_abstaining_networks_reject_in_a_guarded_model():
    class Fixed(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.register_buffer("weights", torch.tensor(weights))

        def forward(self, x):
            return x.flatten(1)[:, :1] @ self.weights[None]

    vote = make_defence("vote", "ensemble", {"rule": "abstain", "quorum": 3}, (1, 4, 4), K)
    nets = [Fixed([1.0, 0, -1]), Fixed([1.0, 0.5, 0]), Fixed([0.5, 0, 1.0])]
    for members, accepted in ((nets, False), (nets[:2], True)):
        guard = GuardedModel(members, [vote], K).eval()
        guard.thresholds.zero_()
        answer = guard(torch.ones(2, 1, 4, 4)).argmax(1)
        assert answer.tolist() == ([0, 0] if accepted else [K, K])


def test_members_are_references_that_a_configuration_lists():
    made = make_defence("vote", "ensemble", {"members": ["run:a", "run:b"]}, (1, 4, 4), K)
    assert made.params == {"members": ["run:a", "run:b"], "rule": "mean", "quorum": None}
    assert registry.defences.get("ensemble").facts.kind == "vote"
