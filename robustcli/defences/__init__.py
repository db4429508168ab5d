"""What stands in front of a deployed model: one registered defence per file.

A registered function builds a module from its keyword-only parameters. What the module is follows from the
`kind` that the registration states:

    purifier    forward(x [B, C, H, W] in [0, 1]) -> x' of that shape, in [0, 1]
    detector    forward(x, logits [B, K], net) -> score [B]; larger is more suspicious
    vote        forward(logits [M, B, K]) -> Ballot(logits [B, K], doubt [B] or None)

`net` is the classifier behind its purifiers (`ballot.Behind`): joint logits, and those of each member. A
defence knows no other part of the
model. Where a defence has no gradient of its own, its backward pass is a surrogate: attacks always get one.
"""
