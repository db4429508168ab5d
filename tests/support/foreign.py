"""Networks as users bring them, for 1x8x8 images of two classes: each is a factory of `--plugin`."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class LeNet(nn.Module):
    """`view` after a convolution, the commonest idiom of all."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(36, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.head(x.view(x.size(0), -1))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.bn = (
            nn.Conv2d(1, 4, 3, 2, 1),
            nn.Conv2d(4, 4, 3, 1, 1, bias=False),
            nn.BatchNorm2d(4),
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(x + self.bn(self.conv(x))).mean((2, 3)))


class Heads(nn.Module):
    """Auxiliary heads in train mode alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.aux = nn.Conv2d(1, 4, 3), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


class Distilled(Heads):
    """As DeiT: in eval mode the mean of two heads."""

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        return (self.head(x), self.aux(x)) if self.training else (self.head(x) + self.aux(x)) / 2


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.place = nn.Conv2d(1, 8, 4, 4), nn.Parameter(torch.randn(1, 5, 8) / 8)
        self.cls = nn.Parameter(torch.zeros(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), 1) + self.place
        return self.head(self.block(x)[:, 0])


class InPlace(LeNet):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))


class OwnNorm(nn.Module):
    """A BatchNorm written by hand, with statistics as buffers."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, x):
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            self.mean = 0.9 * self.mean + 0.1 * mean.detach()
            self.var = 0.9 * self.var + 0.1 * var.detach()
        else:
            mean, var = self.mean, self.var
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * self.scale[:, None, None]


class Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.body, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = checkpoint(self.body, self.conv(x), use_reentrant=True)
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, block = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.blocks, self.head = nn.Sequential(block, nn.ReLU(), block), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Fixed(nn.Module):
    """No parameters at all: bright or dark."""

    def forward(self, x):
        z = 4 * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack((-z, z), 1)


class Answer(nn.Module):
    """A network whose answer is changed on its way out."""

    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x):
        return self.change(self.net(x))


class Once(torch.autograd.Function):
    """The identity, through which a graph goes backward once: compiled code gives its memory away."""

    @staticmethod
    def forward(ctx, x):
        ctx.left = 1
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if not ctx.left:
            raise RuntimeError("donated buffers and retain_graph=True")
        ctx.left -= 1
        return grad


class Output:
    def __init__(self, logits):
        self.logits = logits


def plain():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def one_logit():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))


def flat_logit():
    return Answer(one_logit(), lambda z: z.squeeze(1))


def dict_output():
    return Answer(plain(), lambda z: {"logits": z, "features": z})


def attribute_output():
    return Answer(plain(), Output)


def compiled():
    return torch.compile(plain(), backend="eager")


def script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(ResNet())


def half():
    return plain().half()


def double():
    return plain().double()


def parallel():
    return nn.DataParallel(LeNet())


def dropout():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Dropout2d(0.2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 2)
    )


def own_norm():
    return nn.Sequential(nn.Conv2d(1, 4, 3), OwnNorm(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def weight_norm():
    net = plain()
    nn.utils.parametrizations.weight_norm(net[0])
    return net


def old_weight_norm():
    net = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(net[0])
    return net


def hooked():
    net = plain()
    net.seen = []
    net[0].register_forward_hook(lambda module, args, out: net.seen.append(type(out)))
    net[3].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return net


def lenet():
    return LeNet()


def resnet():
    return ResNet()


def heads():
    return Heads()


def distilled():
    return Distilled()


def recurrent():
    return Recurrent()


def vit():
    return ViT()


def in_place():
    return InPlace()


def shared():
    return Shared()


def reentrant():
    return Reentrant()


def fixed():
    return Fixed()


def once():
    return Answer(plain(), Once.apply)


def frozen():
    return plain().requires_grad_(False)


def integers():
    return Answer(plain(), lambda z: z.argmax(1, keepdim=True) == torch.arange(2))


def probability():
    return nn.Sequential(one_logit(), nn.Sigmoid())


def pair():
    return Answer(plain(), lambda z: (z, z))


def mean_of_the_batch():
    return Answer(plain(), lambda z: z.mean(0, keepdim=True))


def scores():
    return Answer(plain(), lambda z: {"scores": z})


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(plain().eval(), {nn.Linear})


class FirstMean(nn.Module):
    """Initialises itself from its first batch, as ActNorm does; a plain attribute remembers that it has."""

    def __init__(self):
        super().__init__()
        self.done, self.shift, self.head = False, nn.Parameter(torch.zeros(1)), nn.Linear(64, 2)
        self.kept = {}

    def forward(self, x):
        if not self.done:
            with torch.no_grad():
                self.shift.copy_(-x.mean())
            self.done, self.last, self.kept["mean"] = True, x, x.mean()
        return self.head((x + self.shift).flatten(1))


class Alone(LeNet):
    """Refuses to be copied."""

    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")


def first_mean():
    return FirstMean()


def alone():
    return Alone()


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def squeezed():
    return Answer(plain(), torch.squeeze)


def squeezed_logit():
    return Answer(one_logit(), torch.squeeze)


def transposed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Answer(nn.Identity(), torch.t))


def sparse():
    return Answer(plain(), torch.Tensor.to_sparse)


def by_even_numbers():
    def even(x):
        assert len(x) % 2 == 0, "even only"
        return x

    return Answer(plain(), even)
