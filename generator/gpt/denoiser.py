"""The published transformer as a denoiser among others: its conditioning, and how it sees updates."""

from jaxtyping import Float
from torch import Tensor, nn

from ..coordinates import Coordinates
from ..model.chunk_dit import CHUNK
from ..model.dit import Denoiser, DiTConfig
from ..sampling.diffusion import alpha_sigma
from ..sampling.linear_schedule import step_of
from .config import GptConfig
from .model import INIT_STD, Gpt


class GptDenoiser(Denoiser):
    """Gpt behind the interface of updates.

    With one scale for all, updates and start networks have one unit, so that the noised network that Gpt
    wants is the noised update plus alpha times the start network, and its difference is the clean update.
    With scales of tensors that sum mixes units; beside the start it tells the noised update all the same.
    """

    def __init__(self, coordinates: Coordinates, config: DiTConfig):
        super().__init__(config)
        self.gpt = Gpt(
            GptConfig(
                sizes=coordinates.reduced.spec.sizes,
                chunk=config.chunk or CHUNK,
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                mlp_ratio=config.mlp_ratio,
            )
        )
        self.register_buffer("order", coordinates.order, persistent=False)
        self.register_buffer("back", coordinates.order.argsort(), persistent=False)

    def initial_std(self, layer: nn.Linear) -> float:
        return INIT_STD

    def predict(
        self,
        u_t: Float[Tensor, "B Z"],
        t: Float[Tensor, " B"],
        start: Float[Tensor, "B Z"],
        metrics: Float[Tensor, "B 4"],
    ) -> Float[Tensor, "B Z"]:
        order = self.get_buffer("order")
        noised = u_t + alpha_sigma(t)[0].unsqueeze(1) * start
        was, wanted = metrics[:, 0], metrics[:, 2]
        step = step_of(t).to(start)
        difference = self.gpt.difference(noised[:, order], step, start[:, order], was, wanted)
        return difference[:, self.get_buffer("back")]
