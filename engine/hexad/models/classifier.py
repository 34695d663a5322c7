"""A small convolutional digit reader, the instrument that judges the image models.

Plain torch on purpose: what judges the kernels' output must not run on the kernels.
"""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    width: int = 32
    dropout: float = 0.3


KEYS: dict[str, str] = {}


class Classifier(nn.Module):
    """Images (B,8,8) in [0,1] -> logits (B,10)."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        width = self.config.width
        self.net = nn.Sequential(
            *self._layer(1, width),
            *self._layer(width, width),
            nn.MaxPool2d(2),
            *self._layer(width, 2 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(self.config.dropout),
            nn.Linear(8 * width, 10),
        )

    @staticmethod
    def _layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images[:, None])
        return logits
