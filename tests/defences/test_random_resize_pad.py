"""A smaller image at a random place."""

import torch

from robustcli.defences.random_resize_pad import random_resize_pad


def test_sizes_and_places_are_those_that_it_promises():
    x, module, found = torch.ones(2, 1, 10, 20), random_resize_pad(least=0.8), set()
    torch.manual_seed(0)
    for _ in range(300):
        changed = module(x)
        assert torch.equal(changed[0], changed[1])
        rows, columns = (changed[0, 0] > 0).any(1).nonzero(), (changed[0, 0] > 0).any(0).nonzero()
        height, width = len(rows), len(columns)
        assert torch.allclose(changed[0, 0].sum(), torch.tensor(float(height * width)))
        found.add((height, width, int(rows[0]), int(columns[0])))
    assert {one[:2] for one in found} == {(8, 16), (9, 18), (10, 20)}
    assert {one[2:] for one in found if one[0] == 9} == {(top, left) for top in (0, 1) for left in (0, 1, 2)}


def test_the_smallest_size_of_one_leaves_the_image_alone():
    x = torch.rand(2, 3, 5, 7)
    assert torch.equal(random_resize_pad(least=1.0)(x), x)
