"""An algorithm to start from: ERM with label smoothing. `domainbed init` wrote it."""

from torch.nn import functional as F

from domainbed.algorithms import ERM, register_algorithm
from domainbed.hparams import LogUniform


@register_algorithm(search_space={"smoothing": LogUniform(0.1, -3, -0.5, "label smoothing")})
class MyMethod(ERM):
    """Replace `objective_of` by a loss of your own: docs/add_an_algorithm.md says what it is given.

    `domainbed list hparams MyMethod images.csv --plugins my_method.py` shows what is drawn.
    """

    def objective_of(self, forward):
        smoothing = self.hparams["smoothing"]
        loss = F.cross_entropy(forward.logits, forward.y, label_smoothing=smoothing)
        return loss, {"nll": forward.pooled_risk()}
