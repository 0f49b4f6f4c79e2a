"""An algorithm from outside: half the learning rate, and one hyper-parameter of its own."""

from domainbed.algorithms import ERM
from domainbed.hparams import LogUniform


class HalfERM(ERM):
    """ERM whose optimizer takes smaller steps."""

    paper = "none"
    search_space = {"slow_down": LogUniform(2.0, 0, 1, "divides the learning rate")}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        slower = {**hparams, "lr": hparams["lr"] / hparams["slow_down"]}
        super().__init__(input_shape, num_classes, num_domains, slower)
