"""What published networks are shown: means and deviations, as `--normalize` takes them."""

from __future__ import annotations

PIXELS = {0: "0,1"}  # as they are, in [0, 1]
IMAGENET = {0: "imagenet"}
#: Of CIFAR-10 and CIFAR-100; those of DeepMind, of Rice et al. and of Debenedetti et al. agree to 2e-4.
CIFAR = {
    10: "0.4914,0.4822,0.4465,0.2471,0.2435,0.2616",
    100: "0.5071,0.4865,0.4409,0.2673,0.2564,0.2762",
}
#: Deviations within images, which MadryLab's robustness takes: Engstrom et al. 2019.
MADRY = {10: "0.4914,0.4822,0.4465,0.2023,0.1994,0.2010"}
